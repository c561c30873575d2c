"""Finishing or undoing a migration whose vmkit was killed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from vmkit.errors import ConflictError, IndeterminateError
from vmkit.host.traps import POSTCOPY_RESUME
from vmkit.migrate import carry, copying
from vmkit.migrate.facts import Version
from vmkit.migrate.locks import vm_lock
from vmkit.migrate.outcome import Intent, Place
from vmkit.migrate.settle import Reach, Settled, settle
from vmkit.progress import Note, Reporter, silent
from vmkit.system.fuse import swept

if TYPE_CHECKING:
    from vmkit.system.journal import Entry

PATIENCE_S: Final = 30.0
"""How long libvirt may take to notice that the process is gone and to end the migration, seconds. Seen here: 1 to 3."""

SILENCE_S: Final = 2.0
CONNECT_S: Final = 5.0
"""A host that is down must not hold up every vmkit command for longer than this: the entry is kept for the next."""

UNTOUCHED: Final = "preflight"
RESUME_SINCE: Final = (8, 5, 0)
"""VIR_MIGRATE_POSTCOPY_RESUME."""


def intent_of(phase: str, data: dict[str, Any]) -> Intent:
    """What a journal entry says about how it was before."""
    return Intent(
        was_paused=data.get("was_paused", False),
        persistent=data.get("persistent", True),
        target_defined=data.get("target_defined", False),
        touched=phase != UNTOUCHED,
        cold=data.get("cold", False),
    )


def recover(entry: Entry, reporter: Reporter = silent) -> str:
    """Ask both hosts what became of the VM, and bring them in order where that is certain; returns one line about it.

    The entry is kept if a host does not answer.

    Raises:
        IndeterminateError: both answer, and it is still not certain which copy counts; the entry stays.
        ConflictError: another vmkit migrates the VM just now; the entry stays.
    """
    name, data = entry.record.subject, entry.record.data
    head = f"a migration of {name} was cut off"
    intent = intent_of(entry.record.phase, data)
    for folder in data.get("fuses", ()):
        swept(folder)
    if not intent.touched:
        return f"{head} before it touched anything"
    uuid, here, there = data["uuid"], data["source"], data["target"]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(vm_lock(name, uuid))
        except ConflictError:
            entry.keep = True
            return f"{head}, and another vmkit migrates it now"
        source, target = Reach(here, connect=CONNECT_S), Reach(there, connect=CONNECT_S)
        stack.callback(source.close)
        stack.callback(target.close)
        entry.advance("recovery")
        settled = settle(source, target, uuid, intent, patience=PATIENCE_S, silence=SILENCE_S, reporter=reporter)
        if settled.verdict.place is Place.SPLIT:
            settled = _take_up(settled, source, target, uuid, intent, data, reporter)
        if settled.verdict.place is Place.TARGET:
            finish_definition(target, uuid, data)
        elif settled.verdict.place is Place.SOURCE:
            restore_downtime(source, uuid, data)
        if settled.verdict.place in (Place.SOURCE, Place.TARGET, Place.NOWHERE):
            carry.sweep(data)
        tidied = copying.tidy(settled, source, target, data)
        entry.keep = tidied.again
    return "; ".join((head, _tell(settled, entry, here, there), *tidied.left))


def _take_up(
    settled: Settled, source: Reach, target: Reach, uuid: str, intent: Intent, data: dict[str, Any], reporter: Reporter
) -> Settled:
    """Go on with a post-copy that was cut off, where both libvirts can; else the verdict stays as it was.

    Raises:
        UnreachableError: a host stopped answering.
    """
    from vmkit.errors import VmkitError
    from vmkit.hypervisor.migration import Options, migrate_live

    here, there = source.domain(uuid), target.domain(uuid)
    if here is None or there is None:
        return settled
    if why := no_resume(here.host.libvirt_version(), there.host.libvirt_version()):
        return replace(settled, trouble=(*settled.trouble, why))
    reporter(Note(f"taking up the post-copy of {here.name}"))
    try:
        migrate_live(
            here,
            there.host,
            persistent=intent.persistent,
            same_storage=data.get("same_storage", False),
            options=Options(post_copy=True),
            resume=True,
        )
    except VmkitError as e:
        return replace(settled, trouble=(*settled.trouble, f"taking it up: {e.message}"))
    return settle(source, target, uuid, intent, patience=PATIENCE_S, silence=SILENCE_S, reporter=reporter)


def no_resume(here: Version, there: Version) -> str | None:
    """Why a post-copy between these libvirts cannot be taken up; None if it can. Pure."""
    if min(here, there) < RESUME_SINCE:
        return (
            "libvirt takes up a post-copy since 8.5: bring both hosts there (their VMs stay), then: vmkit jobs resolve"
        )
    if any(POSTCOPY_RESUME.catches(v) for v in (here, there)):
        return f"{POSTCOPY_RESUME.harm}: bring both to 11.4 or newer (VMs run on), then: vmkit jobs resolve"
    return None


def finish_definition(target: Reach, uuid: str, data: dict[str, Any]) -> None:
    """Carry over what libvirt does not: whether the VM starts with its host, and the source's own downtime limit."""
    from vmkit.hypervisor.migration import set_autostart

    domain = target.domain(uuid)
    if domain is not None and data.get("persistent") and data.get("autostart") and domain.persistent:
        set_autostart(domain, True)
    restore_downtime(target, uuid, data)


def restore_downtime(reach: Reach, uuid: str, data: dict[str, Any]) -> None:
    """Set the longest downtime back to what it was before this migration, where one was asked for."""
    from vmkit.errors import VmkitError
    from vmkit.hypervisor.migration import set_max_downtime

    if not (before := data.get("downtime_before")):
        return
    with contextlib.suppress(VmkitError):  # a setting for the next migration only; the guest does not notice
        domain = reach.domain(uuid)
        if domain is not None and domain.info().state.active:
            set_max_downtime(domain, before)


def _tell(settled: Settled, entry: Entry, here: str, there: str) -> str:
    did = f" (done: {', '.join(settled.done)})" if settled.done else ""
    match settled.verdict.place:
        case Place.SOURCE:
            return f"the VM is at {here}, as before{did}"
        case Place.TARGET:
            return f"the VM is at {there}{did}"
        case Place.NOWHERE:
            return f"no copy runs: {settled.verdict.why}{did}"
    if "does not answer" in settled.verdict.why:
        entry.keep = True
        return f"not settled yet: {settled.verdict.why} ({'; '.join(settled.trouble)})"
    name = entry.record.subject
    if settled.verdict.place is Place.SPLIT:
        raise IndeterminateError(
            f"the migration of {name} is cut off: {settled.verdict.why}",
            hint="; ".join(settled.trouble) or "stop neither; mend the network between them, then: vmkit jobs resolve",
        )
    raise IndeterminateError(
        f"the outcome of the migration of {name} is not known: {settled.verdict.why}",
        hint=f"look at both: virsh -c '{here}' domstate {name} --reason; virsh -c '{there}' domstate {name} --reason; "
        "end one, then: vmkit jobs resolve",
        details=settled.trouble,
    )
