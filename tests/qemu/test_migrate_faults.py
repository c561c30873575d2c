"""vmkit killed in the middle of a migration: the next command brings both hosts in order."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.qemu.mover import Mover, jobs, vmkit
from vmkit.client import Client
from vmkit.hypervisor.domain import DomainState
from vmkit.hypervisor.migration import find
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab, Labs
from vmkit.migrate.recovery import recover
from vmkit.system.journal import records, taken_over


@pytest.fixture(scope="module")
def mover(pair: Lab, micro: Image) -> Iterator[Mover]:
    vm = Mover(pair, "victim", pair.hosts[0].static[0].rpartition(".")[0] + ".202")
    vm.create()
    yield vm
    vm.close()


@pytest.fixture(autouse=True)
def whole(mover: Mover) -> Iterator[None]:
    """Around each test: one copy runs, its counter goes on, and it can be migrated once more."""
    before = mover.counter()
    yield
    done = vmkit("jobs")  # the next command, whatever it is
    assert done.returncode == 0, done.stderr
    source, target = mover.source, mover.target  # exactly one copy, and it runs
    assert records() == []
    after = mover.counter()
    assert after > before
    with Client(source) as client:
        assert client.migrations.migrate(mover.name, target, deadline=240.0).running_copies == 1
    assert mover.counter() > after


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)


@pytest.mark.parametrize("delay", [0.15, 0.5, 0.9])
def test_killed_at_the_start(mover: Mover, delay: float) -> None:
    process = mover.start_migrate("--bandwidth", "4M")
    time.sleep(delay)
    kill(process)


def test_killed_during_the_transfer(mover: Mover) -> None:
    at = mover.at
    process = mover.start_migrate("--bandwidth", "4M")
    mover.wait_for_transfer(process)
    assert [r.phase for r in records("migrate")] == ["transfer"]
    kill(process)
    done = vmkit("jobs")
    assert "was cut off; the VM is at" in done.stderr
    assert mover.at == at


def wait_for_halt(mover: Mover, at: int, process: subprocess.Popen[str]) -> bool:
    """Until the guest stands still at the source; False if it never was seen so."""
    domain = mover.hosts[at].domain(mover.name)
    while process.poll() is None:
        try:
            if domain.state() is DomainState.PAUSED:
                return True
        except Exception as e:
            del e
            return False
        time.sleep(0.002)
    return False


def test_killed_when_both_copies_stand_still(mover: Mover) -> None:
    """The hardest moment: all is sent, the source has stopped, the target has not begun."""
    at = mover.at
    for _ in range(5):
        process = mover.start_migrate()
        seen = wait_for_halt(mover, at, process)
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.0)  # libvirt finishes what it was asked; nobody asks it for more
        states = mover.states()
        kill(process)
        if seen and states == ["paused", "paused"]:
            break
        jobs()
        at = mover.at
    else:
        raise AssertionError("the moment was not hit in five attempts")
    done = vmkit("jobs")
    assert "let the guest at the source run again" in done.stderr, done.stderr
    assert mover.at == at


def test_killed_when_the_target_has_begun(mover: Mover) -> None:
    at = mover.at
    process = mover.start_migrate()
    while process.poll() is None:
        domain = find(mover.hosts[1 - at], name=mover.name)
        if domain is not None and domain.state() is DomainState.RUNNING:
            break
        time.sleep(0.002)
    kill(process)
    jobs()
    assert mover.at == 1 - at


@pytest.mark.parametrize("delay", [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
def test_killed_at_any_time(mover: Mover, delay: float) -> None:
    process = mover.start_migrate()
    time.sleep(delay)
    kill(process)


def test_the_targets_qemu_is_killed(mover: Mover, pair: Lab) -> None:
    at = mover.at
    process = mover.start_migrate("--bandwidth", "4M")
    mover.wait_for_transfer(process)
    target = pair.hosts[1 - at].name
    done = Labs().run(target, ["sh", "-c", f"kill -9 $(cat /run/libvirt/qemu/{mover.name}.pid)"])
    assert done.status == 0, done.stderr
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 4, errors
    assert "the VM runs on at" in errors
    assert mover.at == at
    assert records() == []


def test_resolve_says_what_it_found(mover: Mover) -> None:
    process = mover.start_migrate("--bandwidth", "4M")
    mover.wait_for_transfer(process)
    kill(process)
    (record,) = records("migrate")
    assert record.orphaned
    with Client(mover.uris[0]) as client:
        (job,) = client.jobs.list()
        assert (job.id, job.state) == (record.id, "orphaned")
        (line,) = client.jobs.resolve(record.id)
    assert line.startswith(f"{record.id}: a migration of victim was cut off; the VM is at ")
    assert records() == []


def test_a_target_that_cannot_be_asked(mover: Mover) -> None:
    """The entry is kept and says so, and is settled when the target can be asked."""
    process = mover.start_migrate("--bandwidth", "4M")
    mover.wait_for_transfer(process)
    kill(process)
    (record,) = records("migrate")
    with taken_over(record) as entry:
        assert entry is not None
        real = dict(entry.record.data)
        entry.record = replace(entry.record, data={**real, "target": "qemu+tcp://127.0.0.1:1/system"})
        line = recover(entry)
        assert entry.keep
        assert "does not answer" in line
        entry.record = replace(entry.record, data=real)
        entry.advance("transfer")
    assert [r.id for r in records()] == [record.id]
