"""Long operations of this machine, of whatever process: seeing them, and ending them from another terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from vmkit.errors import ConflictError, NotFoundError, RefusedError, UnsupportedError, VmkitError
from vmkit.migrate import recovery
from vmkit.migrate.settle import bounded
from vmkit.progress import Reporter, silent
from vmkit.system.journal import Record, records, taken_over
from vmkit.values import Bytes, quoted

_ASK_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a transfer is; bytes, and bytes a second. Disks that are copied go before the memory."""

    sent: int
    remaining: int
    rounds: int
    dirty_rate: int
    bandwidth: int
    elapsed_ms: int
    disk_sent: int = 0
    disk_remaining: int = 0

    def __str__(self) -> str:
        if not self.sent and self.disk_sent + self.disk_remaining:
            return f"{Bytes(self.disk_sent)} of disks sent, {Bytes(self.disk_remaining)} to go"
        return f"{Bytes(self.sent)} sent, {Bytes(self.remaining)} to go, round {self.rounds}"


@dataclass(frozen=True, slots=True)
class Job:
    """One operation.

    Attributes:
        id: its number in the journal.
        kind: 'migrate', 'hotfix', 'create', 'lab', 'image'.
        subject: the VM, image or patch it is about.
        phase: how far it is.
        state: 'running'; 'cancelling' once someone asked for its end; 'orphaned' if its process is gone.
        pid: the process that carries it out.
        started: UTC, ISO 8601.
        progress: of a migration whose source answers; None otherwise.
        detail: the same as text, for a table.
        source, target: URIs, for a migration.
    """

    id: str
    kind: str
    subject: str
    phase: str
    state: str
    pid: int
    started: str
    progress: JobProgress | None
    detail: str
    source: str | None
    target: str | None


def settle_migration(record: Record, reporter: Reporter = silent) -> str | None:
    """Finish or undo a migration that was cut off; None if another process was faster or it is of another kind."""
    if record.kind != "migrate":
        return None
    with taken_over(record) as entry:
        return None if entry is None else recovery.recover(entry, reporter)


class Jobs:
    """The journal of this machine.

    Args:
        recover: finishes or undoes an operation of any kind whose process is gone, and says in a line what it did.
    """

    def __init__(self, recover: Callable[[Record, Reporter], str | None] = settle_migration) -> None:
        self._recover = recover

    def list(self) -> list[Job]:
        """Every operation that runs or was cut off, oldest first; for migrations with how far they are."""
        return [_job(r) for r in records()]

    def cancel(self, what: str) -> Job:
        """Ask a running operation to end, and return it as it was.

        For a migration libvirt is told as well, so that it ends even where the process that steers it does not look.

        Args:
            what: the operation's id, or the name of the VM.

        Raises:
            NotFoundError: there is no such operation.
            ConflictError: several operations go by that name, or its process is gone.
            UnsupportedError: operations of this kind cannot be cancelled.
        """
        record = _find(what)
        job = _job(record)
        if record.kind != "migrate":
            raise UnsupportedError(
                f"{record.id}: an operation of the kind '{record.kind}' cannot be cancelled from here",
                hint=f"press Ctrl-C in its terminal, or: kill {record.pid}",
            )
        if job.state == "orphaned":
            raise ConflictError(f"{record.id}: its process is gone", hint="bring it in order: vmkit jobs resolve")
        if record.phase == "post-copy":
            raise RefusedError(
                f"{record.id}: the VM runs at the target, and a part of its memory still follows: too late to cancel",
                hint="see: vmkit jobs",
            )
        if record.phase in ("verify", "cleanup"):
            raise RefusedError(f"{record.id}: the VM has arrived, and it is too late to cancel", hint="see: vmkit jobs")
        record.request_cancel()
        with contextlib.suppress(VmkitError):  # the mark is set: its own process ends it at its next look
            _abort(record)
        return job

    def resolve(self, job_id: str | None = None, reporter: Reporter = silent) -> Sequence[str]:
        """Finish or undo the operations whose process is gone (or the one named); returns a line about each.

        An operation of which it cannot be told what became stays in the journal, and its line says what to look at.

        Raises:
            NotFoundError: there is no operation of that id.
            ConflictError: its process still runs.
        """
        chosen = [_find(job_id)] if job_id else [r for r in records() if r.orphaned]
        if job_id and not chosen[0].orphaned:
            raise ConflictError(f"{chosen[0].id} is still running", hint=f"end it: vmkit jobs cancel {chosen[0].id}")
        return [line for r in chosen if (line := self._recover(r, reporter))]


def _find(what: str) -> Record:
    everything = records()
    found = [r for r in everything if r.id == what] or [r for r in everything if r.subject == what]
    if not found:
        raise NotFoundError(f"no operation {quoted(what)} is going on", hint="see what there is: vmkit jobs")
    if len(found) > 1:
        ids = ", ".join(r.id for r in found)
        raise ConflictError(f"several operations are about {quoted(what)}: {ids}", hint="name one by its id")
    return found[0]


def _job(record: Record) -> Job:
    state = "orphaned" if record.orphaned else "cancelling" if record.cancelled else "running"
    progress = None
    if record.kind == "migrate" and record.phase in ("transfer", "post-copy"):
        with contextlib.suppress(VmkitError):
            progress = _progress(record)
    return Job(
        id=record.id,
        kind=record.kind,
        subject=record.subject,
        phase=record.phase,
        state=state,
        pid=record.pid,
        started=record.started,
        progress=progress,
        detail="" if progress is None else str(progress),
        source=record.data.get("source"),
        target=record.data.get("target"),
    )


def _progress(record: Record) -> JobProgress | None:
    from vmkit.hypervisor.host import Host
    from vmkit.hypervisor.migration import find

    with bounded(lambda: Host.connect(record.data["source"]), _ASK_S, record.data["source"]) as host:
        domain = find(host, uuid=record.data["uuid"])
        stats = None if domain is None else domain.job()
        disks = [int(stats.raw.get(f"disk_{what}", 0)) for what in ("processed", "remaining")] if stats else [0, 0]
        if stats is None or not (stats.total or sum(disks)):
            return None
        memory = (stats.processed, stats.remaining, stats.iteration, stats.dirty_rate, stats.bandwidth)
        return JobProgress(*memory, stats.elapsed_ms, *disks)


def _abort(record: Record) -> None:
    from vmkit.hypervisor.host import Host
    from vmkit.hypervisor.migration import find, sight

    if record.phase != "transfer":
        return
    with bounded(lambda: Host.connect(record.data["source"]), _ASK_S, record.data["source"]) as host:
        domain = find(host, uuid=record.data["uuid"])
        seen = None if domain is None else sight(domain)
        if domain is not None and seen is not None and seen.migrating:
            domain.abort_job()
