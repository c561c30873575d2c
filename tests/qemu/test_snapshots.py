"""Snapshots on a real host: disk and memory both come back, both kinds, killed runs, saved memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.conftest import sweep
from vmkit.client import Client
from vmkit.errors import ConflictError, UnsupportedError
from vmkit.hypervisor import hotplug
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.system.journal import records
from vmkit.vm.machine import Vm
from vmkit.vm.snapshot.model import Kind

WAIT = 180.0
HOLDER = """mkfifo /run/in; setsid sh -c 'while true; do if read x </run/in; then if [ "$x" = ask ]; then \
echo "$v" >/run/out; else v=$x; fi; fi; done' >/dev/null 2>&1 </dev/null &"""
"""A process in the guest that holds a word in its memory."""
RAW = (
    "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>"
    "<target dev='vdb' bus='virtio'/></disk>"
)


@pytest.fixture
def host(client_h1: Client, micro: Image) -> Iterator[Client]:
    """Host h1, with no VM of this file before and none after."""
    assert micro.name == "micro"
    yield client_h1
    sweep(client_h1)


@pytest.fixture
def vm(host: Client) -> Vm:
    """A running micro guest with one qcow2 disk."""
    return made(host)


@pytest.fixture
def raw_vm(host: Client, tmp_path: Path) -> Vm:
    """A running micro guest with a second disk that can hold no snapshots."""
    path = tmp_path / "data.img"
    path.write_bytes(bytes(8 << 20))
    vm = made(host, start=False)
    hotplug.attach(vm.domain, RAW.format(path=path), live=False, config=True)
    vm.start()
    vm.wait(deadline=WAIT)
    sh(vm, HOLDER)
    return vm


def made(host: Client, *, start: bool = True) -> Vm:
    spec = {"name": "keep", "image": "micro", "memory": "128M", "nics": [{"network": "lab"}]}
    vm = host.vms.create({**spec, "disks": [{"size": "64M"}]}, wait=start, start=start, deadline=WAIT).vm
    if start:
        sh(vm, HOLDER)
    return vm


def sh(vm: Vm, script: str) -> str:
    done = vm.guest_exec(["sh", "-c", script])
    assert done.status == 0, done.stderr
    return done.stdout


def put(vm: Vm, word: str, *devices: str) -> None:
    """Have the guest remember a word of four letters: on its disks, and in its memory."""
    for device in devices or ("vda",):
        sh(vm, f"printf {word} | dd of=/dev/{device} conv=notrunc bs=4096 seek=300 2>/dev/null; sync")
    sh(vm, f"echo {word} >/run/in")


def read(vm: Vm, device: str = "vda") -> str:
    return sh(vm, f"dd if=/dev/{device} bs=4096 skip=300 count=1 2>/dev/null | head -c 4")


def held(vm: Vm) -> str:
    """The word in the memory of the guest's process."""
    return sh(vm, "rm -f /run/out; echo ask >/run/in; until [ -s /run/out ]; do sleep 0.1; done; cat /run/out").strip()


def volumes(client: Client) -> list[str]:
    pool = client.host.pool("vmkit")
    pool.refresh()
    return pool.names()


def test_disk_and_memory_come_back(host: Client, vm: Vm) -> None:
    snapshots = host.snapshots
    put(vm, "AAAA")
    taken = snapshots.create("keep", "one")
    assert (taken.snapshot.kind, taken.snapshot.memory) == (Kind.INTERNAL, True)
    put(vm, "BBBB")
    snapshots.create("keep", "two")
    put(vm, "CCCC")
    back = snapshots.revert("keep", "one")
    assert back.state == "running"
    assert "its memory is that of the snapshot" in back.verified
    assert (read(vm), held(vm)) == ("AAAA", "AAAA")
    snapshots.revert("keep", "two")
    assert (read(vm), held(vm)) == ("BBBB", "BBBB")
    # One without memory would have to be external, and a revert to 'one' would write into what it rests upon.
    with pytest.raises(UnsupportedError, match="no snapshot of keep can be made"):
        snapshots.create("keep", memory=False)
    assert [line.split()[-5] if "(now)" not in line else "(now)" for line in snapshots.tree("keep")] == [
        "one",
        "two",
        "(now)",
    ]
    snapshots.delete("keep", ["one"])
    assert read(vm) == "BBBB"
    vm.delete(force=True)
    assert [v for v in volumes(host) if v.startswith("keep")] == []


