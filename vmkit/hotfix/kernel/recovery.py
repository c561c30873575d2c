"""Putting things right after a hotfix of the kernel was killed: it is taken out, unless all was done and verified."""

from __future__ import annotations

from vmkit.errors import IndeterminateError, VmkitError
from vmkit.hotfix import history, manifest, undo
from vmkit.hotfix.kernel.image import take_out
from vmkit.hotfix.recovery import LOCK_SECONDS, resume_all
from vmkit.system.boot import boot_id
from vmkit.system.journal import Entry
from vmkit.system.livepatch import LiveKernel


def recover(entry: Entry, kernel: LiveKernel | None = None) -> str:
    """One line that says what was found and done.

    What was to be applied is taken out; what was to be reverted is so; what was applied and verified stays.
    The entry is kept, for the next command to try again, if a guest cannot be resumed.

    Raises:
        IndeterminateError: the livepatch cannot be taken out; the guests were resumed all the same.
        ConflictError: another hotfix is being applied on this machine.
    """
    data, patch_id = entry.record.data, entry.record.subject
    done = entry.record.phase == "written"
    with undo.one_at_a_time(LOCK_SECONDS):
        resumed, left = resume_all(data["uri"], data["guests"])
        trouble: VmkitError | None = None
        try:
            line = _settle(patch_id, data, kernel or LiveKernel(), done=done)
        except VmkitError as e:
            trouble, line = e, e.message
        parts = [f"{data['action']} of patch {patch_id} was cut off", line]
        parts.append(
            f"resumed {', '.join(resumed)}" if resumed else "no guest was left paused by it" if not left else ""
        )
        parts.append(f"kept for the next command: {'; '.join(left)}" if left else "")
        text = "; ".join(p for p in parts if p)
        history.note("repaired", patch_id, data["uri"], [data["kernel"]["label"]], text)
    if trouble is not None:
        raise IndeterminateError(text, hint=trouble.hint or "look at it: vmkit hotfix status", details=trouble.details)
    entry.keep = bool(left)
    return text


def _settle(patch_id: str, data: dict[str, object], kernel: LiveKernel, *, done: bool) -> str:
    applied = data["action"] == "apply"
    found = data["kernel"]
    boot = found["boot"] if isinstance(found, dict) else ""
    if boot != boot_id():
        undo.carried(patch_id, "")
        return "the machine has booted since, and the kernel is as it was"
    if done and applied:
        undo.carried(patch_id, boot)
        return "all had been done and verified"
    remembered = undo.recall(patch_id)
    if remembered is None:
        raise IndeterminateError(f"there is no record of patch {patch_id}")
    changed = take_out(kernel, manifest.parse(remembered.text))
    undo.carried(patch_id, "")
    return "the livepatch was taken out" if changed else "the kernel carries no livepatch of it"
