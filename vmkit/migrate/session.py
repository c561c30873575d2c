"""The transfer itself: libvirt's call in a worker thread, this one watching it, and what can end it early."""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

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
from vmkit.migrate.settle import Settled
from vmkit.progress import Advanced, Event, Finished, Note, Reporter, Started
from vmkit.system.clock import Deadline, stopwatch
from vmkit.values import Bytes, show_duration

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain, JobStats
    from vmkit.hypervisor.host import Host

POLL_S: Final = 0.25
ABORT_PATIENCE_S: Final = 90.0
STEP: Final = "pre-copy"


class StopReason(enum.Enum):
    """Why a transfer was ended early."""

    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class Stop:
    """A wish to end the transfer, and who had it: 'Ctrl-C', 'vmkit jobs cancel'."""

    reason: StopReason
    by: str = ""


@dataclass(slots=True)
class Transfer:
    """What is known of a transfer when its call has returned.

    Attributes:
        error: what the call raised; None if it returned a domain.
        stop: why this process wanted it to end early; None if it did not. The call may have succeeded all the same.
        last: the last statistics with memory figures in them.
        rounds: passes over the memory.
        seconds: wall-clock time of the call.
    """

    error: VmkitError | None = None
    stop: Stop | None = None
    last: JobStats | None = None
    rounds: int = 0
    seconds: float = 0.0
    _raised: list[BaseException] = field(default_factory=list)

    def see(self, stats: JobStats | None) -> None:
        """Take in one look at the job."""
        if stats is not None and stats.total:
            self.last = stats
            self.rounds = max(self.rounds, stats.iteration)


def transfer(
    domain: Domain,
    target: Host,
    *,
    persistent: bool,
    bandwidth: int | None,
    same_storage: bool,
    deadline: float,
    wish: Callable[[], Stop | None],
    reporter: Reporter,
) -> Transfer:
    """Move the domain and watch. Always returns; whoever calls looks at both hosts then.

    Args:
        domain: what to move.
        target: where to.
        persistent: move its definition too.
        bandwidth: bytes a second; None for no limit.
        same_storage: leave libvirt's own check of the disks out.
        deadline: seconds until the job is aborted.
        wish: asked several times a second whether somebody wants it to end.
        reporter: hears how far it is.
    """
    from vmkit.hypervisor.migration import migrate_live

    state = Transfer()
    wish = _guarded(wish)

    def work() -> None:
        try:
            migrate_live(domain, target, persistent=persistent, bandwidth=bandwidth, same_storage=same_storage)
        except VmkitError as e:
            state.error = e
        except BaseException as e:
            state._raised.append(e)

    elapsed = stopwatch()
    reporter(Started(STEP))
    thread = threading.Thread(target=work, name="vmkit-migrate", daemon=True)
    thread.start()
    _watch(thread, domain, state, Deadline(deadline), wish, reporter)
    state.seconds = elapsed()
    if state._raised:
        raise state._raised[0]
    if state.stop is None and state.error is not None:
        # It may have ended before we looked who wanted that; and a Ctrl-C also ends the ssh below a connection.
        state.stop = wish()
    if state.error is None and state.stop is None:
        reporter(Finished(STEP, state.seconds))
    return state


def _watch(
    thread: threading.Thread,
    domain: Domain,
    state: Transfer,
    limit: Deadline,
    wish: Callable[[], Stop | None],
    reporter: Reporter,
) -> None:
    """Until the call has returned: tell how far it is, and abort the job when it is to end early."""
    patience: Deadline | None = None
    while not _joined(thread):
        stats = _look(domain)
        state.see(stats)
        if stats is not None:
            reporter(_progress(stats))
        if state.stop is None:
            state.stop = wish() or (Stop(StopReason.DEADLINE) if limit.passed else None)
            if state.stop is not None:
                patience = Deadline(ABORT_PATIENCE_S)
                reporter(Note("giving the transfer up; the VM stays where it is"))
        if patience is not None:
            if patience.passed:
                state.stop = Stop(StopReason.STUCK)
                return
            with contextlib.suppress(VmkitError):  # between two phases is nothing to abort: the next turn tries again
                domain.abort_job()


def _guarded(wish: Callable[[], Stop | None]) -> Callable[[], Stop | None]:
    """An error of the caller's must not leave a transfer running that nobody watches: it counts as a cancellation."""

    def ask() -> Stop | None:
        try:
            return wish()
        except Exception as e:
            return Stop(StopReason.CANCELLED, f"an error in the calling program ({type(e).__name__}: {e})")

    return ask


def unbreakable(reporter: Reporter) -> Reporter:
    """A display that breaks (a closed terminal, say) is no reason to stop."""

    def tell(event: Event) -> None:
        with contextlib.suppress(Exception):
            reporter(event)

    return tell


def _joined(thread: threading.Thread) -> bool:
    thread.join(POLL_S)
    return not thread.is_alive()


def _look(domain: Domain) -> JobStats | None:
    try:
        return domain.job()
    except VmkitError:  # it has just left, or the host stopped answering: the call itself says which
        return None


def _progress(s: JobStats) -> Advanced:
    parts = [f"{Bytes(s.processed)} sent, {Bytes(s.remaining)} to go, round {s.iteration}"]
    if s.dirty_rate:
        parts.append(f"{Bytes(s.dirty_rate)}/s dirty")
    if s.bandwidth:
        parts.append(f"{Bytes(s.bandwidth)}/s")
    if s.downtime_ms is not None and s.total:
        parts.append(f"downtime {s.downtime_ms} ms expected")
    return Advanced(STEP, s.processed, (s.processed + s.remaining) or None, ", ".join(parts))


def failure(name: str, state: Transfer, settled: Settled, *, source: str, target: str, deadline: float) -> VmkitError:
    """The error of a transfer that did not end with the VM at the target. Pure."""
    verdict = settled.verdict
    look = f"look at both: virsh -c '{source}' domstate {name} --reason; virsh -c '{target}' domstate {name} --reason"
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
    if state.stop is not None:
        return CancelledError(f"the migration of {name} was cancelled by {state.stop.by}; {stays}")
    error = state.error
    if isinstance(error, CancelledError):
        return CancelledError(f"the migration of {name} was aborted by another program; {stays}")
    if isinstance(error, RefusedError) and not isinstance(error, UnreachableError) and not settled.done:
        return error
    text = error.message if error else "it ended without an error and without the VM at the target"
    return EffectError(f"the migration of {name} failed: {text}", left=stays, details=settled.trouble)


def _why_slow(state: Transfer) -> str:
    s = state.last
    if s is None:
        return "no memory had been sent by then"
    left = f"{Bytes(s.remaining)} were still to be sent in round {s.iteration}"
    if s.iteration < 2:
        return f"{left}, the first pass over the memory, at {Bytes(s.bandwidth)}/s"
    verdict = ": it would never have ended" if s.bandwidth and s.dirty_rate >= s.bandwidth else ""
    return f"{left}; {Bytes(s.dirty_rate)}/s became dirty, {Bytes(s.bandwidth)}/s could be sent{verdict}"
