"""Backups on a real host: what is restored is byte for byte what the guest had, also where something went wrong."""

from __future__ import annotations

import hashlib
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
from vmkit.errors import ConflictError, NotFoundError, RefusedError
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.system.journal import records
from vmkit.vm.backup.marks import PREFIX
from vmkit.vm.machine import Vm

WAIT = 180.0
SIZE = 64 << 20


@pytest.fixture
def host(client_h1: Client, micro: Image) -> Iterator[Client]:
    """Host h1, with no VM of this file before and none after."""
    assert micro.name == "micro"
    yield client_h1
    sweep(client_h1)


@pytest.fixture
def vm(host: Client) -> Vm:
    """A running micro guest with one disk."""
    spec = {"name": "kept", "image": "micro", "memory": "128M", "nics": [{"network": "lab"}], "disks": [{"size": SIZE}]}
    return host.vms.create(spec, wait=True, deadline=WAIT).vm


def write(vm: Vm, seed: int) -> str:
    """Have the guest write at several places of its disk; returns the digest of all that it then sees."""
    script = "; ".join(
        f"dd if=/dev/urandom of=/dev/vda conv=notrunc bs=4096 seek={at} count=3 2>/dev/null"
        for at in (seed, 5000 + 31 * seed, SIZE // 4096 - 4 - seed)
    )
    done = vm.guest_exec(["sh", "-c", f"{script}; sync; sha256sum /dev/vda"])
    assert done.status == 0, done.stderr
    return done.stdout.split()[0]


def digest_of(host: Client, volume: str, tmp_path: Path) -> str:
    """Digest of all bytes of a volume as a guest would see them."""
    flat = tmp_path / "flat"
    path = host.host.pool("vmkit").path(volume)
    assert path
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, flat], check=True, timeout=WAIT)
    return hashlib.sha256(flat.read_bytes()).hexdigest()


def extents(host: Client, folder: Path) -> list[str]:
    return [row.extent for row in host.backups.list(str(folder))]


def marks(vm: Vm) -> list[str]:
    return [c.getName() for c in vm.domain.handle.listAllCheckpoints(0)]


def test_full_incremental_and_each_restored_byte_for_byte(host: Client, vm: Vm, tmp_path: Path) -> None:
    backups, folder = host.backups, str(tmp_path / "to")
    wanted: dict[str, str] = {}
    for seed in (1, 2, 3):
        digest = write(vm, seed)
        made = backups.create("kept", folder)
        wanted[made.backup.id] = digest
        assert made.backup.consistency in ("filesystem", "crash")
    rows = backups.list(folder)
    assert [r.extent for r in rows] == ["full", "incremental", "incremental"]
    assert rows[1].size < rows[0].size
    # Only the last one is counted from.
    assert len(marks(vm)) == 1
    # A restart keeps the count: the bitmaps are in the disk.
    vm.stop(force=True)
    with pytest.raises(ConflictError, match="kept is off"):
        backups.create("kept", folder)
    vm.start()
    vm.wait(deadline=WAIT)
    digest = write(vm, 4)
    made = backups.create("kept", folder)
    assert made.backup.extent == "incremental"
    wanted[made.backup.id] = digest
    with pytest.raises(ConflictError, match="there is a VM named kept"):
        backups.restore(folder, "kept")
    for at, digest in wanted.items():
        restored = backups.restore(folder, "kept", at=at, name="anew")
        assert digest_of(host, restored.volumes[0], tmp_path) == digest
        if at == made.backup.id:
            copy = host.vms.get("anew")
            assert copy.uuid != vm.uuid
            assert copy.details().nics[0].mac != vm.details().nics[0].mac
            copy.start()
            copy.wait(deadline=WAIT)
            assert copy.guest_exec(["sha256sum", "/dev/vda"]).stdout.split()[0] == digest
            assert copy.guest_exec(["hostname"]).stdout.strip() == "anew"
        host.vms.get("anew").delete(force=True)
    # The VM is lost: it comes back as itself.
    mac = vm.details().nics[0].mac
    uuid = vm.uuid
    vm.delete(force=True)
    backups.restore(folder, "kept", start=True)
    again = host.vms.get("kept")
    assert (again.uuid, again.details().nics[0].mac, again.state.value) == (uuid, mac, "running")
    with pytest.raises(RefusedError, match="these rest upon"):
        backups.delete(folder, "kept", [rows[0].id])
    assert len(backups.delete(folder, "kept", [r.id for r in backups.list(folder)])) == 4
    with pytest.raises(NotFoundError):
        backups.restore(folder, "kept", name="never")


