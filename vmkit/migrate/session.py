"""The transfer itself: libvirt's call in a worker thread, this one watching it, and what can end it early."""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from vmkit.errors import VmkitError
from vmkit.migrate.control import AllowDowntime, Decision, GiveUp, Look, Policy, PostCopy
from vmkit.migrate.disks import DiskWatch
from vmkit.migrate.keeper import Keeper, order
from vmkit.migrate.line import Ends
from vmkit.migrate.replay import Made, describe
from vmkit.progress import Advanced, Event, Finished, Note, Reporter, Started
from vmkit.system.clock import Deadline, stopwatch
from vmkit.values import Bytes

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain, JobStats
    from vmkit.hypervisor.host import Host
    from vmkit.hypervisor.migration import Options
    from vmkit.system.tunnel import Road

POLL_S: Final = 0.2
ABORT_PATIENCE_S: Final = 90.0
STALL_S: Final = 15.0
"""A link that was down for three seconds goes on within seven (TCP waits twice as long after each attempt)."""
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
        ends: the connections that the call goes by, if not by those of the domain and the target.
        fuse: folder for those of the process that holds a post-copy.
    """

    policy: Policy
    options: Options
    on_switch: Callable[[], None] = lambda: None
    road: Road | None = None
    ends: Ends = lambda: None
    fuse: str = ""


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
        ends = steer.ends()
        here, there = (domain, target) if ends is None else (ends[0].domain(domain.uuid), ends[1])
        with carried(steer.road):
            migrate_live(
                here,
                there,
                persistent=persistent,
                bandwidth=bandwidth,
                same_storage=same_storage,
                options=steer.options,
            )

    if steer.options.post_copy:
        arguments = {"persistent": persistent, "bandwidth": bandwidth, "same_storage": same_storage}
        keeper = Keeper(
            order(domain.host.uri, target.uri, domain.uuid, arguments, steer.options, steer.road, steer.fuse)
        )
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
    _mark: tuple[int, ...] = ()
    _still: Deadline | None = None

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
                self._end_early(stats)
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

    def _end_early(self, stats: JobStats | None) -> None:
        if self.state.stop is None:
            late = Stop(StopReason.DEADLINE) if self.limit.passed else None
            self.state.stop = self.wish() or late or self._stalls(stats)
        if self.state.stop is not None and self._patience is None:
            self._patience = Deadline(ABORT_PATIENCE_S)
            self.reporter(Note("giving the transfer up; the VM stays where it is"))

    def _stalls(self, stats: JobStats | None) -> Stop | None:
        """Whether it stands still: then the guest may too, and nobody but the one who looks on ends that."""
        hint = "see that both hosts reach each other, and this machine both; then try again"
        if not self.target.alive:
            return Stop(StopReason.GAVE_UP, "the target does not answer any more", hint)
        disks = int(stats.raw.get("disk_processed", 0)) if stats else 0
        mark = (stats.processed, stats.iteration, disks) if stats and (stats.total or disks) else ()
        if mark != self._mark or self._still is None:
            self._mark, self._still = mark, Deadline(STALL_S)
        elif mark and self._still.passed:
            return Stop(StopReason.GAVE_UP, f"nothing has been sent for {STALL_S:g} s", hint)
        return None

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
