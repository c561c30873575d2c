"""The record of migrations: what was predicted and what came of it, one JSON line each, only ever appended to.

It says how good predictions have been (`vmkit migrate stats`), and what the next one can learn: bandwidth between two
hosts, memory that a VM really uses, and what a migration takes beside the sending.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from vmkit.errors import RefusedError
from vmkit.migrate.predict import Prediction, Range
from vmkit.system.files import ensure_dir, home

RECENT: Final = 10
LATEST: Final = 3
"""How many of the last migrations say what one takes beside the sending: most of it is the start of a QEMU at the
target, and that takes the longer the busier that host is."""
ENOUGH_BYTES: Final = 16 * 2**20
_TAIL: Final = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a migration ended.

    Attributes:
        result: 'arrived', 'given up', 'failed' or 'cancelled'.
        technique: how it ended: 'pre-copy', 'stop-copy', 'post-copy'.
        total_ms: of the call; transfer_ms of the sending, by libvirt's count; None if it did not say.
        downtime_ms, guest_gap_ms: how long the guest stood still, and did not answer.
        stop_bytes: what was left to send when it was stopped, as far as it was seen.
        first_pass: bytes that the first pass took; 0 if it did not end.
        limited: the user limited the bandwidth.
        budget: seconds that it might stand still.
        deadline: seconds that it might take.
    """

    result: str
    technique: str
    total_ms: int
    transfer_ms: int | None
    downtime_ms: int | None
    guest_gap_ms: float | None
    rounds: int
    bytes_sent: int
    bandwidth: int
    stop_bytes: int
    first_pass: int
    limited: bool
    budget: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the record."""

    time: str
    vm: str
    uuid: str
    source: str
    target: str
    mode: str
    predicted: dict[str, Any]
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Learned:
    """What earlier migrations tell about the next one; None where there were none.

    Attributes:
        bandwidth, link: bytes a second between the two hosts without a limit, while the guest runs and while it stands
            still.
        used: bytes of the VM's memory that had to cross.
        setup, extra: seconds beside the sending: of the whole, the start of the QEMU at the target included, and of the
            switch-over.
    """

    bandwidth: Range | None = None
    link: Range | None = None
    used: Range | None = None
    setup: Range | None = None
    extra: Range | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How good the predictions have been.

    Attributes:
        migrations: on record, whatever became of them.
        compared: of them with a prediction and a known end.
        total_error: median of |predicted - real| / real of the total time, percent; None without one to compare.
        total_error_p90: the same, 90th percentile.
        downtime_error_ms: median of |predicted - real| of the downtime.
        downtime_error_p90_ms: the same, 90th percentile.
        bytes_error: median of |predicted - real| / real of what was sent, percent.
        in_range: share of total times within the predicted range, percent.
        verdicts: how many said yes or no (not 'unsure').
        verdicts_right: share of those that came true, percent.
    """

    migrations: int
    compared: int
    total_error: float | None = None
    total_error_p90: float | None = None
    downtime_error_ms: float | None = None
    downtime_error_p90_ms: float | None = None
    bytes_error: float | None = None
    in_range: float | None = None
    verdicts: int = 0
    verdicts_right: float | None = None


def path() -> Path:
    """The file."""
    return home() / "migrations.jsonl"


def append(
    vm: str, uuid: str, source: str, target: str, mode: str, predicted: Prediction | None, outcome: Outcome
) -> None:
    """Add a line.

    Raises:
        RefusedError: the file cannot be written.
    """
    body = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "vm": vm,
        "uuid": uuid,
        "source": source,
        "target": target,
        "mode": mode,
        "predicted": plain(predicted),
        "outcome": asdict(outcome),
    }
    ensure_dir(path().parent)
    try:
        fd = os.open(path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, (json.dumps(body) + "\n").encode())  # in one piece: two processes may append at once
        finally:
            os.close(fd)
    except OSError as e:
        raise RefusedError(f"cannot add to {path()}: {e.strerror}") from e


def plain(predicted: Prediction | None) -> dict[str, Any]:
    """A prediction as JSON holds it; empty for none."""
    return {} if predicted is None else {**asdict(predicted), "mode": predicted.mode.value}


