"""What is said of a transfer that did not end with the VM at the target. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkit.errors import (
    CancelledError,
    DeadlineError,
    EffectError,
    IndeterminateError,
    RefusedError,
    UnreachableError,
    VmkitError,
)
from vmkit.migrate.outcome import Place
from vmkit.migrate.session import StopReason
from vmkit.values import Bytes, show_duration

if TYPE_CHECKING:
    from vmkit.migrate.session import Transfer
    from vmkit.migrate.settle import Settled


def failure(name: str, state: Transfer, settled: Settled, *, source: str, target: str, deadline: float) -> VmkitError:
    """The error of a transfer that did not end with the VM at the target. Pure."""
    verdict = settled.verdict
    look = f"look at both: virsh -c '{source}' domstate {name} --reason; virsh -c '{target}' domstate {name} --reason"
    if verdict.place is Place.SPLIT:
        return IndeterminateError(
            f"the migration of {name} is cut off: {verdict.why}",
            hint="stop neither; mend the network between them, then: vmkit jobs resolve",
            details=(*((state.error.message,) if state.error else ()), *settled.trouble),
        )
    if verdict.place in (Place.UNKNOWN, Place.WAIT):
        return IndeterminateError(
            f"the outcome of the migration of {name} is not known: {verdict.why}",
            hint=f"{look}; then: vmkit jobs resolve",
            details=(*((state.error.message,) if state.error else ()), *settled.trouble),
        )
    if verdict.place is Place.NOWHERE:
        return EffectError(
            f"the migration of {name} failed: {verdict.why}", left="no copy runs", hint=f"start it: vmkit start {name}"
        )
    stays = f"the VM runs on at {source}" if settled.source.name == "RUNNING" else f"the VM is still at {source}"
    if state.stop is not None and state.stop.reason is StopReason.DEADLINE:
        return DeadlineError(
            f"the migration of {name} was given up after {show_duration(deadline)}; {stays}",
            hint="give it more time (--deadline), a higher --max-downtime, or more --bandwidth",
            details=(_why_slow(state),),
        )
    if state.stop is not None and state.stop.reason is StopReason.GAVE_UP:
        text = f"the migration of {name} was given up: {state.stop.by}"
        if state.stop.late:
            return DeadlineError(f"{text}; {stays}", hint=state.stop.hint or None, details=(_why_slow(state),))
        return EffectError(text, left=stays, hint=state.stop.hint or None)
    if state.stop is not None:
        return CancelledError(f"the migration of {name} was cancelled by {state.stop.by}; {stays}")
    error = state.error
    if isinstance(error, CancelledError):
        return CancelledError(f"the migration of {name} was aborted by another program; {stays}")
    if isinstance(error, RefusedError) and not isinstance(error, UnreachableError) and not settled.done:
        return error
    text = error.message if error else "it ended without an error and without the VM at the target"
    said = error.details if error else ()
    return EffectError(f"the migration of {name} failed: {text}", left=stays, details=(*said, *settled.trouble))


def _why_slow(state: Transfer) -> str:
    s = state.last
    if s is None:
        return "no memory had been sent by then"
    left = f"{Bytes(s.remaining)} were still to be sent in round {s.iteration}"
    if s.iteration < 2:
        return f"{left}, the first pass over the memory, at {Bytes(s.bandwidth)}/s"
    verdict = ": it would never have ended" if s.bandwidth and s.dirty_rate >= s.bandwidth else ""
    return f"{left}; {Bytes(s.dirty_rate)}/s became dirty, {Bytes(s.bandwidth)}/s could be sent{verdict}"
