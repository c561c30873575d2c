"""Whether a function of the kernel may be replaced, or what was replaced be given back. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from vmkit.errors import ConflictError, NotFoundError, RefusedError, UnsupportedError
from vmkit.hotfix.kernel.facts import KernelFacts, livepatch_of
from vmkit.hotfix.manifest import Patch
from vmkit.hotfix.plans import Action
from vmkit.plan import Choice, Plan, Step

GONE = "gone"
"""State of a patch that was in a kernel which has ended: the machine was booted since."""
BOOT = "a livepatch ends with this boot of the kernel: run apply again after the next one"
TAINT = "the kernel is tainted by it (K, and E if the module is not signed): supporters of kernels ask for that"


def label(patch: Patch) -> str:
    """The kernel and the module in it, for messages and the history."""
    part = livepatch_of(patch)
    return f"the kernel {part.release} ({part.object})"


def needed(action: Action, patch: Patch, facts: KernelFacts) -> bool:
    """Whether something is to be done.

    Raises:
        UnsupportedError, NotFoundError, RefusedError, ConflictError: it cannot be done here, or not now.
    """
    part = livepatch_of(patch)
    if action is Action.REVERT:
        if facts.state.loaded:
            _own_edition(patch, facts)
        return facts.state.loaded
    check_kernel(patch, facts)
    if facts.state.loaded:
        _own_edition(patch, facts)
    check_functions(patch, facts)
    if facts.state.moving:
        raise ConflictError(
            f"the livepatch {part.name} is being put in or taken out at this moment",
            hint="look again in some seconds: vmkit hotfix status",
        )
    if facts.state.enabled:
        return False
    if facts.signed_only and not facts.signed:
        raise RefusedError(
            f"this kernel takes signed modules only ({facts.signed_only}), and that of patch {patch.id} is not signed",
            hint="boot it without, or apply where it is not demanded",
        )
    return True


def check_kernel(patch: Patch, facts: KernelFacts) -> None:
    """Whether this is the kernel that a patch is for.

    Raises:
        UnsupportedError: it cannot be patched live.
        RefusedError: it is another one.
        NotFoundError: the module is not loaded.
    """
    part = livepatch_of(patch)
    if not facts.available:
        raise UnsupportedError(
            f"the kernel {facts.release} cannot be patched live: there is no /sys/kernel/livepatch",
            hint="Debian's kernels can be (CONFIG_LIVEPATCH=y)",
        )
    if facts.release != part.release:
        raise RefusedError(
            f"patch {patch.id} is for the kernel {part.release}; this is {facts.release}",
            hint="make one for it: vmkit hotfix make --kernel",
        )
    if facts.build_id is None:
        raise NotFoundError(
            f"the module {part.object} is not loaded, so there is nothing to patch", hint=f"modprobe {part.object}"
        )
    if facts.build_id not in patch.build_ids:
        raise RefusedError(
            f"patch {patch.id} is for {part.object} of build {patch.build_ids[0][:12]}; that of this kernel is "
            f"{facts.build_id[:12] or 'without a build id'}",
            hint="make one for it: vmkit hotfix make --kernel",
        )


def check_functions(patch: Patch, facts: KernelFacts) -> None:
    """Whether the functions are what the patch was made from, and nobody else has them in hand.

    Raises:
        RefusedError, ConflictError: they are not.
    """
    part = livepatch_of(patch)
    for function in patch.functions:
        count = len(facts.places.get(function, ()))
        if count != 1:
            raise RefusedError(f"{part.object} has {count} functions {function} in this kernel, where one is needed")
        if facts.traceable is not None and function not in facts.traceable:
            raise RefusedError(f"{function} cannot be replaced: ftrace does not reach it in this kernel")
        if others := facts.others.get(function):
            raise ConflictError(
                f"{function} is replaced by another livepatch: {others[0]}",
                hint=f"take it out first: echo 0 > /sys/kernel/livepatch/{others[0]}/enabled",
            )
    if detail := difference(patch, facts.held):
        raise RefusedError(
            f"{label(patch)} does not hold what patch {patch.id} expects: {detail}",
            hint="a probe (kprobe, uprobe) or another program has changed it: cat /sys/kernel/debug/kprobes/list",
        )


def difference(patch: Patch, held: Sequence[bytes | None]) -> str:
    """Where memory is not what is expected, in words; '' if it is."""
    for edit, data in zip(patch.edits, held, strict=True):
        if data is None:
            return f"{edit.place} is not in one place"
        if not edit.expected.matches(data):
            known = zip(edit.expected.values, edit.expected.known, data, strict=True)
            at = next(i for i, (value, counts, found) in enumerate(known) if counts and value != found)
            wanted = edit.expected.part(at, 8)
            return f"{edit.symbol}+{edit.symbol_offset + at:#x} holds {data[at : at + 8].hex(' ')}, not {wanted}"
    return ""


def _own_edition(patch: Patch, facts: KernelFacts) -> None:
    if facts.own_build_id != facts.built:
        name = livepatch_of(patch).name
        raise ConflictError(
            f"a module {name} of another build is loaded: another edition of patch {patch.id}",
            hint=f"revert it first: vmkit hotfix revert {patch.id}",
        )


def standing(patch: Patch, facts: KernelFacts, boot: str) -> tuple[str, str]:
    """State and detail for `status`; `boot` is which one carries the patch, as far as is remembered."""
    part = livepatch_of(patch)
    if facts.state.moving:
        return "in transition", f"the livepatch {part.name} is being put in or taken out"
    if facts.state.enabled and facts.own_build_id != facts.built:
        return "other edition", f"a module {part.name} of another build is loaded"
    if facts.state.enabled:
        return "patched", f"livepatch {part.name}"
    if boot and boot != facts.boot:
        return GONE, "the machine has booted since it was applied"
    if facts.release != part.release or (facts.build_id is not None and facts.build_id not in patch.build_ids):
        return "other build", f"this kernel is {facts.release}"
    if boot:
        return GONE, f"somebody has taken the livepatch {part.name} out"
    if facts.build_id is None:
        return "not patched", f"the module {part.object} is not loaded"
    detail = difference(patch, facts.held)
    return ("other bytes", detail) if detail else ("not patched", "")


def plan_for(action: Action, patch: Patch, facts: KernelFacts, pausing: Sequence[str], *, some: bool) -> Plan:
    """The plan as a person reads it. `pausing` names the guests that run; `some`: something is to be done."""
    part = livepatch_of(patch)
    functions = ", ".join(patch.functions)
    because = f"livepatch {part.name}: {'loaded' if facts.state.loaded else 'not loaded'}"
    choices = (Choice("kernel", f"{facts.release}, {part.object}", because),)
    if not some:
        already = "patched" if action is Action.APPLY else "unpatched"
        return Plan(f"{action.value} {patch.id}: nothing to do, the kernel is {already} already", choices)
    names = ", ".join(pausing)
    change = (
        Step("load", f"module {part.name}", f"{functions} of {part.object} then lead to it")
        if action is Action.APPLY
        else Step("disable", f"livepatch {part.name}", f"{functions} of {part.object} are what they were before")
    )
    steps = (
        Step("record", f"undo record of {patch.id}", "what was done has to be on disk before it is"),
        *(
            (Step("pause", names, "no vCPU is inside of KVM then, and none runs half of it old and half new"),)
            * bool(names)
        ),
        Step("compare", functions, "nothing may have changed since this plan"),
        change,
        Step("wait", "for every task", "a task goes over when its stack is clear; else all goes back"),
        *((Step("resume", names, "only those that were paused for this"),) * bool(names)),
        *((Step("unload", f"module {part.name}", "nothing uses it any more"),) * (action is Action.REVERT)),
    )
    return Plan(f"{action.value} {patch.id}: {patch.title}", choices, steps, (BOOT, TAINT) * (action is Action.APPLY))