def test_snapshots_and_backups_of_one_vm(host: Client, vm: Vm, tmp_path: Path) -> None:
    """A revert takes the disk back under the bitmaps: QEMU would end, and what they count would be wrong."""
    backups, folder = host.backups, str(tmp_path / "to")
    then = write(vm, 1)
    host.snapshots.create("kept", "s")
    backups.create("kept", folder)
    write(vm, 2)
    backups.create("kept", folder)
    assert host.snapshots.plan_revert("kept", "s").steps[0].verb == "forget"
    host.snapshots.revert("kept", "s")
    assert marks(vm) == []
    made = backups.create("kept", folder)
    assert made.backup.extent == "full"
    assert "nothing counts what changed" in made.plan.choices[0].reason
    backups.restore(folder, "kept", name="anew")
    assert digest_of(host, "anew-0.qcow2", tmp_path) == then
    # The same of a VM that is off, where libvirt deletes no checkpoints.
    vm.stop(force=True)
    assert len(marks(vm)) == 1
    assert host.snapshots.revert("kept", "s").state == "running"
    assert marks(vm) == []
    host.snapshots.delete("kept", ["s"])
    # External ones: what is counted goes on over the new file, and over its merging.
    backups.create("kept", folder, full=True)
    host.snapshots.create("kept", "x", memory=False)
    write(vm, 3)
    assert backups.create("kept", folder).backup.extent == "incremental"
    host.snapshots.delete("kept", ["x"])
    last = write(vm, 4)
    assert backups.create("kept", folder).backup.extent == "incremental"
    host.vms.get("anew").delete(force=True)
    backups.restore(folder, "kept", name="anew")
    assert digest_of(host, "anew-0.qcow2", tmp_path) == last


def test_bitmaps_that_a_migration_leaves_do_not_end_the_vm(
    host: Client, client_h2: Client, vm: Vm, tmp_path: Path
) -> None:
    """They come along in the disk, without the checkpoint that they belong to."""
    folder = str(tmp_path / "to")
    write(vm, 1)
    host.backups.create("kept", folder)
    host.migrations.migrate("kept", client_h2.host.uri)
    try:
        there = client_h2.vms.get("kept")
        assert marks(there) == []
        client_h2.snapshots.create("kept", "s")
        assert client_h2.snapshots.plan_revert("kept", "s").steps[0].verb == "forget"
        assert client_h2.snapshots.revert("kept", "s").state == "running"
        digest = write(there, 2)
        assert client_h2.backups.create("kept", folder).backup.extent == "full"
        client_h2.backups.restore(folder, "kept", name="anew")
        assert digest_of(client_h2, "anew-0.qcow2", tmp_path) == digest
    finally:
        sweep(client_h2)


def test_a_damaged_backup_is_not_used(host: Client, vm: Vm, tmp_path: Path) -> None:
    backups, folder = host.backups, str(tmp_path / "to")
    write(vm, 1)
    first = backups.create("kept", folder).backup
    write(vm, 2)
    second = backups.create("kept", folder).backup
    assert backups.verify(folder, "kept") == (first.id, second.id)
    file = tmp_path / "to" / "kept" / first.id / "vda.qcow2"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RefusedError, match=f"damaged in .*{first.id}/vda.qcow2"):
        backups.verify(folder, "kept")
    with pytest.raises(RefusedError, match="damaged"):
        backups.restore(folder, "kept", name="anew")
    file.write_bytes(whole[:-100])
    with pytest.raises(RefusedError, match="what it rests upon"):
        backups.restore(folder, "kept", name="anew")
    assert backups.create("kept", folder).backup.extent == "full"
    assert [r.name for r in host.vms.list() if r.name == "anew"] == []


def test_kill_9_of_a_backup_is_settled(host: Client, pair: Lab, vm: Vm, tmp_path: Path) -> None:
    backups, folder = host.backups, tmp_path / "to"
    write(vm, 1)
    backups.create("kept", str(folder))
    command = [sys.executable, "-m", "vmkit", "-c", pair.host("h1").uri]
    for seed, delay in enumerate((0.8, 1.4, 2.2, 3.2), 2):
        write(vm, seed)
        with subprocess.Popen([*command, "backup", "create", "kept", str(folder)], stderr=subprocess.PIPE) as child:
            time.sleep(delay)
            os.kill(child.pid, signal.SIGKILL)
        left = records("backup")
        done = subprocess.run([*command, "list"], capture_output=True, text=True, timeout=WAIT, check=False)
        assert done.returncode == 0, done.stderr
        assert records() == []
        assert ("the backup of kept was cut off" in done.stderr) == bool(left), delay
        assert list((folder / "kept").glob(".partial-*")) == []
        assert vm.domain.job() is None
        assert len(marks(vm)) == 1
    last = write(vm, 20)  # which a guest whose file systems were left frozen could not
    assert backups.create("kept", str(folder)).backup.extent == "incremental"
    assert all(m.startswith(PREFIX) for m in marks(vm))
    backups.restore(str(folder), "kept", name="anew")
    assert digest_of(host, "anew-0.qcow2", tmp_path) == last


def test_ctrl_c_of_a_backup_leaves_nothing_of_it(host: Client, pair: Lab, vm: Vm, tmp_path: Path) -> None:
    folder = tmp_path / "to"
    write(vm, 1)
    argv = [sys.executable, "-m", "vmkit", "-c", pair.host("h1").uri, "backup", "create", "kept", str(folder)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
        deadline = time.monotonic() + WAIT
        while not list(folder.glob("kept/.partial-*/vda.qcow2")):
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.02)
        os.killpg(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=WAIT)
    assert (child.returncode, records()) == (7, []), err
    assert "nothing is left of it" in err
    assert extents(host, folder) == []
    assert marks(vm) == []
    assert list(folder.glob("kept/.partial-*")) == []
    assert vm.state.value == "running"
