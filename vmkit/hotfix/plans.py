"""What to do about what was found: which processes to write to, or why to refuse. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from vmkit.errors import ConflictError, NotFoundError, RefusedError
from vmkit.hotfix.manifest import Patch
from vmkit.hotfix.survey import Finding, Survey
from vmkit.hotfix.verify import State, check_build
from vmkit.plan import Choice, Plan, Step

LATER = "VMs that others than vmkit start later are patched where vmkit hotfix watch runs: the file does not change"


class Action(enum.Enum):
    """Which way."""

    APPLY = "apply"
    REVERT = "revert"


def decide(action: Action, patch: Patch, found: Survey) -> tuple[Finding, ...]:
    """The processes to write to; () if all are as wanted already. All or nothing: one that does not fit refuses all.

    Raises:
        RefusedError: a running domain's process cannot be told or is being moved, is of another build (apply only: it
            cannot carry the patch, so for revert it does not matter), or holds other bytes; or nothing runs.
    """
    if found.lost:
        first = found.lost[0].error
        others = tuple(x.error.message for x in found.lost[1:])
        raise type(first)(first.message, hint=first.hint, details=others)
    if not found.findings and action is Action.APPLY:
        raise NotFoundError(f"no VM runs on {found.uri}: there is no process to patch", hint="start one: vmkit list")
    other = [f for f in found.findings if f.state is State.OTHER]
    if action is Action.APPLY:
        for finding in found.findings:
            check_build(patch, finding.image.binary.build_id, finding.image.label)
    if other:
        raise RefusedError(
            f"{other[0].image.label} does not hold what patch {patch.id} expects: {other[0].detail}",
            hint="another patch, or another program, has changed it: vmkit hotfix status",
            details=tuple(f"{f.image.label}: {f.detail}" for f in other[1:]),
        )
    wanted = State.ORIGINAL if action is Action.APPLY else State.REPLACED
    return tuple(f for f in found.findings if f.state is wanted)


def refuse_other_edition(patch: Patch, recorded: Patch, carriers: Sequence[str]) -> None:
    """Raise ConflictError if a different patch of the same id is in some process: its undo record must not be lost."""
    if carriers and recorded != patch:
        raise ConflictError(
            f"another edition of patch {patch.id} is in {carriers[0]}",
            hint=f"revert it first: vmkit hotfix revert {patch.id}",
            details=tuple(carriers[1:]),
        )


def plan_for(action: Action, patch: Patch, found: Survey, chosen: tuple[Finding, ...]) -> Plan:
    """The plan as a person reads it."""
    choices = tuple(
        Choice(f.image.guest.name, f"process {f.image.process.pid}", _because(f, f in chosen)) for f in found.findings
    )
    if not chosen:
        already = "patched" if action is Action.APPLY else "unpatched"
        return Plan(f"{action.value} {patch.id}: nothing to do, every process is {already} already", choices)
    pausing = [f.image.guest.name for f in chosen if f.image.guest.runs]
    writes = [
        Step(
            "write",
            f"{len(s.edit.replacement)} bytes at {s.start:#x} of process {f.image.process.pid}",
            f"{s.path} ({s.edit.place}+{s.edit.offset:#x}): {s.edit.overwritten} -> {s.edit.replacement.hex(' ')}"
            if action is Action.APPLY
            else f"{s.path}: back to what was there before",
        )
        for f in chosen
        for s in f.sites
    ]
    pids = ", ".join(str(f.image.process.pid) for f in chosen)
    steps = (
        Step("record", f"undo record of {patch.id}", "the old bytes have to be on disk before the first write"),
        *(
            (Step("room", f"{patch.room.length} bytes in process {pids}", "for new code"),)
            * bool(action is Action.APPLY)
            if patch.room
            else ()
        ),
        *(
            (Step("pause", ", ".join(pausing), "its vCPUs must not run half of an old and half of a new routine"),)
            * bool(pausing)
        ),
        Step("hold", f"all threads of process {pids}", "QEMU's own threads run on while a guest is paused"),
        Step("compare", "the touched pages", "nothing may have changed since this plan"),
        *writes,
        Step("read back", "the touched pages", "else the old bytes go back everywhere"),
        *((Step("resume", ", ".join(pausing), "only those that were paused for this"),) * bool(pausing)),
    )
    warnings = (LATER,) if action is Action.APPLY else ()
    return Plan(f"{action.value} {patch.id}: {patch.title}", choices, steps, warnings)


def _because(finding: Finding, chosen: bool) -> str:
    match finding.state:
        case State.ORIGINAL:
            return "holds the original bytes" + (": to be patched" if chosen else "")
        case State.REPLACED:
            return "holds the replacement" + (": to be reverted" if chosen else ": patched already")
    return finding.detail
