"""Changes of real guests while they run, seen from inside; what is set back, and what a killed command leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.qemu.conftest import DEBIAN_VM, sweep
from vmkit.client import Client
from vmkit.errors import ConflictError, DeadlineError
from vmkit.hypervisor.domain import DomainState
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.system.journal import records
from vmkit.vm.change import plug
from vmkit.vm.change.report import Applied, Options
from vmkit.vm.machine import Vm
from vmkit.vm.spec import parse

NAME = "changing"
WAIT = 180.0
BASE: dict[str, Any] = {
    "name": NAME,
    "image": "micro",
    "memory": "256M",
    "max_memory": "1G",
    "max_vcpus": 2,
    "disks": [{}, {"size": "64M"}],
    "nics": [{"network": "lab"}],
}
BLOCKED = "echo w >/proc/sysrq-trigger; dmesg | tail -n 60; ls /sys/bus/pci/devices; ls -l /sys/class/net"
"""What tells of a guest that does not listen: tasks that wait for something, and what it knows of."""
GROWN: dict[str, Any] = {
    **BASE,
    "vcpus": 2,
    "memory": "384M",
    "disks": [{}, {"size": "96M"}, {"size": "32M"}, {"size": "16M", "bus": "scsi"}],
    "nics": [{"network": "lab"}, {"network": "user", "mac": "52:54:00:00:09:01"}],
}


@pytest.fixture(scope="module")
def client(pair: Lab) -> Iterator[Client]:
    with Client(pair.host("h1").uri) as client:
        yield client


@pytest.fixture(scope="module")
def vm(client: Client, micro: Image) -> Iterator[Vm]:
    """One guest for all tests here, which has written something onto its second disk."""
    assert micro.disk
    made = client.vms.create(BASE, wait=True, deadline=WAIT)
    inside(made.vm, "echo precious | dd of=/dev/vdb conv=notrunc")
    yield made.vm
    sweep(client)
    pool = client.host.pool("vmkit")
    pool.refresh()
    for name in pool.names():
        if name.startswith(NAME):
            pool.delete(name)


@pytest.fixture
def base(client: Client, vm: Vm) -> Iterator[Vm]:
    """The guest as it was made, before and after."""
    apply(client, BASE, wait=True, deadline=WAIT)
    yield client.vms.get(vm.name)
    apply(client, BASE, wait=True, deadline=WAIT)
    assert records() == []


def apply(client: Client, spec: dict[str, Any], **far: Any) -> Applied:
    try:
        (done,) = client.changes.apply([parse(spec)], options=Options(**far))
    except DeadlineError as e:
        vm = client.vms.get(spec["name"])
        if vm.domain.state() is DomainState.RUNNING:
            e.add_note("\n".join([*e.details, inside(vm, BLOCKED)]))
        raise
    return done


def inside(vm: Vm, script: str) -> str:
    done = vm.guest_exec(["/bin/sh", "-c", script], timeout=60)
    assert done.status == 0, done.stderr
    return done.stdout.strip()


def until(vm: Vm, script: str, expected: str) -> None:
    """What was plugged in is in the guest after a moment; until then the script may fail."""
    deadline = time.monotonic() + 60
    while True:
        done = vm.guest_exec(["/bin/sh", "-c", script], timeout=60)
        if done.status == 0 and done.stdout.strip() == expected:
            return
        assert time.monotonic() < deadline, f"{script}: {done}, not {expected}"
        time.sleep(0.3)


def mebibytes(vm: Vm) -> int:
    return int(inside(vm, "grep MemTotal /proc/meminfo | tr -dc 0-9")) >> 10


def volumes(client: Client) -> list[str]:
    pool = client.host.pool("vmkit")
    pool.refresh()
    return pool.names()


def test_grow_and_shrink_while_it_runs(client: Client, base: Vm) -> None:
    vm = base
    first, memory = int(inside(vm, "counter")), mebibytes(vm)
    assert {r.effect for d in client.changes.diff([parse(GROWN)]) for r in d.changes} == {"live"}
    done = apply(client, GROWN)
    assert (done.action, done.pending) == ("changed", ())
    until(vm, "cat /sys/block/vdb/size", str(96 * 2048))
    until(vm, "cat /sys/block/vdc/size", str(32 * 2048))
    until(vm, "cat /sys/block/sda/size", str(16 * 2048))
    until(vm, "cat /sys/class/net/eth1/address", "52:54:00:00:09:01")
    until(vm, "cat /sys/devices/system/cpu/online", "0-1")
    assert mebibytes(vm) - memory == 128
    assert inside(vm, "head -c 8 /dev/vdb") == "precious"
    inside(vm, "echo kept | dd of=/dev/vdc conv=notrunc; sync")
    assert apply(client, GROWN).action == "unchanged"

    smaller = {**BASE, "vcpus": 2, "disks": [{}, {"size": "96M"}]}
    done = apply(client, smaller)
    assert {r.effect for r in done.changes} == {"live"}
    assert done.kept == (f"{NAME}-2.qcow2", f"{NAME}-3.qcow2")
    until(vm, "ls /sys/block | grep -c '^[vs]d'", "2")
    until(vm, "ls -d /sys/class/net/eth* | wc -l", "1")
    assert mebibytes(vm) == memory
    assert int(inside(vm, "counter")) > first  # the same boot: the counter lives in RAM
    kept = client.host.pool("vmkit").read(f"{NAME}-2.qcow2")
    assert b"kept" in kept
    for name in done.kept:
        client.host.pool("vmkit").delete(name)
    # A disk never becomes smaller again, and an emulated guest keeps its vCPUs until it is shut down.
    BASE.update(disks=smaller["disks"], vcpus=2)
    (fewer,) = client.changes.diff([parse({**BASE, "vcpus": 1})])
    emulated = vm.details().accelerator == "tcg"
    assert [r.effect for r in fewer.changes] == ["needs reboot" if emulated else "live"]


def test_what_needs_a_reboot_waits_for_it(client: Client, base: Vm) -> None:
    # One vCPU from here on: QEMU 10.0 may end a guest that boots with two under TCG ("iotlb_to_section: Assertion").
    want = {**BASE, "cmdline": "vmkit.test=1", "memory": "300M", "vcpus": 1}
    pending = {"cmdline", "memory"} | ({"vcpus"} if BASE.get("vcpus", 1) != 1 else set())
    BASE.update(vcpus=1)
    done = apply(client, want)
    assert set(done.pending) == pending
    assert "vmkit.test" not in inside(base, "cat /proc/cmdline")
    assert apply(client, want).action == "unchanged"
    (shown,) = client.changes.diff([parse(want)])
    assert (shown.action, set(shown.pending)) == ("reboot", pending)
    assert apply(client, want, reboot=True, wait=True, deadline=WAIT).action == "rebooted"
    assert "vmkit.test=1" in inside(base, "cat /proc/cmdline")
    assert base.details().memory == 300 << 20
    apply(client, BASE, reboot=True, wait=True, deadline=WAIT)


def test_what_the_guest_does_not_let_go_of_takes_all_back(
    client: Client, base: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(client, {**BASE, "nics": GROWN["nics"]})
    config, before = base.domain.xml(inactive=True), volumes(client)
    monkeypatch.setattr(plug, "UNPLUG", 4.0)
    base.pause()  # a guest that stands still lets go of nothing; a disk on virtio-scsi goes without being asked
    with pytest.raises(DeadlineError, match=r"did not let go of NIC 52:54:00:00:09:01.*; everything is as it was"):
        apply(client, {**BASE, "disks": [*BASE["disks"], {"size": "8M", "bus": "scsi"}], "labels": {"a": "b"}})
    base.resume()
    assert base.domain.xml(inactive=True) == config
    assert volumes(client) == before
    assert len(base.details().nics) == 2
    assert [d.device for d in base.details().disks] == ["vda", "vdb"]
    assert base.details().labels == {}


def vmkit(*argv: str, uri: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vmkit", "-c", uri, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def phase_reached(phase: str, process: subprocess.Popen[str]) -> Callable[[], bool]:
    return lambda: process.poll() is not None or any(r.phase == phase for r in records("apply"))


@pytest.mark.parametrize("phase", ["volumes", "live", "definition", "unplug"])
def test_kill_9_of_apply_is_settled_by_the_next_command(
    client: Client, base: Vm, pair: Lab, tmp_path: Path, phase: str
) -> None:
    uri = pair.host("h1").uri
    nics = [{"network": "lab"}, {"network": "user", "mac": "52:54:00:00:09:02"}]
    apply(client, {**BASE, "nics": nics})
    before, config, live = volumes(client), base.domain.xml(inactive=True), plug.shape(base.domain)
    want = {**GROWN, "disks": [*BASE["disks"], {"size": "32M"}]}
    file = tmp_path / "vm.json"  # JSON is YAML
    file.write_text(json.dumps({"vms": [want]}))
    process = vmkit("apply", "-f", str(file), uri=uri)
    reached = phase_reached(phase, process)
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    interrupted = records("apply")
    following = vmkit("list", "-o", "name", uri=uri)
    out, err = following.communicate(timeout=180)
    assert following.returncode == 0, err
    assert NAME in out
    assert records() == []
    if not interrupted:  # it had come to its end
        assert apply(client, want).action == "unchanged"
        return
    assert f"a change of {NAME} was cut off" in err
    after = plug.shape(base.domain)
    assert base.domain.xml(inactive=True) == config
    assert volumes(client) == before
    assert [d.device for d in after.disks] == [d.device for d in live.disks]
    assert {n.mac for n in after.nics} == {n.mac for n in live.nics}
    assert (after.size.memory, len(after.dimms)) == (live.size.memory, len(live.dimms))
    assert apply(client, want).action == "changed"


def test_renamed_and_made_anew_with_its_data(client: Client, base: Vm) -> None:
    with pytest.raises(ConflictError, match="renames only what is shut off"):
        client.changes.rename(NAME, f"{NAME}-2")
    client.changes.rename(NAME, f"{NAME}-2", restart=True, deadline=WAIT)
    vm = client.vms.get(f"{NAME}-2")
    vm.wait(deadline=WAIT)
    assert inside(vm, "hostname") == f"{NAME}-2"
    assert vm.log()
    client.changes.rename(f"{NAME}-2", NAME, restart=True, deadline=WAIT)
    vm = client.vms.get(NAME)
    vm.wait(deadline=WAIT)
    old = vm.uuid
    with pytest.raises(ConflictError, match="would have to be made anew"):
        apply(client, {**BASE, "machine": "pc"})
    done = apply(client, {**BASE, "machine": "pc"}, recreate=True, wait=True, deadline=WAIT)
    assert done.action == "re-created"
    vm = client.vms.get(NAME)
    assert vm.uuid != old
    assert inside(vm, "head -c 8 /dev/vdb") == "precious"
    BASE.update(machine="pc")
    assert {r.name for r in client.vms.list()} <= {NAME, DEBIAN_VM}


def test_delete_leaves_nothing_of_what_was_added(client: Client, base: Vm) -> None:
    assert base.name == NAME
    remembered = base.remembered()
    assert remembered
    # Disks that the tests before took away were kept, since nobody said otherwise.
    before = [v for v in volumes(client) if v not in (*remembered.volumes, remembered.console_log)]
    apply(client, {**BASE, "disks": [*BASE["disks"], {"size": "8M"}]})
    client.vms.get(NAME).delete(force=True)
    assert volumes(client) == before


def test_a_debian_sees_what_is_added_and_lets_go_of_it(debian_vm: Vm, client: Client) -> None:
    """On the image that vmkit built: disk, NIC and memory, while it runs."""
    name, changes = debian_vm.name, client.changes
    before, memory = changes.spec(name), mebibytes(debian_vm)
    first = inside(debian_vm, "cat /proc/sys/kernel/random/boot_id")
    more = {
        "memory": "640M",
        "disks": [{}, {"size": "64M"}],
        "nics": [{"network": "lab"}, {"network": "user", "mac": "52:54:00:00:09:03"}],
    }
    done = changes.change(name, lambda plain, _have: {**plain, **more})
    assert isinstance(done, Applied)
    assert {r.effect for r in done.changes} == {"live"}
    sizes = "lsblk -dnbo SIZE | grep -cw {} || true"
    until(debian_vm, sizes.format(64 << 20), "1")
    until(debian_vm, "cat /sys/class/net/*/address | grep -c 52:54:00:00:09:03 || true", "1")
    assert mebibytes(debian_vm) - memory == 128
    changes.change(name, lambda plain, _have: {**plain, "disks": [{}, {"size": "96M"}]})
    until(debian_vm, sizes.format(96 << 20), "1")

    # Memory stays: a guest may refuse to give it back, and this one did.
    back = {**before, "memory": "640M"}
    done = changes.change(name, lambda _plain, _have: back, options=Options(start=False, delete_disks=True))
    assert isinstance(done, Applied)
    assert {r.effect for r in done.changes} == {"live"}
    assert len(done.deleted) == 1
    until(debian_vm, sizes.format(96 << 20), "0")
    assert inside(debian_vm, "cat /proc/sys/kernel/random/boot_id") == first
    assert changes.spec(name) == back
