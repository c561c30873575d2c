"""The state of a whole Debian kept and brought back: file and process together, and its disk in backups."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vmkit.client import Client
from vmkit.vm.machine import Vm

WAIT = 300.0
HOLDER = """rm -f /run/in /run/out; mkfifo /run/in; setsid sh -c 'while true; do if read x </run/in; then \\
if [ "$x" = ask ]; then echo "$v" >/run/out; else v=$x; fi; fi; done' >/dev/null 2>&1 </dev/null &
echo $! >/run/holder"""
ASK = "rm -f /run/out; echo ask >/run/in; until [ -s /run/out ]; do sleep 0.1; done; cat /run/out; cat /root/word"


def sh(vm: Vm, script: str) -> str:
    done = vm.guest_exec(["sh", "-c", script], timeout=WAIT)
    assert done.status == 0, done.stderr
    return done.stdout


def test_snapshot_with_memory_brings_file_and_process_back(client_h1: Client, debian_vm: Vm) -> None:
    name = debian_vm.name
    sh(debian_vm, HOLDER)
    try:
        boot = sh(debian_vm, "cat /proc/sys/kernel/random/boot_id")
        sh(debian_vm, "echo before >/root/word; sync; echo before >/run/in")
        taken = client_h1.snapshots.create(name, "before", description="of the test")
        assert taken.snapshot.memory
        sh(debian_vm, "echo after >/root/word; sync; echo after >/run/in")
        assert sh(debian_vm, ASK).split() == ["after", "after"]
        back = client_h1.snapshots.revert(name, "before")
        assert back.state == "running"
        assert sh(debian_vm, ASK).split() == ["before", "before"]
        assert sh(debian_vm, "cat /proc/sys/kernel/random/boot_id") == boot
    finally:
        for one in client_h1.snapshots.list(name):
            client_h1.snapshots.delete(name, [one.name])
        sh(debian_vm, "kill $(cat /run/holder); rm -f /run/in /run/out /run/holder /root/word")


def test_an_incremental_backup_is_byte_for_byte_what_a_full_one_of_the_same_moment_is(
    client_h1: Client, debian_vm: Vm, tmp_path: Path
) -> None:
    backups, name = client_h1.backups, debian_vm.name
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    restored = []
    try:
        full = backups.create(name, here).backup
        assert (full.extent, full.consistency) == ("full", "filesystem")
        sh(debian_vm, "mkdir -p /root/new; cp -a /usr/bin /root/new/; rm -rf /var/cache/apt/*; sync")
        debian_vm.pause()
        try:
            second = backups.create(name, here).backup
            whole = backups.create(name, there).backup
        finally:
            debian_vm.resume()
        assert (second.extent, second.consistency, whole.extent) == ("incremental", "paused", "full")
        assert second.size < whole.size
        pool = client_h1.host.pool("vmkit")
        for directory, other in ((here, "by-parts"), (there, "in-whole")):
            restored.append(backups.restore(directory, name, name=other).name)
        paths = [pool.path(f"{other}-0.qcow2") for other in restored]
        done = subprocess.run(["qemu-img", "compare", *map(str, paths)], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "Images are identical."
        # The seed of cloud-init goes along, so that the copy does not take itself for a new machine.
        drives = [d.source for d in client_h1.vms.get("by-parts").details().disks if d.readonly]
        assert drives
        assert all(source and Path(source).exists() and "by-parts" in source for source in drives)
    finally:
        sh(debian_vm, "rm -rf /root/new")
        for other in restored:
            client_h1.vms.get(other).delete()
    assert [v for v in client_h1.host.pool("vmkit").names() if v.startswith(("by-parts", "in-whole"))] == []
