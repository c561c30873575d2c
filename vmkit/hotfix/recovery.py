"""Undoing a hotfix whose process was killed, and resuming the guests that it had paused.

Memory decides, not the journal: the journal and the undo record say where to look. Unless the journal says that all was
written and verified, the bytes go back to what they were before the operation began, in every process that still lives.
That is done with the threads held still; whether the guest is paused at that moment makes no difference to it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from vmkit.errors import IndeterminateError, NotFoundError, VmkitError
from vmkit.hotfix import history, undo
from vmkit.hotfix.newcomers import START, patch_all
from vmkit.hotfix.operation import remember, tidy
from vmkit.hotfix.plans import Action
from vmkit.hotfix.targets.process import ProcessImage
from vmkit.hotfix.targets.qemu import needs_resume
from vmkit.hotfix.verify import Write, spans_of
from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter, silent
from vmkit.system.journal import Entry
from vmkit.system.process import ProcessId

LOCK_SECONDS: Final = 10.0
SECOND_LOOK_SECONDS: Final = 0.5
"""libvirtd may still be pausing a guest for the call that the killed process made: look again after that time."""


def recover(entry: Entry, reporter: Reporter = silent) -> str:
    """Put things right after a kill; one line that says what was found and done.

    The entry is kept, for the next command to try again, if the host does not answer or a guest cannot be resumed.

    Raises:
        IndeterminateError: a process holds bytes that are neither old nor new, or the undo record is gone; the guests
            were resumed all the same.
        ConflictError: another hotfix is being applied on this machine.
    """
    data = entry.record.data
    action = data["action"]
    if action == START:
        return _finish_start(entry)
    if "kernel" in data:
        from vmkit.hotfix.kernel.recovery import recover as recover_kernel

        return recover_kernel(entry)
    with undo.one_at_a_time(LOCK_SECONDS):
        trouble: VmkitError | None = None
        restored = 0
        if entry.record.phase != "written":
            try:
                restored = _restore(entry.record.subject, action, data["processes"])
            except VmkitError as e:
                trouble = e
        else:
            _tidy(entry.record.subject, data["processes"])
            remember(
                Action(action), entry.record.subject, _identities(data["processes"]), data.get("files", {}), reporter
            )
        resumed, left = resume_all(data["uri"], data["guests"])
        line = trouble.message if trouble else _line(entry, restored, resumed, left)
        history.note("repaired", entry.record.subject, data["uri"], [p[2] for p in data["processes"]], line)
    if trouble is not None:
        raise IndeterminateError(
            f"{action} of patch {entry.record.subject} was cut off: {trouble.message}",
            hint=trouble.hint or "look at it: vmkit hotfix status; restarting the VM gives it fresh code",
        ) from trouble
    entry.keep = bool(left)
    return line


def _identities(processes: Sequence[tuple[int, int, str]]) -> list[ProcessId]:
    return [ProcessId(pid, start) for pid, start, _ in processes]


def _finish_start(entry: Entry) -> str:
    """A VM that was started paused, to be patched, is patched now and runs.

    Raises:
        VmkitError: it cannot be patched; it stays paused and the entry is kept.
    """
    ((name, uuid),) = entry.record.data["guests"]
    with undo.one_at_a_time(LOCK_SECONDS):
        try:
            host = Host.connect(entry.record.data["uri"])
        except VmkitError as e:
            entry.keep = True
            return f"the start of {name} was cut off, and it may be paused: {e.message}"
        with host:
            try:
                domain = host.domain(uuid)
            except NotFoundError:
                return f"the start of {name} was cut off; it is not there any more"
            if not needs_resume(domain):
                return f"the start of {name} was cut off; it is {domain.state().value}"
            done = patch_all(domain, frozenset(), "patched at start")
            domain.resume()
    return f"the start of {name} was cut off; {', '.join(done) or 'no patch'} was put into it, and it runs"


def _line(entry: Entry, restored: int, resumed: Sequence[str], left: Sequence[str]) -> str:
    data, patch = entry.record.data, entry.record.subject
    parts = [f"{data['action']} of patch {patch} was cut off"]
    if entry.record.phase == "written":
        parts.append("every byte had been written and verified")
    elif restored:
        parts.append(f"put back what was there before in {restored} of {len(data['processes'])} processes")
    else:
        parts.append("no process was changed")
    parts.append(f"resumed {', '.join(resumed)}" if resumed else "no guest was left paused by it" if not left else "")
    if left:
        parts.append(f"kept for the next command: {'; '.join(left)}")
    return "; ".join(p for p in parts if p)


def _restore(patch_id: str, action: str, processes: Sequence[tuple[int, int, str]]) -> int:
    """Bring every process back to before the operation; the number of those where that changed something.

    All are tried before the first error is raised.
    """
    remembered = undo.recall(patch_id)
    restored = 0
    errors: list[VmkitError] = []
    for pid, start, label in processes:
        process = ProcessId(pid, start)
        if not process.alive():
            continue
        writes = remembered.of(process) if remembered else ()
        if remembered is None or not writes:
            errors.append(IndeterminateError(f"there is no undo record for {label}"))
            continue
        goal = tuple(w.reversed for w in writes) if action == "apply" else writes
        try:
            with ProcessImage(process, label, remembered.room_of(process)) as image:
                restored += _restore_one(image, goal)
                tidy([image])
        except NotFoundError:
            continue  # it ended meanwhile
        except VmkitError as e:
            errors.append(e)
    if errors:
        raise errors[0]
    return restored


def _tidy(patch_id: str, processes: Sequence[tuple[int, int, str]]) -> None:
    """Give back what a revert left mapped."""
    remembered = undo.recall(patch_id)
    for pid, start, label in processes:
        if remembered is None:
            return
        with (
            suppress(VmkitError),
            ProcessImage(ProcessId(pid, start), label, remembered.room_of(ProcessId(pid, start))) as image,
        ):
            image.tidy()


def _restore_one(image: ProcessImage, goal: Sequence[Write]) -> bool:
    if all(image.read(w.address, len(w.new)) == w.new for w in goal):
        return False
    with image.still(spans_of(goal), LOCK_SECONDS):
        for write in goal:
            found = image.read(write.address, len(write.new))
            # A write across a page boundary can be cut in two, so each byte by itself is old or new.
            if any(b not in pair for b, *pair in zip(found, write.old, write.new, strict=True)):
                raise IndeterminateError(
                    f"{image.label} holds {found.hex(' ')} at {write.address:#x}, neither {write.old.hex(' ')} nor "
                    f"{write.new.hex(' ')}"
                )
        for write in goal:
            image.write(write.address, write.new)
        for write in goal:
            if image.read(write.address, len(write.new)) != write.new:
                raise IndeterminateError(f"{image.label} does not hold what was put back at {write.address:#x}")
    return True


def resume_all(uri: str, guests: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Resume those of the guests that stand paused; names of the resumed, and what could not be done."""
    if not guests:
        return [], []
    resumed: dict[str, None] = {}
    left: dict[str, str] = {}
    try:
        with Host.connect(uri) as host:
            for look in range(2):
                if look:
                    time.sleep(SECOND_LOOK_SECONDS)
                for name, uuid in guests:
                    left.pop(name, None)
                    try:
                        domain = host.domain(uuid)
                        if needs_resume(domain):
                            domain.resume()
                            resumed[name] = None
                    except NotFoundError:
                        continue
                    except VmkitError as e:
                        left[name] = f"{name} is not resumed: {e.message}"
    except VmkitError as e:
        return list(resumed), [f"{', '.join(n for n, _ in guests)} may be paused: {e.message}"]
    return list(resumed), list(left.values())
