"""A VM's memory on disk while the VM is off: saved, taken up again, or thrown away."""

from __future__ import annotations

from functools import partial

from vmkit.errors import CancelledError, ConflictError, EffectError, UnsupportedError, VmkitError
from vmkit.hypervisor import snapshot as calls
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.progress import Note, Reporter, silent
from vmkit.system.clock import stopwatch
from vmkit.system.interrupts import deferred
from vmkit.system.journal import journalled
from vmkit.vm.watched import watched


def save(domain: Domain, *, reporter: Reporter = silent) -> float:
    """Write its memory to disk and end it; its next start goes on where it was. Returns the seconds it took.

    Raises:
        ConflictError, UnsupportedError: nothing was touched.
        EffectError: it could not be saved; it goes on.
        CancelledError: Ctrl-C or a signal came; it goes on.
    """
    name, state = domain.name, domain.state()
    if not domain.persistent:
        raise UnsupportedError(
            f"{name} has no definition that outlives it, and so nothing to save it beside",
            hint=f"give it one: virsh dumpxml {name} >{name}.xml; virsh define {name}.xml",
        )
    if state not in (DomainState.RUNNING, DomainState.PAUSED, DomainState.BLOCKED):
        told = "is saved already" if calls.saved(domain) else f"is {state.value}"
        raise ConflictError(f"{name} {told}", hint=f"vmkit {'restore' if calls.saved(domain) else 'start'} {name}")
    ran = state is not DomainState.PAUSED
    facts = {"uri": domain.host.uri, "uuid": domain.uuid, "what": "save", "ran": ran}
    with journalled("snapshot", name, "save", **facts), deferred() as interrupted:
        try:
            seconds = watched(
                domain, partial(calls.save, domain), step="save", text=name, interrupted=interrupted, reporter=reporter
            )
        except VmkitError as e:
            now = f"{name} is {domain.state().value}"
            if by := interrupted():
                raise CancelledError(f"the saving of {name} was stopped by {by}; {now}") from e
            raise EffectError(e.message, left=now, hint=e.hint) from e
        if not calls.saved(domain):
            raise EffectError(
                f"{name} is {domain.state().value}, and libvirt keeps no memory of it",
                hint=f"vmkit log {name} shows how it ended; vmkit start {name} boots it",
            )
        if by := interrupted():
            reporter(Note(f"{by} came too late: {name} is saved", warning=True))
    return seconds


def restore(domain: Domain, *, reporter: Reporter = silent) -> float:
    """Let a VM that was saved go on; returns the seconds it took.

    Raises:
        ConflictError: it is not saved.
        EffectError: QEMU cannot take the memory up again; it is still there.
    """
    from vmkit.vm.machine import Vm

    name = domain.name
    if domain.state().active or not calls.saved(domain):
        told = domain.state().value if domain.state().active else "shut off, and no memory of it is saved"
        hint = (
            f"it was not saved; to an earlier state it goes back by vmkit snapshot revert {name}"
            if domain.state().active
            else f"vmkit start {name} boots it"
        )
        raise ConflictError(f"{name} is {told}", hint=hint)
    seconds = stopwatch()
    try:
        Vm(domain).start(reporter=reporter)
    except EffectError as e:
        raise EffectError(
            e.message, left="the saved memory is still there", hint=f"boot it without: vmkit save --drop {name}"
        ) from e
    return seconds()


def drop(domain: Domain) -> bool:
    """Throw its saved memory away. False if there is none."""
    if not calls.saved(domain):
        return False
    calls.drop_saved(domain)
    return True
