"""The transfer itself: libvirt's call in a worker thread, this one watching it, and what can end it early."""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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
from vmkit.migrate.control import AllowDowntime, Decision, GiveUp, Look, Policy, PostCopy
from vmkit.migrate.disks import DiskWatch
from vmkit.migrate.keeper import Keeper, order
from vmkit.migrate.outcome import Place
from vmkit.migrate.replay import Made, describe
from vmkit.migrate.settle import Settled
from vmkit.progress import Advanced, Event, Finished, Note, Reporter, Started
from vmkit.system.clock import Deadline, stopwatch
from vmkit.values import Bytes, show_duration

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain, JobStats
    from vmkit.hypervisor.host import Host
    from vmkit.hypervisor.migration import Options
    from vmkit.system.tunnel import Road

POLL_S: Final = 0.2
ABORT_PATIENCE_S: Final = 90.0
STEP: Final = "transfer"
_HANDOVER_S: Final = 5.0


class StopReason(enum.Enum):
    """Why a transfer was ended early."""

    DEADLINE = "deadline"
    GAVE_UP = "gave up"
    CANCELLED = "cancelled"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class Stop:
    """A wish to end the transfer, and who had it: 'Ctrl-C', 'vmkit jobs cancel'; or why the controller gave it up."""

    reason: StopReason
    by: str = ""
    hint: str = ""
    late: bool = False


@dataclass(slots=True)
class Transfer:
    """What is known of a transfer when its call has returned.

    Attributes:
        error: what the call raised; None if it returned a domain.
        stop: why this process wanted it to end early; None if it did not. The call may have succeeded all the same.
        last: the last statistics with memory figures in them.
        rounds: passes over the memory.
        seconds: wall-clock time of the call.
        disk_seconds, disk_bytes: of it before memory was sent, for copying disks, and what was copied.
        looks: every look at the job.
        made: what the controller decided.
        switched: seconds into the transfer when it went over to post-copy; None if it did not.
        handover: seconds from then until the guest was seen to run at the target.
    """

    error: VmkitError | None = None
    stop: Stop | None = None
    last: JobStats | None = None
    rounds: int = 0
    seconds: float = 0.0
    disk_seconds: float = 0.0
    disk_bytes: int = 0
    looks: list[Look] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    switched: float | None = None
    handover: float | None = None
    _raised: list[BaseException] = field(default_factory=list)

    def see(self, stats: JobStats | None) -> None:
        """Take in one look at the job."""
        if stats is not None and stats.total:
            self.last = stats
            self.rounds = max(self.rounds, stats.iteration)

    @property
    def first_pass(self) -> int:
        """Bytes of memory that held more than zeros; 0 if the first pass did not end."""
        for look in self.looks:
            if look.iteration > 1:
                cut = self.switched is not None and look.t > self.switched  # by post-copy
                return 0 if cut else max(0, look.total - look.constant)
        return 0


@dataclass(frozen=True, slots=True)
class Steer:
    """What steers the transfer, and what it may be told.

    Attributes:
        policy: decides.
        options: how the memory goes across.
        on_switch: called before the switch to post-copy, which cannot be taken back.
        road: the tunnel that the options lead through; None for none.
    """

    policy: Policy
    options: Options
    on_switch: Callable[[], None] = lambda: None
    road: Road | None = None


def transfer(
    domain: Domain,
    target: Host,
    *,
    persistent: bool,
    bandwidth: int | None,
    same_storage: bool,
    deadline: float,
    steer: Steer,
    wish: Callable[[], Stop | None],
    reporter: Reporter,
) -> Transfer:
    """Move the domain, watch and steer. Always returns; whoever calls looks at both hosts then.

    Args:
        domain: what to move.
        target: where to.
        persistent: move its definition too.
        bandwidth: bytes a second; None for no limit.
        same_storage: leave libvirt's own check of the disks out.
        deadline: seconds until the job is aborted, from when memory is sent; disks that are copied before that only
            have to go on. A post-copy that has begun is not: the guest is at the target then.
        steer: what decides on the way.
        wish: asked several times a second whether somebody wants it to end.
        reporter: hears how far it is.
    """
    from vmkit.hypervisor.migration import migrate_live, start_postcopy
    from vmkit.hypervisor.newcomers import arriving
    from vmkit.system.tunnel import carried

    state = Transfer()
    wish = _guarded(wish)
    switch: Callable[[], None] = partial(start_postcopy, domain)

    def call() -> None:
        with carried(steer.road):
            migrate_live(
                domain,
                target,
                persistent=persistent,
                bandwidth=bandwidth,
                same_storage=same_storage,
                options=steer.options,
            )

    if steer.options.post_copy:
        arguments = {"persistent": persistent, "bandwidth": bandwidth, "same_storage": same_storage}
        keeper = Keeper(order(domain.host.uri, target.uri, domain.uuid, arguments, steer.options, steer.road))
        call, switch = keeper.migrate, keeper.switch

    def work() -> None:
        try:
            call()
        except VmkitError as e:
            state.error = e
        except BaseException as e:
            state._raised.append(e)

    elapsed = stopwatch()
    disks = DiskWatch(tuple(steer.options.disks), elapsed, reporter)
    reporter(Started(STEP))
    thread = threading.Thread(target=work, name="vmkit-migrate", daemon=True)
    with arriving(domain, reporter) as refused:
        thread.start()
        heeding = _heeding(refused, wish)
        _Watch(thread, domain, target, state, Deadline(deadline), disks, steer, switch, heeding, reporter).run()
    state.seconds, state.disk_seconds, state.disk_bytes = elapsed(), disks.seconds, disks.sent
    if state._raised:
        raise state._raised[0]
    if state.stop is None and state.error is not None:
        # It may have ended before we looked who wanted that; and a Ctrl-C also ends the ssh below a connection.
        state.stop = wish()
    if state.error is None and state.stop is None:
        reporter(Finished(STEP, state.seconds))
    return state


