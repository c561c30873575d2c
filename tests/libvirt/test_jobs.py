"""The journal as `vmkit jobs` shows it, and migrations as far as libvirt's test driver goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmkit.cli.main import cli
from vmkit.client import Client
from vmkit.errors import ConflictError, NotFoundError, RefusedError, SpecError, UnsupportedError, VmkitError
from vmkit.hypervisor.domain import DomainState
from vmkit.migrate.jobs import Jobs
from vmkit.migrate.preflight import Level
from vmkit.system import journal
from vmkit.system.files import ensure_dir

TEST = "test:///default"
MIGRATION = {"uuid": "6695eb01-f6a4-8304-79aa-97f2502e193f", "source": TEST, "target": TEST}


def orphan(kind: str, subject: str, phase: str, **data: object) -> journal.Record:
    """The entry of a process that was killed: on disk, and held by nobody."""
    record = journal.Record(f"{kind}-00beef", kind, subject, 1, "2026-01-02T03:04:05.000+00:00", phase, data)
    ensure_dir(record.path.parent)
    body = {f: getattr(record, f) for f in ("id", "kind", "subject", "pid", "started", "phase", "data")}
    record.path.write_text(json.dumps(body))
    return record


def test_nothing_goes_on(home: Path) -> None:
    assert list(Jobs().list()) == []
    assert list(Jobs().resolve()) == []


def test_operations_of_every_kind_are_listed(home: Path) -> None:
    with (
        journal.journalled("create", "web1", "disks") as first,
        journal.journalled("migrate", "test", "transfer", **MIGRATION) as second,
    ):
        one, two = Jobs().list()
        assert (one.id, one.kind, one.subject, one.phase, one.state) == (
            first.record.id,
            "create",
            "web1",
            "disks",
            "running",
        )
        assert (two.source, two.target, two.progress) == (TEST, TEST, None)  # the test driver has no job statistics
        second.record.request_cancel()
        assert Jobs().list()[1].state == "cancelling"
    assert list(Jobs().list()) == []


def test_cancel_marks_a_migration(home: Path) -> None:
    with journal.journalled("migrate", "test", "transfer", **MIGRATION) as entry:
        assert not entry.cancelled
        assert Jobs().cancel("test").id == entry.record.id
        assert entry.cancelled
        entry.advance("verify")
        with pytest.raises(RefusedError, match="too late"):
            Jobs().cancel(entry.record.id)


def test_what_cannot_be_cancelled(home: Path) -> None:
    with pytest.raises(NotFoundError, match="'web1'"):
        Jobs().cancel("web1")
    with journal.journalled("create", "web1", "disks") as entry, pytest.raises(UnsupportedError, match="'create'"):
        Jobs().cancel(entry.record.id)
    with (
        journal.journalled("migrate", "web1", "transfer"),
        journal.journalled("migrate", "web1", "transfer"),
        pytest.raises(ConflictError, match="several"),
    ):
        Jobs().cancel("web1")
    record = orphan("migrate", "web2", "transfer", **MIGRATION)
    with pytest.raises(ConflictError, match="its process is gone"):
        Jobs().cancel(record.id)


def test_a_migration_that_had_not_begun_is_settled_without_asking_anyone(home: Path) -> None:
    record = orphan("migrate", "web1", "preflight", uuid="x", source="qemu+tcp://127.0.0.1:1/system", target="y")
    assert [j.state for j in Jobs().list()] == ["orphaned"]
    assert list(Jobs().resolve()) == ["a migration of web1 was cut off before it touched anything"]
    assert not record.path.exists()


def test_two_copies_are_never_acted_upon(home: Path) -> None:
    """Source and target are the same driver here, so both say it runs: the one thing that is never acted upon."""
    record = orphan("migrate", "test", "transfer", **MIGRATION)
    with Client(TEST) as client:
        (line,) = client.jobs.resolve(record.id)
        assert "is not known: it is running at the source and running at the target" in line
        assert record.path.exists()
        assert client.host.domain("test").state() is DomainState.RUNNING


def test_a_host_that_does_not_answer_leaves_the_entry(home: Path) -> None:
    data = {**MIGRATION, "target": "qemu+tcp://127.0.0.1:1/system"}
    record = orphan("migrate", "test", "transfer", **data)
    (line,) = Jobs().resolve()
    assert "the target does not answer; at the source it is running" in line
    assert record.path.exists()


def test_resolve_refuses_what_still_runs(home: Path) -> None:
    with (
        journal.journalled("migrate", "web1", "transfer") as entry,
        pytest.raises(ConflictError, match="still running"),
    ):
        Jobs().resolve(entry.record.id)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c: c.migrations.migrate("test", "nonsense"), SpecError),
        (lambda c: c.migrations.migrate("nobody", TEST), NotFoundError),
        (lambda c: c.migrations.migrate("test", TEST), RefusedError),
        (lambda c: c.migrations.migrate("test", TEST, deadline=-1.0), SpecError),
        (lambda c: c.migrations.migrate("test", TEST, probe="127.0.0.1:0"), SpecError),
    ],
)
def test_wrong_input(home: Path, call: Callable[[Client], object], error: type[VmkitError]) -> None:
    with Client(TEST) as client, pytest.raises(error):
        call(client)
    assert journal.records() == []


def test_preflight_of_the_test_driver(home: Path) -> None:
    with Client(TEST) as client:
        report = client.migrations.preflight("test", TEST)
        assert any(f.check == "name" and f.level is Level.REFUSED for f in report.findings)
        plan = client.migrations.plan("test", TEST)
        assert any(w.startswith("refused: ") for w in plan.warnings)


def run(*argv: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, argv, standalone_mode=False)
    code = getattr(result.exception, "exit_code", result.exit_code)
    return code, result.output


def test_command_line(home: Path) -> None:
    with journal.journalled("migrate", "test", "transfer", **MIGRATION) as entry:
        code, out = run("jobs", "-o", "json")
        assert code == 0
        (row,) = json.loads(out)
        assert (row["id"], row["phase"]) == (entry.record.id, "transfer")
        assert run("jobs", "list", "-o", "name") == (0, f"{entry.record.id}\n")
        assert run("jobs", "cancel", "test")[0] == 0
        assert entry.cancelled
    assert run("jobs", "cancel", "test")[0] == 3
    assert run("jobs", "resolve")[0] == 0
    assert run("-c", TEST, "migrate", "test", "--to", "nonsense")[0] == 2
    assert run("-c", TEST, "migrate", "test", "--to", TEST, "--bandwidth", "fast")[0] == 2
    assert run("-c", TEST, "migrate", "test", "--to", TEST)[0] == 3