def read(most: int = 1000) -> list[Line]:
    """The last lines, oldest first. A line that is damaged, or of another version, is left out."""
    try:
        with path().open("rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - _TAIL))
            rows = f.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for row in rows:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            body = json.loads(row)
            found.append(Line(**{**body, "outcome": Outcome(**body["outcome"])}))
    return found[-most:]


def learn(lines: Iterable[Line], uuid: str, source: str, target: str) -> Learned:
    """What the record knows about moving this VM between these hosts, in whichever direction. Pure."""
    pair = {source, target}
    between = [li.outcome for li in lines if {li.source, li.target} == pair and li.outcome.result == "arrived"]
    free = [o for o in between if not o.limited and o.technique != "post-copy" and o.bytes_sent >= ENOUGH_BYTES]
    bandwidth = [float(o.bandwidth) for o in free if o.bandwidth]
    extra = [o.downtime_ms / 1000 for o in between if o.technique == "pre-copy" and o.downtime_ms is not None]
    least = min(extra, default=0.0)
    stops = [
        o.stop_bytes / max(0.001, o.downtime_ms / 1000 - least)
        for o in between
        if o.technique == "pre-copy" and o.downtime_ms and o.stop_bytes >= ENOUGH_BYTES
    ]
    setup = [o.total_ms / 1000 - o.bytes_sent / o.bandwidth for o in between if o.bandwidth and _one_way(o)]
    used = [float(li.outcome.first_pass) for li in lines if li.uuid == uuid and li.outcome.first_pass]
    return Learned(
        bandwidth=_range(bandwidth),
        link=_range([*bandwidth, *stops]),
        used=_range(used, spread=0.05),
        setup=_range([s for s in setup if s > 0][-LATEST:]),
        extra=_range(sorted(extra)[: max(3, len(extra) // 2)]),
    )


def _one_way(o: Outcome) -> bool:
    """Whether its bandwidth, which QEMU takes over the whole time in which it sends, is one of sending alone."""
    return o.technique != "post-copy" and bool(o.transfer_ms)


def accuracy(lines: list[Line]) -> Accuracy:
    """How good the predictions have been. Pure."""
    ended = [
        (li.predicted, li.outcome) for li in lines if li.predicted and li.outcome.result in ("arrived", "given up")
    ]
    arrived = [(p, o) for p, o in ended if o.result == "arrived"]
    same = [(p, o) for p, o in arrived if p["mode"] == o.technique or p["mode"] == "hybrid"]
    total = [abs(p["total"]["likely"] * 1000 - o.total_ms) / o.total_ms * 100 for p, o in same if o.total_ms]
    downtime = [abs(p["downtime"]["likely"] * 1000 - o.downtime_ms) for p, o in same if o.downtime_ms is not None]
    sent = [abs(p["bytes"]["likely"] - o.bytes_sent) / o.bytes_sent * 100 for p, o in same if o.bytes_sent]
    inside = [p["total"]["low"] <= o.total_ms / 1000 <= p["total"]["high"] for p, o in same]
    said = [(p["verdict"] == "yes", _kept(o)) for p, o in ended if p["verdict"] != "unsure"]
    return Accuracy(
        migrations=len(lines),
        compared=len(ended),
        total_error=_middle(total),
        total_error_p90=_p90(total),
        downtime_error_ms=_middle(downtime),
        downtime_error_p90_ms=_p90(downtime),
        bytes_error=_middle(sent),
        in_range=_share(inside),
        verdicts=len(said),
        verdicts_right=_share([yes == kept for yes, kept in said]),
    )


def _kept(o: Outcome) -> bool:
    """Whether it arrived within what was allowed."""
    stood = o.downtime_ms is None or o.downtime_ms <= o.budget * 1000 + 100
    return o.result == "arrived" and o.total_ms <= o.deadline * 1000 and stood


def _range(values: list[float], spread: float = 0.0) -> Range | None:
    recent = values[-RECENT:]
    if not recent:
        return None
    return Range(min(recent) * (1 - spread), statistics.median(recent), max(recent) * (1 + spread))


def _over(values: list[float], take: Callable[[list[float]], float]) -> float | None:
    return round(take(values), 1) if values else None


def _middle(values: list[float]) -> float | None:
    return _over(values, statistics.median)


def _p90(values: list[float]) -> float | None:
    return _over(values, lambda v: sorted(v)[min(len(v) - 1, int(0.9 * len(v)))])


def _share(values: list[bool]) -> float | None:
    return round(100 * sum(values) / len(values), 1) if values else None
