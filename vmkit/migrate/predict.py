"""Predicting a migration: total time, downtime and bytes of each technique, before anything is sent. Pure.

The model runs pre-copy round by round: a round sends what the one before left dirty, and what becomes dirty meanwhile
is read off the measured curve of distinct dirty pages over time. The curve bends where the guest begins to write the
same pages again, so its writable working set, which decides the downtime of a guest that outruns the link, is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmkit.migrate.control import CONVERGES, EXTRA_S, Terms
from vmkit.migrate.modes import Mode
from vmkit.values import Bytes, show_duration

MAX_ROUNDS: Final = 200
SETUP_S: Final = 0.8
"""What a migration takes beside the sending: both libvirts' preparation and clean-up, and the start of a QEMU at the
target. Measured 0.6 to 1 s on a quiet machine, and 2 to 5 s on one with five times as much work as CPUs."""


@dataclass(frozen=True, slots=True)
class Range:
    """A figure and how far off it may be."""

    low: float
    likely: float
    high: float

    def times(self, factor: float) -> Range:
        """All three, multiplied."""
        return Range(self.low * factor, self.likely * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Point:
    """`bytes` of distinct pages were changed within `seconds`."""

    seconds: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of the guest and of the way.

    Attributes:
        memory: of the guest, bytes.
        used: of it, what holds more than zeros: bytes that have to cross once.
        dirty: the curve of distinct dirty pages, shortest window first; empty if it could not be measured.
        bandwidth: bytes a second while the guest runs (a limit counted in).
        link: bytes a second while it stands still: QEMU lifts the limit then.
        setup, extra: seconds that the whole, and the switch-over, take beside the sending.
        sources: where each figure is from, for people.
    """

    memory: int
    used: Range
    dirty: tuple[Point, ...]
    bandwidth: Range
    link: Range
    setup: Range = Range(0.4, SETUP_S, 4.0)
    extra: Range = Range(0.03, EXTRA_S, 0.2)
    sources: tuple[tuple[str, str], ...] = ()

    @property
    def rate(self) -> float:
        """Bytes a second that become dirty, over the shortest window."""
        return self.dirty[0].bytes / self.dirty[0].seconds if self.dirty else 0.0

    @property
    def working_set(self) -> float:
        """The most that was seen to become dirty in one window, bytes."""
        return max((p.bytes for p in self.dirty), default=0.0)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one technique would come to.

    Attributes:
        mode: the technique.
        total: seconds, from the call until it returns.
        downtime: seconds that the guest stands still.
        bytes: sent in all.
        rounds: passes over the memory, the stop counted in.
        converges: it ends by itself, within the downtime budget.
        verdict: 'yes', 'no' or 'unsure': whether it keeps within the budget and the deadline.
        why: in words.
    """

    mode: Mode
    total: Range
    downtime: Range
    bytes: Range
    rounds: int
    converges: bool
    verdict: str
    why: str


@dataclass(frozen=True, slots=True)
class _Run:
    total: float
    downtime: float
    sent: float
    rounds: int
    converges: bool


def dirtied(curve: tuple[Point, ...], seconds: float, most: float, *, slope: float = 1.0) -> float:
    """Bytes of distinct pages that become dirty within `seconds`.

    Straight lines between the points; beyond the last one it goes on with `slope` times the slope of the last line,
    and never above `most`.
    """
    before = Point(0.0, 0.0)
    last = 0.0
    for point in curve:
        width = point.seconds - before.seconds
        last = max(0.0, point.bytes - before.bytes) / width if width > 0 else last
        if seconds <= point.seconds:
            return min(most, before.bytes + last * (seconds - before.seconds))
        before = Point(point.seconds, max(point.bytes, before.bytes))
    return min(most, before.bytes + slope * last * (seconds - before.seconds))


def predict(measured: Measured, terms: Terms) -> dict[Mode, Prediction]:
    """Every technique, each with its verdict under the budget and the deadline of `terms`."""
    found = {}
    for mode in (Mode.PRE_COPY, Mode.STOP_COPY, Mode.POST_COPY, Mode.HYBRID):
        runs = [_run(mode, measured, terms, which) for which in ("low", "likely", "high")]
        total = _range([r.total for r in runs])
        downtime = _range([r.downtime for r in runs])
        sent = _range([r.sent for r in runs])
        verdict, why = _verdict(mode, runs, total, downtime, sent, terms)
        if not measured.dirty and mode in (Mode.PRE_COPY, Mode.HYBRID):
            verdict, why = "unsure", f"{why}, if the guest changes nothing meanwhile: that could not be measured"
        found[mode] = Prediction(mode, total, downtime, sent, runs[1].rounds, runs[1].converges, verdict, why)
    return found


def expected(found: dict[Mode, Prediction], terms: Terms) -> Prediction:
    """What the controller would come to with these terms: the technique that it would end in."""
    if terms.mode is not Mode.AUTO:
        return found[terms.mode]
    if found[Mode.PRE_COPY].converges or not terms.post_copy:
        return found[Mode.PRE_COPY]
    return found[Mode.HYBRID]


def impossible(prediction: Prediction, terms: Terms) -> str | None:
    """Why it need not be begun: not even the most favourable case meets the deadline. None if it may."""
    if prediction.total.low <= terms.deadline:
        return None
    return (
        f"it takes {show_duration(prediction.total.low)} at the least ({show_duration(prediction.total.likely)} "
        f"likely), and {show_duration(terms.deadline)} are allowed"
    )


def _run(mode: Mode, m: Measured, terms: Terms, which: str) -> _Run:
    """One technique with the figures of one case: all low (quick), likely, or all high (slow)."""
    slow = {"low": "high", "likely": "likely", "high": "low"}[which]  # a quick case has much bandwidth
    used, setup, extra = (getattr(r, which) for r in (m.used, m.setup, m.extra))
    bandwidth, link = max(1.0, getattr(m.bandwidth, slow)), max(1.0, getattr(m.link, slow))
    link = max(link, bandwidth)
    match mode:
        case Mode.STOP_COPY:
            seconds = used / bandwidth
            return _Run(setup + seconds + extra, seconds + extra, used, 1, True)
        case Mode.POST_COPY:
            return _Run(setup + extra + used / link, extra, used, 1, True)
    factor = {"low": 0.85, "likely": 1.0, "high": 1.15}[which]
    curve = tuple(Point(p.seconds, p.bytes * factor) for p in m.dirty)
    slope = {"low": 0.0, "likely": 0.5, "high": 1.0}[which]

    def dirty(seconds: float) -> float:
        return dirtied(curve, seconds, used, slope=slope)

    if mode is Mode.HYBRID:
        return _hybrid(used, bandwidth, link, setup, extra, dirty(used / bandwidth), terms)
    return _precopy(used, bandwidth, link, setup, extra, dirty, terms)


def _hybrid(used: float, bandwidth: float, link: float, setup: float, extra: float, left: float, terms: Terms) -> _Run:
    first, rest = used / bandwidth, left / link
    short = extra + rest <= terms.budget
    return _Run(setup + first + extra + rest, extra + rest if short else extra, used + left, 2, True)


def _precopy(
    used: float,
    bandwidth: float,
    link: float,
    setup: float,
    extra: float,
    dirty: Callable[[float], float],
    terms: Terms,
) -> _Run:
    """Rounds until what is left fits into the limit that the controller allows by then."""
    small = terms.start_downtime * bandwidth
    most = max(0.0, terms.budget - extra) * link
    todo, t, sent, before = used, 0.0, 0.0, 0.0
    for number in range(1, MAX_ROUNDS):
        t += todo / bandwidth
        sent += todo
        left = dirty(todo / bandwidth)
        if left <= small:
            # QEMU looks at the dirty log as soon as what it knows of fits into the limit, and sends both in the stop
            stop = min(small, left + 0.5 * small)
            return _Run(setup + t + extra + stop / link, extra + stop / link, sent + stop, number + 1, True)
        shrinks = number < 2 or left < CONVERGES * before
        if not shrinks and (left <= most or left >= before):
            stop = extra + left / link
            return _Run(setup + t + stop, stop, sent + left, number + 1, left <= most)
        if t > terms.deadline * 2:
            break
        before, todo = left, left
    return _Run(setup + t, extra + todo / link, sent, MAX_ROUNDS, False)


def _range(values: list[float]) -> Range:
    return Range(min(values), values[1], max(values))


def _verdict(mode: Mode, runs: list[_Run], total: Range, downtime: Range, sent: Range, terms: Terms) -> tuple[str, str]:
    shape = f"{show_duration(total.likely)} in all, {show_duration(downtime.likely)} of standing still"
    fits = [r.converges and r.downtime <= terms.budget and r.total <= terms.deadline for r in runs]
    if mode is Mode.PRE_COPY and not runs[1].converges:
        left = runs[1].downtime
        shape = f"it does not converge: a stop would take {show_duration(left)}"
    verdict = "yes" if all(fits) else "unsure" if any(fits) else "no"
    return verdict, f"{shape}, {Bytes(int(sent.likely))} sent"


def describe(m: Measured) -> list[tuple[str, str, str]]:
    """(what, value, where from), for people."""
    known = dict(m.sources)
    curve = ", ".join(f"{Bytes(int(p.bytes))} in {show_duration(p.seconds)}" for p in m.dirty) or "not measured"
    return [
        ("memory in use", _span(m.used, ""), known.get("used", "")),
        ("distinct pages written", curve, known.get("dirty", "")),
        ("bandwidth", _span(m.bandwidth, "/s"), known.get("bandwidth", "")),
        ("bandwidth of the stop", _span(m.link, "/s"), known.get("link", "")),
    ]


def _span(r: Range, unit: str) -> str:
    low, likely, high = (Bytes(int(v)) for v in (r.low, r.likely, r.high))
    return f"{likely}{unit}" if low == high else f"{likely}{unit} ({low} to {high})"
