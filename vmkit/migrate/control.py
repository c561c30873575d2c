"""Steering a transfer: what to do next, from libvirt's statistics alone. No clock, no I/O, so a recording replays it.

QEMU switches over by itself when what is left fits into the allowed downtime at the bandwidth that it measures. A
controller moves that limit, switches to post-copy, or gives up. What decides is progress, not the time that went by.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from vmkit.migrate.modes import Mode
from vmkit.values import Bytes, show_duration

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import JobStats

START_DOWNTIME_S: Final = 0.1
"""The limit that a transfer begins with, if the budget is not smaller: a guest that converges by itself then stands
still for less than the 300 ms of QEMU's default."""
EXTRA_S: Final = 0.06
"""What a switch-over takes beside the sending: device state, handshakes. Measured 60 to 140 ms (TCG, two busy CPUs)."""
CONVERGES: Final = 0.97
"""Dirty rate over bandwidth, or one round's dirty memory over that of the round before, from which on rounds do not
shrink enough to wait for."""
HOPELESS: Final = 1.1
"""The same, from which on no later round can be expected to be smaller."""
ROUGHLY: Final = 0.8
"""The same, from which on a guest that was seen to outrun the link is taken to do so still: the start of a round is
seen up to one look late, so that a round of the same size may seem smaller."""
PATIENCE_S: Final = 3.0
"""How long a transfer that cannot end may show that it can after all (a guest whose load comes in bursts)."""
STALL_SHARE: Final = 0.96
STALL_S: Final = 15.0
"""A throttled guest has stalled when for this long no round was below 96 % of the best one before."""
_SMOOTH: Final = 0.4
_SETTLE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the job. Sizes in bytes, rates in bytes a second, times in seconds since the transfer began.

    Attributes:
        iteration: round of pre-copy, from 1.
        remaining: of this round, as QEMU counts it.
        throttle: how much auto-converge slows the guest down, percent.
        constant: pages that held nothing but zeros, bytes.
    """

    t: float
    iteration: int
    total: int
    sent: int
    remaining: int
    bandwidth: int
    dirty_rate: int
    throttle: int = 0
    constant: int = 0

    @classmethod
    def of(cls, t: float, stats: JobStats) -> Self:
        """From libvirt's statistics."""
        raw = stats.raw
        return cls(
            round(t, 3),
            stats.iteration,
            stats.total,
            stats.processed,
            stats.remaining,
            stats.bandwidth,
            stats.dirty_rate,
            raw.get("auto_converge_throttle", 0),
            raw.get("memory_constant", 0) * raw.get("memory_page_size", 4096),
        )

    def plain(self) -> dict[str, Any]:
        """As a recording holds it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class AllowDowntime:
    """Let QEMU stop the guest for this long, by QEMU's own estimate."""

    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class PostCopy:
    """Switch to post-copy now."""

    why: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End it; the VM stays where it is. `late` if that is for the deadline's sake."""

    why: str
    late: bool = False
    hint: str = ""


Decision = AllowDowntime | PostCopy | GiveUp


@dataclass(frozen=True, slots=True)
class Terms:
    """What the controller may do.

    Attributes:
        mode: what was asked for.
        budget: seconds that the guest may stand still.
        deadline: seconds that the transfer may take.
        post_copy: it may switch to post-copy.
        throttle: QEMU slows the guest down (auto-converge).
        limited: bandwidth is limited by the user.
        link: bytes a second that the link carries while the guest stands still; None if unknown. QEMU lifts the limit
            for that part.
        used: bytes that have to cross at least once, at the least.
        extra: seconds that a switch-over takes beside the sending.
        curve: (seconds, bytes) of distinct pages that were seen to become dirty in windows of that length, beforehand.
    """

    mode: Mode = Mode.AUTO
    budget: float = 0.3
    deadline: float = 120.0
    post_copy: bool = False
    throttle: bool = False
    limited: bool = False
    link: int | None = None
    used: int = 0
    extra: float = EXTRA_S
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def start_downtime(self) -> float:
        """The limit to begin with, seconds."""
        return min(self.budget, START_DOWNTIME_S)

    def plain(self) -> dict[str, Any]:
        """As a recording holds it."""
        return {**asdict(self), "mode": self.mode.value}