def test_a_disk_that_holds_no_snapshots_gets_files_beside_it(host: Client, raw_vm: Vm, tmp_path: Path) -> None:
    snapshots, vm = host.snapshots, raw_vm
    put(vm, "AAAA", "vda", "vdb")
    taken = snapshots.create("keep", "one")
    assert (taken.snapshot.kind, taken.snapshot.disks) == (Kind.EXTERNAL, ("vda", "vdb"))
    assert "vdb is raw" in taken.plan.choices[0].rejected[0].reason
    put(vm, "BBBB", "vda", "vdb")
    snapshots.create("keep", "two")
    put(vm, "CCCC", "vda", "vdb")
    snapshots.revert("keep", "one")
    assert (read(vm), read(vm, "vdb"), held(vm)) == ("AAAA", "AAAA", "AAAA")
    put(vm, "DDDD", "vda", "vdb")
    snapshots.revert("keep", "two")
    assert (read(vm), read(vm, "vdb"), held(vm)) == ("BBBB", "BBBB", "BBBB")
    assert snapshots.delete("keep", ["one"], children=True) == ("two", "one")
    assert (read(vm), read(vm, "vdb")) == ("BBBB", "BBBB")
    assert snapshots.list("keep") == []
    vm.delete(force=True)
    assert [v for v in volumes(host) if v.startswith("keep")] == []
    assert (tmp_path / "data.img").exists()


def test_without_memory_the_vm_is_off_after_a_revert(host: Client, vm: Vm) -> None:
    put(vm, "AAAA")
    taken = host.snapshots.create("keep", "disks", memory=False)
    assert (taken.snapshot.kind, taken.snapshot.memory) == (Kind.EXTERNAL, False)
    put(vm, "BBBB")
    assert host.snapshots.revert("keep", "disks").state == "shut off"
    vm.start()
    vm.wait(deadline=WAIT)
    assert read(vm) == "AAAA"
    host.snapshots.revert("keep", "disks", start=True)
    vm.wait(deadline=WAIT)
    assert read(vm) == "AAAA"
    vm.delete(force=True)
    assert [v for v in volumes(host) if v.startswith("keep")] == []


def test_saved_memory_goes_on_where_it_was(host: Client, vm: Vm) -> None:
    snapshots = host.snapshots
    put(vm, "AAAA")
    before = int(sh(vm, "counter"))
    snapshots.save("keep")
    assert vm.state.value == "shut off"
    with pytest.raises(ConflictError, match="saved memory"):
        snapshots.create("keep")
    snapshots.restore("keep")
    assert int(sh(vm, "counter")) > before
    assert held(vm) == "AAAA"
    assert "vmkit-micro: ready" in vm.log()  # what was written before it was saved
    # A revert takes the disks back under the saved memory, so that must not be taken up again.
    snapshots.create("keep", "one")
    snapshots.save("keep")
    snapshots.revert("keep", "one")
    vm.stop(force=True)
    assert snapshots.drop_saved("keep") is False


@pytest.mark.parametrize("kind", ["internal", "external"])
def test_kill_9_of_a_snapshot_is_settled(host: Client, pair: Lab, kind: str) -> None:
    vm = made(host)
    command = [sys.executable, "-m", "vmkit", "-c", pair.host("h1").uri]
    more = ["--no-memory"] if kind == "external" else []
    for delay in (0.6, 1.0, 1.6):
        put(vm, "AAAA")
        with subprocess.Popen([*command, "snapshot", "create", "keep", "cut", *more], stderr=subprocess.PIPE) as child:
            time.sleep(delay)
            os.kill(child.pid, signal.SIGKILL)
        left = records("snapshot")
        done = subprocess.run([*command, "list"], capture_output=True, text=True, timeout=WAIT, check=False)
        assert done.returncode == 0, done.stderr
        assert records() == []
        assert ("of keep was cut off" in done.stderr) == bool(left), delay
        assert vm.state.value == "running"
        assert (read(vm), held(vm)) == ("AAAA", "AAAA")
        if host.snapshots.list("keep"):
            host.snapshots.delete("keep", ["cut"])
        assert [v for v in volumes(host) if "cut" in v] == [], delay
        put(vm, "BBBB")
        assert read(vm) == "BBBB"


def test_kill_9_of_a_revert_says_what_became_of_it(host: Client, pair: Lab) -> None:
    vm = made(host)
    command = [sys.executable, "-m", "vmkit", "-c", pair.host("h1").uri]
    put(vm, "AAAA")
    host.snapshots.create("keep", "one")
    for delay in (0.6, 1.0, 1.6):
        put(vm, "BBBB")
        with subprocess.Popen([*command, "snapshot", "revert", "keep", "one"], stderr=subprocess.PIPE) as child:
            time.sleep(delay)
            os.kill(child.pid, signal.SIGKILL)
        left = records("snapshot")
        done = subprocess.run([*command, "list"], capture_output=True, text=True, timeout=WAIT, check=False)
        assert done.returncode == 0, done.stderr
        assert records() == []
        word = read(vm)
        assert held(vm) == word
        assert vm.state.value == "running"
        if left:
            said = {"AAAA": "it came to its end", "BBBB": "do it again: vmkit snapshot revert keep one"}[word]
            assert said in done.stderr
