"""The journal outlives the process that wrote it, and tells a dead writer from a living one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vmkit.errors import ConflictError, EffectError, IndeterminateError
from vmkit.system import journal

HOLDER = """
import sys, time
from vmkit.system.journal import journalled
with journalled("test", "web1", "begun", number=1) as entry:
    entry.advance("half-way", more=[1, 2])
    print(entry.record.id, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _in_a_home_of_its_own(home: Path) -> None:
    pass


def holder() -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().startswith("test-")
    return child


def left() -> list[str]:
    return sorted(p.name for p in (journal.home() / "jobs").iterdir())


def test_nothing_there() -> None:
    assert journal.records() == []


def test_an_entry_is_on_disk_while_its_block_runs_and_gone_after() -> None:
    with journal.journalled("migrate", "web1", "preflight", to="qemu:///system") as entry:
        entry.advance("moving", job=7)
        (found,) = journal.records()
        assert (found.kind, found.subject, found.phase) == ("migrate", "web1", "moving")
        assert found.data == {"to": "qemu:///system", "job": 7}
        assert not found.orphaned
        assert journal.records("hotfix") == []
        assert found.path.stat().st_mode & 0o077 == 0
    assert left() == []


def test_an_error_ends_the_entry_as_well() -> None:
    with pytest.raises(EffectError), journal.journalled("create", "web1", "disk"):
        raise EffectError("no")
    assert left() == []


def test_an_unknown_outcome_keeps_it() -> None:
    with pytest.raises(IndeterminateError), journal.journalled("migrate", "web1", "moving"):
        raise IndeterminateError("who knows")
    (found,) = journal.records()
    assert found.orphaned
    with journal.taken_over(found) as entry:
        assert entry is not None
        assert entry.record == found
    assert left() == []


def test_kill_9_of_the_holder_leaves_an_orphan() -> None:
    with holder() as child:
        (record,) = journal.records()
        assert not record.orphaned
        assert record.pid == child.pid
        with journal.taken_over(record) as nobody:
            assert nobody is None  # it lives
        child.send_signal(signal.SIGKILL)
        child.wait(20)
        assert record.orphaned
        (same,) = journal.records("test")
        assert (same.phase, same.data) == ("half-way", {"number": 1, "more": [1, 2]})
        with journal.taken_over(same) as entry:
            assert entry is not None
            with journal.taken_over(same) as second:
                assert second is None  # one finisher at a time
    assert journal.records() == []


def test_a_finisher_that_fails_keeps_it_for_the_next() -> None:
    with holder() as child:
        child.kill()
        child.wait(20)
    (record,) = journal.records()
    with pytest.raises(ConflictError), journal.taken_over(record):
        raise ConflictError("not now")
    assert journal.records() == [record]
    with journal.taken_over(record) as entry:
        assert entry is not None
        entry.keep = True
    assert journal.records() == [record]


def test_a_wish_to_cancel_reaches_the_holder() -> None:
    with journal.journalled("migrate", "web1", "moving") as entry:
        assert not entry.cancelled
        journal.records()[0].request_cancel()
        assert entry.cancelled
    assert left() == []


def test_a_damaged_record_is_named_and_stops_nothing(home: Path) -> None:
    from vmkit.recovery import recover_all

    folder = home / "jobs"
    folder.mkdir()
    (folder / "create-abc123.json").write_text('{"id": "create-abc')
    (folder / "create-abc124.json").write_text("[]")
    assert [r.kind for r in journal.records()] == ["damaged", "damaged"]
    lines = list(recover_all())
    assert all("cannot be read" in line and str(folder) in line for line in lines)
    assert len(lines) == 2
    assert len(list(folder.glob("*.json"))) == 2  # looked at by a person first