class Policy(Protocol):
    """Something that steers a transfer."""

    name: str

    @property
    def start_downtime(self) -> float:
        """The limit to begin with, seconds."""

    def step(self, look: Look) -> Decision | None:
        """What to do after this look; None for nothing."""


@dataclass(slots=True)
class Round:
    """A pass over the dirty pages: when it began, and how much there was then."""

    began: float
    dirty: int


def pending(look: Look, rounds: list[Round]) -> int:
    """What would have to be sent if the guest stopped now: the rest of the round, and what became dirty in it."""
    if not rounds:
        return look.remaining
    since = look.t - rounds[-1].began
    widest = max(r.dirty for r in rounds[-4:])
    return min(look.total, look.remaining + min(int(look.dirty_rate * since), widest))


@dataclass(slots=True)
class Steering:
    """vmkit's own policy."""

    terms: Terms
    name: str = "vmkit"
    allowed: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    bandwidth: float = 0.0
    _last: Look | None = None
    _hopeless: float | None = None  # since when there has been no way to end it
    _improved: float = 0.0  # when a round was last clearly below the best before
    _best: int = 0
    _done: bool = False

    def __post_init__(self) -> None:
        self.allowed = self.terms.start_downtime

    @property
    def start_downtime(self) -> float:
        """The limit to begin with, seconds."""
        return self.terms.start_downtime

    def step(self, look: Look) -> Decision | None:
        """What to do after this look; None for nothing."""
        if self._done or not look.total:
            return None
        self._track(look)
        decision = self._decide(look)
        self._last = look
        if isinstance(decision, AllowDowntime):
            if decision.seconds <= self.allowed * 1.02:
                return None
            self.allowed = decision.seconds
        elif decision is not None:
            self._done = True
        return decision

    # -- what is known

    def _track(self, look: Look) -> None:
        last = self._last
        if look.bandwidth:
            self.bandwidth += (look.bandwidth - self.bandwidth) * (_SMOOTH if self.bandwidth else 1.0)
        if last is None or look.iteration <= last.iteration or look.iteration < 2:
            return
        self.rounds.append(Round(look.t, look.remaining))
        if not self._best or look.remaining < STALL_SHARE * self._best:
            self._improved = look.t
        self._best = min(self._best, look.remaining) if self._best else look.remaining

    def _pending(self, look: Look) -> int:
        return pending(look, self.rounds)

    def _ratio(self, look: Look) -> float:
        """Below 1 the rounds shrink: the dirty rate over the bandwidth, or one round's dirty memory over the last's."""
        ratio = look.dirty_rate / self.bandwidth if self.bandwidth else 0.0
        if len(self.rounds) > 1 and self.rounds[-2].dirty:
            return max(ratio, self.rounds[-1].dirty / self.rounds[-2].dirty)
        # QEMU's rate is over the long first pass, in which most pages were written more than once: it says too little
        # about the shorter round that follows. What was measured beforehand says more.
        dirty = self.rounds[-1].dirty
        if dirty and self.bandwidth and (next_round := dirty / self.bandwidth) and self.terms.curve:
            known = [size for seconds, size in self.terms.curve if seconds <= next_round]
            ratio = max(ratio, min(1.0, max(known, default=0.0) / dirty))
        return ratio

    def _outruns(self) -> bool:
        """Whether the guest was seen beforehand to write faster than this, even in a short window.

        A guest that writes its whole working set again within a round shows a dirty rate of about the bandwidth,
        however fast it writes; so the ratio alone does not tell it from one that just does not converge.
        """
        if not self.terms.curve:
            return False
        seconds, size = self.terms.curve[0]
        return size / seconds >= HOPELESS * self.bandwidth

    def _link(self) -> float:
        return max(self.bandwidth, float(self.terms.link or 0)) or 1.0

    # -- what follows from it

    def _decide(self, look: Look) -> Decision | None:
        terms = self.terms
        if terms.mode is Mode.POST_COPY:
            return PostCopy("asked for") if look.sent else None
        if look.iteration < 2 or not self.rounds:
            return self._first_pass(look)
        if terms.mode is Mode.STOP_COPY:
            return None
        stop = terms.extra + self._pending(look) / self._link()
        left = terms.deadline - look.t
        if terms.mode is Mode.HYBRID:
            return self._stop(look, stop) if stop <= terms.budget else PostCopy("the first pass is done")
        ratio = self._ratio(look)
        if ratio >= ROUGHLY and self._outruns():
            ratio = max(ratio, HOPELESS)
        rest = self._pending(look) / (self.bandwidth or 1.0)
        if ratio < CONVERGES and rest / (1 - ratio) + terms.extra < left:
            self._hopeless = None
            return None
        return self._end(look, stop, ratio, late=ratio < CONVERGES)

    def _end(self, look: Look, stop: float, ratio: float, *, late: bool) -> Decision | None:
        """It does not converge, or not in time: end it by a short stop, by post-copy, or not at all."""
        terms = self.terms
        if stop <= terms.budget:
            self._hopeless = None
            return self._stop(look, stop) if late or self._at_minimum(look, ratio) else None
        wait = max(PATIENCE_S, 1.5 * self._best / (self.bandwidth or 1.0))
        if ratio < HOPELESS and not late and look.t - self._improved < wait:
            return None  # slowly, but it shrinks
        if terms.post_copy:
            return PostCopy(f"{self._why(look, ratio)}, and a stop would take about {show_duration(stop)}")
        if terms.throttle and not late:
            return self._throttled(look, ratio)
        self._hopeless = look.t if self._hopeless is None else self._hopeless
        if look.t - self._hopeless < min(PATIENCE_S, 0.2 * terms.deadline):
            return None
        return GiveUp(
            f"{self._why(look, ratio)}; a stop now would take about {show_duration(stop)}, and "
            f"{show_duration(terms.budget)} are allowed",
            late=late,
            hint=self._hint(stop),
        )

    def _throttled(self, look: Look, ratio: float) -> Decision | None:
        patience = max(STALL_S, 3 * self._best / (self.bandwidth or 1.0))
        if look.throttle >= 99 and look.t - self._improved > patience:
            return GiveUp(f"{self._why(look, ratio)}, although it is slowed down by {look.throttle} %")
        return None

    def _first_pass(self, look: Look) -> Decision | None:
        """Before the first pass has ended only one thing can be told: that it will not end in time."""
        terms = self.terms
        if look.t < _SETTLE_S or not self.bandwidth:
            return None
        least = max(0, min(terms.used - look.sent, look.remaining))
        needed = least / self.bandwidth
        if needed <= 1.1 * (terms.deadline - look.t):
            return None
        return GiveUp(
            f"at {Bytes(int(self.bandwidth))}/s the first pass over the memory takes {show_duration(needed)} more, and "
            f"{show_duration(max(0.0, terms.deadline - look.t))} are left",
            late=True,
            hint="give it more time (--deadline), or more --bandwidth",
        )

    def _at_minimum(self, look: Look, ratio: float) -> bool:
        """Whether there was no clearly better moment in the last rounds: then there is none to wait for."""
        recent = [r.dirty for r in self.rounds[-5:]]
        return (len(recent) > 1 or ratio >= HOPELESS) and self._pending(look) <= 1.1 * min(recent)

    def _stop(self, look: Look, stop: float) -> AllowDowntime:
        """A limit with which QEMU stops now, and that keeps within the budget if more became dirty than is known."""
        terms, bandwidth = self.terms, self.bandwidth or 1.0
        most = (terms.budget - terms.extra) * self._link() / bandwidth
        need = 1.25 * self._pending(look) / bandwidth + START_DOWNTIME_S
        text = f"what is left fits into a stop of about {show_duration(stop)}"
        return AllowDowntime(round(max(terms.start_downtime, min(need, most)), 3), text)

    def _why(self, look: Look, ratio: float) -> str:
        if ratio >= HOPELESS and self._outruns():
            seconds, size = self.terms.curve[0]
            fast = f"the guest writes {Bytes(int(size))} within {show_duration(seconds)}"
            return f"{fast} and {Bytes(int(self.bandwidth))}/s are sent: it would never end"
        rate = f"{Bytes(look.dirty_rate)}/s become dirty and {Bytes(int(self.bandwidth))}/s are sent"
        return f"{rate}: it would {'never end' if ratio >= CONVERGES else 'not end in time'}"

    def _hint(self, stop: float) -> str:
        most = f"--max-downtime {max(10, round(stop * 1.3, 1) * 1000):.0f}ms"
        ways = [most, "--mode hybrid"] + ([] if self.terms.throttle else ["--auto-converge"])
        return f"try one of: {', '.join(ways)}" + (", more --bandwidth" if self.terms.limited else "")
