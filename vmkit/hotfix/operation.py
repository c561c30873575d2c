"""One operation on a host's processes: undo record, journal, transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final

from vmkit.errors import RefusedError, VmkitError
from vmkit.hotfix import history, undo
from vmkit.hotfix.manifest import Patch
from vmkit.hotfix.plans import Action
from vmkit.hotfix.survey import Finding
from vmkit.hotfix.targets.process import ProcessImage
from vmkit.hotfix.targets.qemu import QemuImage
from vmkit.hotfix.transaction import Change, Hook, Outcome, Transaction
from vmkit.hotfix.undo import Saved
from vmkit.hotfix.verify import Span, Write, merge, writes_back, writes_for
from vmkit.progress import Finished, Note, Reporter, Started
from vmkit.system.clock import stopwatch
from vmkit.system.journal import journalled, records, taken_over
from vmkit.system.process import ProcessId

STARTING: Final = "starting"
"""Phase of a journal entry: a VM is started paused, to be patched."""
_DONE: Final = {Action.APPLY: "applied", Action.REVERT: "reverted"}
"""What the history calls it."""


def changes_for(action: Action, patch: Patch, chosen: Iterable[Finding]) -> list[Change]:
    """What to write where; a second look at each process, with whole pages.

    Raises:
        RefusedError: nobody knows any more what was there before.
    """
    remembered = undo.recall(patch.id) if action is Action.REVERT else None
    changes = []
    for finding in chosen:
        image = finding.image
        writes: tuple[Write, ...] | None
        if action is Action.APPLY:
            writes = writes_for(finding.sites, image.read)
        else:
            writes = writes_back(finding.sites, remembered.of(image.process) if remembered else ())
        if writes is None:
            raise RefusedError(
                f"nothing on this machine says what {image.label} held before patch {patch.id}",
                hint="restart the VM to be rid of the patch, or run vmkit where it was applied",
            )
        clear = tuple(Span(r.address + image.bias, r.length) for r in patch.clear)
        image.has_room()  # refuses where something else is
        changes.append(Change(image, writes, merge(writes, image.read), clear))
    return changes


def transact(
    action: Action,
    patch: Patch,
    text: str,
    uri: str,
    changes: list[Change],
    hook: Hook,
    max_pause: float,
    reporter: Reporter,
    what: str = "",
) -> Outcome:
    """Record, journal, write. Returns how it went.

    Raises: as Transaction.run.
    """
    chosen = [c.image for c in changes if isinstance(c.image, ProcessImage)]
    guests = [g for c in changes if (g := getattr(c.image, "guest", None)) and g.runs]
    files = files_of(chosen)
    hook("record")
    undo.save(patch.id, text, [_saved(action, c) for c in changes])
    hook("journal")
    with journalled(
        *("hotfix", patch.id, "writing"),
        uri=uri,
        action=action.value,
        processes=[[i.process.pid, i.process.start, i.label] for i in chosen],
        guests=[[g.name, g.uuid] for g in guests],
        files=files,
    ) as entry:
        entry.keep = True
        transaction = Transaction(f"hotfix {patch.id}", changes, guests, hook=hook, max_pause=max_pause)
        reporter(Started(action.value))
        clock = stopwatch()
        try:
            for image in chosen if action is Action.APPLY else ():
                hook("room")
                image.make_room()
            transaction.run()
        except VmkitError as e:
            history.note("failed", patch.id, uri, [i.label for i in chosen], f"{action.value}: {e.message}")
            raise
        finally:
            if not transaction.outcome.verified and transaction.outcome.clean:
                tidy(chosen)
            entry.keep = not transaction.outcome.clean
            if entry.keep and transaction.outcome.verified:
                with suppress(VmkitError):  # a full disk must not hide the error of the transaction
                    entry.advance("written")  # only guests are left to be resumed
        entry.keep = True  # until the end is noted: a crash before that undoes, one after it has nothing to do
        hook("note-written")
        # All is done and verified: a disk that is full from here on is no failure. The entry's removal needs no space,
        # and a record of what was reverted does no harm.
        noted = False
        with suppress(VmkitError):
            entry.advance("written")
            noted = True
        if noted:
            hook("tidy")
            tidy(chosen)
        hook("finish")
        remember(action, patch.id, [i.process for i in chosen], files, reporter)
        entry.keep = False
    if not noted:  # as long as the entry said that it is not done, what it is undone with had to stay
        tidy(chosen)
    if not history.note(what or _DONE[action], patch.id, uri, [i.label for i in chosen]):
        reporter(Note("it could not be written into the history of hotfixes", warning=True))
    pauses = transaction.outcome.pause_ms
    longest = f"longest pause {max(pauses.values()):.0f} ms" if pauses else "no guest ran"
    reporter(Finished(action.value, clock(), longest))
    return transaction.outcome


def files_of(images: Iterable[ProcessImage]) -> dict[str, str]:
    """For each executable that runs, by path, its build id."""
    return {i.path.removesuffix(" (deleted)"): i.binary.build_id for i in images if isinstance(i, QemuImage)}


def tidy(images: Iterable[ProcessImage]) -> None:
    """Have rooms for new code given back that are not needed; what cannot be given back now does no harm."""
    for image in images:
        with suppress(VmkitError):
            image.tidy()


def remember(
    action: Action, patch_id: str, processes: Iterable[ProcessId], files: Mapping[str, str], reporter: Reporter
) -> None:
    """Have processes that come later patched too, or not any more."""
    try:
        undo.activate(patch_id, on=action is Action.APPLY, files=files)
        if action is Action.REVERT:
            undo.forget(patch_id, processes)
    except VmkitError as e:
        reporter(Note(f"VMs that are started later are treated as before: {e.message}", warning=True))


def _saved(action: Action, change: Change) -> Saved:
    """In apply's direction, whichever way this goes."""
    image = change.image
    assert isinstance(image, ProcessImage)  # noqa: S101 - the only kind so far
    guest = getattr(image, "guest", None)
    writes = change.writes if action is Action.APPLY else tuple(w.reversed for w in change.writes)
    return Saved(image.process, guest.name if guest else image.label, writes, image.room)


def settle(reporter: Reporter) -> None:
    """Finish or undo what an earlier hotfix left when it was killed, before a new one looks at the processes."""
    from vmkit.hotfix.recovery import recover

    for record in sorted(records("hotfix"), key=lambda r: r.phase == STARTING):
        if record.orphaned:
            with taken_over(record) as entry:
                if entry is not None:
                    reporter(Note(f"{record.id}: {recover(entry, reporter)}", warning=True))
