"""Snapshots and saved memory on libvirt's test driver: calls, records, what a killed run leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmkit.cli.main import cli
from vmkit.client import Client
from vmkit.errors import ConflictError, NotFoundError, UnsupportedError
from vmkit.progress import Event, Finished, Started
from vmkit.system import journal
from vmkit.vm.snapshot import recovery

URI = "test:///default"


@pytest.fixture
def client(home: Path) -> Iterator[Client]:
    with Client(URI) as client:
        yield client


def test_a_tree_of_snapshots(client: Client) -> None:
    seen: list[Event] = []
    snapshots = client.snapshots
    first = snapshots.create("test", "a", description="before the upgrade", reporter=seen.append)
    assert (first.snapshot.name, first.snapshot.memory, first.snapshot.state) == ("a", True, "running")
    assert [type(e) for e in seen] == [Started, Finished]
    assert snapshots.create("test").snapshot.name == "snap1"
    client.vms.get("test").pause()
    assert snapshots.create("test").snapshot.state == "paused"
    back = snapshots.revert("test", "a")
    assert back.state == "running"
    assert back.verified
    snapshots.create("test", "b")
    parents = {s.name: s.parent for s in snapshots.list("test")}
    assert parents == {"a": None, "b": "a", "snap1": "a", "snap2": "snap1"}
    assert sum("(now)" in line for line in snapshots.tree("test")) == 1
    assert snapshots.delete("test", ["snap1"], children=True) == ("snap2", "snap1")
    assert [s.name for s in snapshots.list("test")] == ["a", "b"]
    assert snapshots.delete("test", ["a"]) == ("a",)
    assert [(s.name, s.parent) for s in snapshots.list("test")] == [("b", None)]
    assert journal.records() == []


def test_what_is_refused_touches_nothing(client: Client) -> None:
    snapshots = client.snapshots
    snapshots.create("test", "a")
    with pytest.raises(ConflictError, match="has a snapshot 'a'"):
        snapshots.create("test", "a")
    with pytest.raises(NotFoundError, match="no snapshot 'b'"):
        snapshots.revert("test", "b")
    with pytest.raises(NotFoundError, match="no VM named"):
        snapshots.list("nobody")
    with pytest.raises(UnsupportedError, match="makes no backups"):
        client.backups.plan_create("test", "/nowhere")
    assert [s.name for s in snapshots.list("test")] == ["a"]
    assert journal.records() == []


def test_save_and_restore(client: Client) -> None:
    snapshots, vm = client.snapshots, client.vms.get("test")
    assert snapshots.save("test") >= 0
    assert vm.state.value == "shut off"
    with pytest.raises(ConflictError, match="is saved already"):
        snapshots.save("test")
    with pytest.raises(ConflictError, match="has saved memory"):
        snapshots.create("test")
    snapshots.restore("test")
    assert vm.state.value == "running"
    with pytest.raises(ConflictError, match="is running"):
        snapshots.restore("test")
    snapshots.save("test")
    assert snapshots.drop_saved("test") is True
    assert snapshots.drop_saved("test") is False
    with pytest.raises(ConflictError, match="no memory of it is saved"):
        snapshots.restore("test")


def test_commands(home: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(cli, ["-c", URI, "snapshot", "create", "test", "x", "--plan"])
    assert done.exit_code == 0, done.output
    assert "internal" in done.output
    done = runner.invoke(cli, ["-c", URI, "snapshot", "create", "test", "x"])
    assert done.output.startswith("test: x, disks and memory, internal (")
    done = runner.invoke(cli, ["-c", URI, "snapshot", "list", "test", "--tree"])
    assert done.output == "(now)\n"  # the test driver forgets all at the end of each run
    done = runner.invoke(cli, ["-c", URI, "save", "test"])
    assert done.output.startswith("test: saved, ")
    done = runner.invoke(cli, ["-c", URI, "save", "--drop", "test"])
    assert done.output == "test: has no saved memory\n"


@pytest.mark.parametrize(
    ("what", "phase", "data", "said"),
    [
        ("take", "begin", {"snapshot": "s", "files": [], "ran": True}, "nothing is left of the snapshot"),
        ("revert", "begin", {"snapshot": "s", "run": 1}, "before the VM was touched"),
        ("delete", "begin", {"snapshot": "s", "names": ["s"]}, "all are deleted now"),
        ("save", "save", {"ran": True}, "it is running"),
    ],
)
def test_a_killed_run_is_settled(
    client: Client, monkeypatch: pytest.MonkeyPatch, what: str, phase: str, data: dict[str, object], said: str
) -> None:
    monkeypatch.setattr(recovery, "SETTLE_S", 0.0)
    domain = client.host.domain("test")
    with journal.journalled("snapshot", "test", phase, uri=URI, uuid=domain.uuid, what=what, **data) as entry:
        entry.keep = True
    record = journal.records("snapshot")[0]
    assert record.orphaned
    with journal.taken_over(record) as taken:
        assert taken is not None
        assert said in recovery.recover(taken, lambda e: None)
    assert journal.records() == []
    assert client.vms.get("test").state.value == "running"
