"""Migration between two hosts that share no storage: all files of a VM go along, or nothing of them is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.qemu.conftest import APART, hosts_apart
from tests.qemu.mover import Mover, jobs, vmkit
from vmkit.client import Client
from vmkit.errors import CancelledError, SpecError
from vmkit.hypervisor.domain import DomainState
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.migration import adopt, find
from vmkit.image.manifest import Image
from vmkit.image.place import POOL
from vmkit.lab.api import Lab
from vmkit.migrate.copying import PHASE
from vmkit.progress import Advanced, Event, Finished
from vmkit.system.journal import records

WRITER = """
n=0
while [ ! -e /tmp/stop ]; do
  n=$((n+1)); s=$((n%32)); m=$(printf %07d $n)
  yes $m 2>/dev/null | head -c 16384 >/tmp/block
  dd if=/tmp/block of=/dev/vda bs=16k seek=$((8192+s)) oflag=direct status=none && echo $m >/tmp/slot.$s
done
touch /tmp/stopped
"""
"""Writes numbered blocks to places on the disk in turn; the number of each is noted in memory once it is written."""
CHECK = """
touch /tmp/stop
while [ ! -e /tmp/stopped ]; do sleep 0.1; done
for f in /tmp/slot.*; do
  s=${f##*.}
  dd if=/dev/vda bs=16k skip=$((8192+s)) count=1 iflag=direct status=none | uniq | tr '\\n' ' '
  cat $f
done
rm -f /tmp/slot.* /tmp/stop /tmp/stopped
"""


@pytest.fixture(scope="module")
def apart(micro: Image) -> Iterator[Lab]:
    """Two hosts that share no storage."""
    with hosts_apart("apart") as lab:
        yield lab


@pytest.fixture(scope="module")
def mover(apart: Lab) -> Iterator[Mover]:
    vm = Mover(apart, "carried", apart.hosts[0].static[0], disks=[{"size": "256M"}], autostart=True)
    vm.create()
    vm.guest("sh", "-c", "dd if=/dev/urandom of=/dev/vda bs=1M seek=64 count=8 conv=fsync status=none")
    yield vm
    vm.close()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert jobs() == []
    assert records() == []


def volumes(mover: Mover, at: int) -> set[str]:
    """What a host's pool has of the VM."""
    pool = mover.hosts[at].pool(POOL)
    pool.refresh()
    return {n for n in pool.names() if n.startswith((mover.name, "vmkit-marker"))}


def fingerprint(mover: Mover) -> str:
    return mover.guest("sh", "-c", "dd if=/dev/vda bs=1M skip=64 count=8 iflag=direct status=none | md5sum")


def test_a_disk_under_writes_arrives_identical(mover: Mover) -> None:
    before, counter = fingerprint(mover), mover.counter()
    mover.guest("sh", "-c", f"cat >/tmp/writer <<'END'\n{WRITER}END\nsh /tmp/writer >/dev/null 2>&1 &")
    at, target = mover.at, mover.target
    events: list[Event] = []
    with Client(mover.source) as client:
        plan = client.migrations.plan(mover.name, target)
        assert any(s.verb == "copy" and "carried-0.qcow2" in s.what for s in plan.steps)
        report = client.migrations.migrate(mover.name, target, deadline=300.0, reporter=events.append)
    assert mover.at == 1 - at
    assert report.running_copies == 1
    assert report.disk_bytes >= 8 * 2**20
    told = [e for e in events if isinstance(e, Advanced | Finished) and e.step == "disks"]
    assert told, events
    slots = mover.guest("sh", "-c", CHECK).splitlines()
    assert len(slots) > 2, slots  # 32 where nothing else uses the CPUs
    assert all(len(set(line.split())) == 1 for line in slots), slots
    assert fingerprint(mover) == before
    assert mover.counter() > counter
    assert volumes(mover, at) == set()
    assert volumes(mover, 1 - at) == {"carried-0.qcow2", "carried-console.log"}
    pool = mover.hosts[1 - at].pool(POOL)
    assert pool.size("carried-0.qcow2")[0] == 256 * 2**20
    assert pool.size("carried-0.qcow2")[1] < 64 * 2**20  # only what is in use was copied
    assert str(pool.backing("carried-0.qcow2")).startswith(APART)
    there = next(s for s in mover.sightings() if s is not None)
    assert (there.persistent, there.autostart) == (True, True)


def test_killed_while_the_disk_is_copied(mover: Mover) -> None:
    at, before = mover.at, mover.counter()
    process = mover.start_migrate("--bandwidth", "1M")
    domain = mover.hosts[at].domain(mover.name)
    for _ in range(1200):
        job = domain.job()
        if job is not None and job.raw.get("disk_processed", 0) > 2**20:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    assert job is not None
    assert job.total == 0  # memory has not begun
    assert "carried-0.qcow2" in volumes(mover, 1 - at)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    done = vmkit("jobs")
    assert "was cut off; the VM is at" in done.stderr, done.stderr
    assert mover.at == at
    assert volumes(mover, 1 - at) == set()
    assert volumes(mover, at) == {"carried-0.qcow2", "carried-console.log"}
    assert mover.counter() > before


def test_cancelled_before_the_memory_and_then_moved(mover: Mover) -> None:
    """Its files have begun to come to the target; afterwards they are not there."""
    at, target, before = mover.at, mover.target, fingerprint(mover)

    def once_files_come() -> bool:
        return any(r.phase == PHASE and r.data.get("made") for r in records("migrate"))

    with Client(mover.source) as client:
        with pytest.raises(CancelledError, match="runs on at"):
            client.migrations.migrate(mover.name, target, cancelled=once_files_come)
        assert mover.at == at
        assert volumes(mover, 1 - at) == set()
        assert client.migrations.migrate(mover.name, target, deadline=300.0).running_copies == 1
    assert fingerprint(mover) == before
    assert volumes(mover, at) == set()


def off(mover: Mover) -> int:
    """Where the VM is, which is shut off."""
    assert sorted(mover.states()) == ["-", "shut off"], mover.states()
    return mover.states().index("shut off")


@pytest.fixture
def stopped(mover: Mover) -> Iterator[str]:
    """The VM is shut off; afterwards it runs again, where it is then, with what it had on its disk."""
    before = fingerprint(mover)
    with Client(mover.source) as client:
        client.vms.get(mover.name).stop(force=True)
    yield before
    with Client(mover.uris[off(mover)]) as client:
        vm = client.vms.get(mover.name)
        vm.start()
        vm.wait(deadline=240.0)
    assert fingerprint(mover) == before


def test_shut_off_it_moves_with_its_disk_and_its_definition(mover: Mover, stopped: str) -> None:
    at = off(mover)
    there = mover.uris[1 - at]
    with Client(mover.uris[at]) as client:
        with pytest.raises(SpecError, match="--max-downtime: is about the memory"):
            client.migrations.migrate(mover.name, there, max_downtime=0.1)
        assert [s.verb for s in client.migrations.plan(mover.name, there).steps][-2:] == ["verify", "remove"]
        report = client.migrations.migrate(mover.name, there)
    assert (report.technique, report.running_copies, report.downtime_ms) == ("cold", 0, None)
    assert off(mover) == 1 - at
    assert volumes(mover, at) == set()
    assert volumes(mover, 1 - at) == {"carried-0.qcow2", "carried-console.log"}
    assert mover.hosts[1 - at].pool(POOL).size("carried-0.qcow2")[1] < 64 * 2**20
    moved = next(s for s in mover.sightings() if s is not None)
    assert (moved.persistent, moved.autostart) == (True, True)


KILLED = """
import os, signal, sys
from vmkit.client import Client
from vmkit.hypervisor import migration
when, here, name, there = sys.argv[1:]
moves = migration.migrate_offline
def once(domain, target):
    if when == "after":
        moves(domain, target)
    os.kill(os.getpid(), signal.SIGKILL)
migration.migrate_offline = once
with Client(here) as client:
    client.migrations.migrate(name, there)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_the_move_of_the_definition(mover: Mover, stopped: str, when: str) -> None:
    at = off(mover)
    argv = [sys.executable, "-c", KILLED, when, mover.uris[at], mover.name, mover.uris[1 - at]]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    arrived = at if when == "before" else 1 - at
    said = vmkit("jobs").stderr
    assert f"was cut off; the VM is at {mover.uris[arrived]}" in said, said
    assert off(mover) == arrived
    assert volumes(mover, 1 - arrived) == set()
    assert volumes(mover, arrived) == {"carried-0.qcow2", "carried-console.log"}
    assert [s.autostart for s in mover.sightings() if s is not None] == [True]


FOREIGN = """
<domain type='qemu'>
  <name>foreign-disks</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{folder}/data.raw'/>
      <target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{folder}/medium.iso'/>
      <target dev='sda' bus='sata'/><readonly/></disk>
    <serial type='pty'/>
  </devices>
</domain>
"""


def test_a_medium_and_a_raw_disk_of_another_tool(apart: Lab) -> None:
    """What vmkit did not make stays at the source too, and the report says so."""
    content = {"data.raw": b"\x5a" * 2**20 + bytes(7 * 2**20), "medium.iso": bytes(range(256)) * 1024}
    with Host.connect(apart.hosts[0].uri) as one, Host.connect(apart.hosts[1].uri) as two:
        for name, data in content.items():
            one.pool(POOL).write(name, data)
        domain = adopt(one, FOREIGN.format(folder=APART))
        try:
            domain.start()
            with Client(one.uri) as client:
                report = client.migrations.migrate("foreign-disks", two.uri, deadline=300.0)
            assert sorted(report.copied) == [f"{APART}/data.raw", f"{APART}/medium.iso"]
            assert any("data.raw stays at the source" in w for w in report.warnings)
            moved = two.domain("foreign-disks")
            assert moved.state() is DomainState.RUNNING
            moved.destroy()
            for host in (one, two):
                assert {name: host.pool(POOL).read(name) for name in content} == content
            for name in content:
                one.pool(POOL).delete(name)
            dug = vmkit("lab", "exec", f"{apart.name}/h2", "--", "fallocate", "--dig-holes", f"{APART}/data.raw")
            assert dug.returncode == 0, dug.stderr
            with Client(two.uri) as client:  # back again, shut off; what is a hole in the raw file stays one
                assert client.migrations.migrate("foreign-disks", one.uri).technique == "cold"
            assert {name: one.pool(POOL).read(name) for name in content} == content
            assert one.pool(POOL).size("data.raw")[1] < 3 * 2**20
        finally:
            for host in (one, two):
                if left := find(host, name="foreign-disks"):
                    if left.state().active:
                        left.destroy()
                    left.undefine()
                for name in content:
                    if host.pool(POOL).path(name):
                        host.pool(POOL).delete(name)
