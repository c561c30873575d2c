"""Making a backup: the job in libvirt, the files it leaves, and the moment from which it counts."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from vmkit.errors import CancelledError, EffectError, RefusedError, SpecError, VmkitError
from vmkit.hypervisor import backup as calls
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.hypervisor.host import Host
from vmkit.plan import Choice
from vmkit.progress import Advanced, Finished, Note, Reporter, Started
from vmkit.system.clock import Deadline, stopwatch
from vmkit.system.interrupts import deferred
from vmkit.system.journal import Entry, journalled
from vmkit.values import Bytes
from vmkit.vm import guest
from vmkit.vm.backup.decide import BackupFacts, Decision, backup_xml, checkpoint_xml, decide, mark_of, side_files
from vmkit.vm.backup.manifest import Backup, DiskCopy, Extent
from vmkit.vm.backup.marks import PREFIX
from vmkit.vm.backup.store import Repository
from vmkit.vm.describe import describe
from vmkit.vm.snapshot.facts import busy

LOOK_S: Final = 0.2
STOP_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A backup that was made, the decision that led to it, and the seconds that it took."""

    backup: Backup
    decision: Decision
    seconds: float


def gather(domain: Domain, repository: Repository) -> BackupFacts:
    """Look at a VM and at what there is of it. Nothing is changed."""
    state = domain.state()
    return BackupFacts(
        name=domain.name,
        uuid=domain.uuid,
        uri=domain.host.uri,
        driver=domain.host.driver,
        active=state.active,
        busy=busy(domain, state),
        disks=describe(domain.xml()).disks,
        checkpoints=tuple(calls.checkpoints(domain)),
        repository=repository.folder,
        listed=repository.listing(),
    )


def take(domain: Domain, repository: Repository, facts: BackupFacts, decision: Decision, reporter: Reporter) -> Outcome:
    """Make a backup. Where libvirt refuses an incremental one, since a mark is damaged, a full one is made.

    Raises:
        RefusedError: nothing was touched.
        EffectError: it failed; nothing is left of it, and the next one counts from the same mark as this would have.
        CancelledError: Ctrl-C or a signal came; the same.
    """
    try:
        return _attempt(domain, repository, decision, reporter)
    except _MarkUnusableError as e:
        reporter(Note(f"no incremental backup: {e.text}; a full one is made", warning=True))
        again = decide(facts, full=True)
        why = Choice("backup", Extent.FULL.value, f"the mark of the last one is of no use: {e.text}")
        again = replace(again, plan=replace(again.plan, choices=(why,)))
        return _attempt(domain, repository, again, reporter)