@dataclass(slots=True)
class _Watch:
    """The side that looks on until the call has returned: tells how far it is, steers, and ends it early."""

    thread: threading.Thread
    domain: Domain
    target: Host
    state: Transfer
    limit: Deadline
    disks: DiskWatch
    steer: Steer
    switch: Callable[[], None]
    wish: Callable[[], Stop | None]
    reporter: Reporter
    _patience: Deadline | None = None
    _to_switch: PostCopy | None = None
    _sent: int = 0

    def run(self) -> None:
        while not _joined(self.thread):
            stats = _look(self.domain)
            self.state.see(stats)
            if stats is not None:
                if self.disks.see(stats):
                    self.limit = Deadline(self.limit.seconds)
                if stats.total or not self.disks.devices:
                    self.reporter(_progress(stats))
                if stats.total and self.state.stop is None:
                    self._steer(Look.of(self.disks.clock(), stats))
            if self.state.switched is None:
                self._end_early()
            elif self._hangs(stats):
                return
            if self._patience is not None and self.state.switched is None:
                if self._patience.passed:
                    self.state.stop = Stop(StopReason.STUCK)
                    return
                with contextlib.suppress(
                    VmkitError
                ):  # between two phases is nothing to abort: the next turn tries again
                    self.domain.abort_job()

    def _end_early(self) -> None:
        if self.state.stop is None:
            self.state.stop = self.wish() or (Stop(StopReason.DEADLINE) if self.limit.passed else None)
        if self.state.stop is not None and self._patience is None:
            self._patience = Deadline(ABORT_PATIENCE_S)
            self.reporter(Note("giving the transfer up; the VM stays where it is"))

    def _steer(self, look: Look) -> None:
        self.state.looks.append(look)
        if self.state.switched is not None:
            return
        decision = self._to_switch or self.steer.policy.step(look)
        if decision is not None:
            self._enact(decision, look)

    def _enact(self, decision: Decision, look: Look) -> None:
        from vmkit.hypervisor.migration import set_max_downtime

        if decision is not self._to_switch:
            self.state.made.append(Made(look.t, describe(decision), decision.why))
            self.reporter(Note(f"{describe(decision)}: {decision.why}"))
        match decision:
            case AllowDowntime(seconds):
                with contextlib.suppress(VmkitError):  # it has just left, or the next look decides anew
                    set_max_downtime(self.domain, max(1, min(2_000_000, round(seconds * 1000))))
            case PostCopy():
                self._switch(decision)
            case GiveUp(why, late, hint):
                self.state.stop = Stop(StopReason.GAVE_UP, why, hint, late)

    def _switch(self, decision: PostCopy) -> None:
        """Go over to post-copy, and see when the guest runs at the target. Tried again while there is a job for it."""
        from vmkit.hypervisor.migration import find

        if (stop := self.wish()) is not None:  # the last moment at which it can be ended
            self.state.stop = stop
            return
        self.steer.on_switch()
        begun = self.disks.clock()
        try:
            self.switch()
        except VmkitError:
            self._to_switch = decision
            return
        self._to_switch = None
        self.state.switched = begun
        end = Deadline(_HANDOVER_S)
        while not end.passed and self.thread.is_alive():
            with contextlib.suppress(VmkitError):
                arrived = find(self.target, uuid=self.domain.uuid)
                if arrived is not None and arrived.state().value == "running":
                    self.state.handover = self.disks.clock() - begun
                    return
            self.thread.join(0.01)

    def _hangs(self, stats: JobStats | None) -> bool:
        """Whether a post-copy has not moved for so long that it is left to a look at both hosts."""
        moved = stats is not None and stats.processed > self._sent
        if moved or self._patience is None:
            self._patience = Deadline(ABORT_PATIENCE_S)
            self._sent = stats.processed if stats else self._sent
        return self._patience.passed


def _guarded(wish: Callable[[], Stop | None]) -> Callable[[], Stop | None]:
    """An error of the caller's must not leave a transfer running that nobody watches: it counts as a cancellation."""

    def ask() -> Stop | None:
        try:
            return wish()
        except Exception as e:
            return Stop(StopReason.CANCELLED, f"an error in the calling program ({type(e).__name__}: {e})")

    return ask


def _heeding(refused: Callable[[], str], wish: Callable[[], Stop | None]) -> Callable[[], Stop | None]:
    """A guest whose new process is not fit for it stays where it is."""

    def ask() -> Stop | None:
        why = refused()
        return Stop(StopReason.GAVE_UP, why) if why else wish()

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