class _MarkUnusableError(Exception):
    """libvirt would not begin an incremental backup; nothing was touched."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def _attempt(domain: Domain, repository: Repository, decision: Decision, reporter: Reporter) -> Outcome:
    seconds = stopwatch()
    now = datetime.now(UTC)
    identity = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    mark = mark_of(repository.folder, identity)
    data: dict[str, Any] = {
        "uri": domain.host.uri,
        "uuid": domain.uuid,
        "folder": repository.folder,
        "id": identity,
        "mark": mark if decision.marks else None,
        "old": list(decision.old),
    }
    with journalled("backup", domain.name, "begin", **data) as entry, deferred() as interrupted:
        try:
            made = _steps(domain, repository, decision, entry, now, interrupted, reporter)
        except _MarkUnusableError:
            undo(domain, repository, data)
            raise
        except BaseException as e:
            try:
                with _at_hand(domain) as there:
                    undo(there, repository, data)
                left = "nothing is left of it"
            except VmkitError:
                entry.keep = True
                left = "the next vmkit command removes what is left of it"
            if by := interrupted():
                raise CancelledError(f"the backup of {domain.name} was stopped by {by}; {left}") from e
            if isinstance(e, EffectError):
                raise EffectError(e.message, left=left, hint=e.hint, details=e.details) from e
            raise
        drop_old(domain, decision.old)
    return Outcome(made, decision, seconds())


def _steps(
    domain: Domain,
    repository: Repository,
    decision: Decision,
    entry: Entry,
    now: datetime,
    interrupted: Callable[[], str | None],
    reporter: Reporter,
) -> Backup:
    data = entry.record.data
    half = partial_name(data["id"])
    free = repository.prepare(half)
    targets = {device: repository.path(half, f"{device}.qcow2") for device in decision.disks}
    mark = data["mark"]
    xml = domain.xml(inactive=True, secure=True)
    paused = domain.state() is DomainState.PAUSED
    with _held_still(domain, entry, reporter, asked=not paused) as quiet:
        entry.advance("copy")
        calls.outcome(domain)  # of an earlier job: libvirt forgets it
        try:
            calls.begin(domain, backup_xml(decision, targets), checkpoint_xml(decision, mark) if mark else None)
        except (RefusedError, EffectError, SpecError) as e:
            if decision.parent:
                raise _MarkUnusableError(e.message) from e
            raise
    _follow(domain, interrupted, reporter)
    wrong = calls.outcome(domain)
    if wrong is None:
        raise EffectError(
            f"libvirt does not say how the backup of {domain.name} ended",
            hint=f"make another: vmkit backup create {domain.name} DIR --full",
        )
    if wrong:
        full = "No space" in wrong
        raise EffectError(
            f"backup of {domain.name}: {wrong}",
            hint=f"{Bytes(free)} were free: df -h {repository.folder}" if full else None,
        )
    entry.advance("check")
    reporter(Started("check", repository.folder))
    watch = stopwatch()
    disks = []
    for device, file in targets.items():
        if decision.parent:
            repository.rest_upon(file, f"../{decision.parent.id}/{device}.qcow2")
        seen = repository.measure(file)
        disks.append(DiskCopy(device, f"{device}.qcow2", seen.capacity, seen.size, seen.sha256))
    side = tuple(repository.keep(role, path) for role, path in side_files(xml))
    reporter(Finished("check", watch(), repository.folder))
    if interrupted():
        raise CancelledError("stopped")
    made = Backup(
        id=data["id"],
        vm=domain.name,
        uuid=domain.uuid,
        created=now.isoformat(timespec="seconds"),
        extent=decision.extent,
        parent=decision.parent.id if decision.parent else None,
        mark=mark,
        consistency="paused" if paused else ("filesystem" if quiet else "crash"),
        disks=tuple(disks),
        side=side,
        xml=xml,
    )
    entry.advance("commit")
    repository.commit(half, made)
    return made


@contextlib.contextmanager
def _at_hand(domain: Domain) -> Iterator[Domain]:
    """The domain, over a new connection if the old one is gone: Ctrl-C also ends the ssh below a connection."""
    if domain.host.alive:
        yield domain
        return
    with Host.connect(domain.host.uri) as again:
        yield again.domain(domain.uuid)


def partial_name(identity: str) -> str:
    """Folder of a backup that has not come to its end."""
    return f".partial-{identity}"


def undo(domain: Domain | None, repository: Repository, data: dict[str, Any]) -> list[str]:
    """Remove what a backup that did not come to its end has made; returns what it removed.

    Its mark goes too: libvirt adds what it counted to the mark before, so that nothing is missing from the next
    incremental backup. Of a VM that is off it stays, which is no harm: libvirt adds both up then.
    """
    removed = []
    if domain is not None and domain.state().active:
        if _is_ours(domain, repository, data["id"]):
            domain.abort_job()
            Deadline(STOP_PATIENCE_S).wait_for(
                f"the backup job of {domain.name} did not stop", lambda: calls.running(domain) is None
            )
            removed.append("its job")
        if data["mark"] and data["mark"] in calls.checkpoints(domain) and calls.delete_checkpoint(domain, data["mark"]):
            removed.append("its mark")
    half = partial_name(data["id"])
    if repository.exists(half):
        repository.remove(half)
        removed.append("its half files")
    return removed


def drop_old(domain: Domain, marks: tuple[str, ...] | list[str]) -> None:
    """Delete checkpoints that no backup counts from any more, and bitmaps that a migration left without theirs.

    That they stay costs a little time, and nothing else.
    """
    with contextlib.suppress(VmkitError):
        if not domain.state().active:
            return
        there = calls.checkpoints(domain)
        for mark in there:
            if mark in marks:
                calls.delete_checkpoint(domain, mark)
        for name in calls.bitmaps(domain):
            if name.startswith(PREFIX) and name not in there:
                calls.remove_bitmap(domain, name)


def _is_ours(domain: Domain, repository: Repository, identity: str) -> bool:
    running = calls.running(domain)
    return running is not None and repository.path(partial_name(identity)) in running


@contextlib.contextmanager
def _held_still(domain: Domain, entry: Entry, reporter: Reporter, *, asked: bool) -> Iterator[bool]:
    """Have the guest hold its file systems still while the block runs, if its agent answers; yields whether it does."""
    if not asked or not guest.answers(domain):
        yield False
        return
    entry.advance("freeze")
    quiet = False
    try:
        calls.freeze(domain)
        quiet = True
    except VmkitError as e:
        reporter(Note(f"the guest does not hold its file systems still: {e.message}", warning=True))
    try:
        yield quiet
    finally:
        with contextlib.suppress(VmkitError):
            calls.thaw(domain)


def _follow(domain: Domain, interrupted: Callable[[], str | None], reporter: Reporter) -> None:
    """Tell how far the job is until it has ended; a wish to stop ends it."""
    import time

    reporter(Started("copy", domain.name))
    watch = stopwatch()
    done = 0
    while calls.running(domain) is not None:
        if by := interrupted():
            raise CancelledError(f"stopped by {by}")
        job = domain.job()
        if job is not None and (total := job.raw.get("disk_total", 0)):
            done = job.raw.get("disk_processed", 0)
            reporter(Advanced("copy", float(done), float(total), str(Bytes(done))))
        time.sleep(LOOK_S)
    reporter(Finished("copy", watch(), domain.name))
