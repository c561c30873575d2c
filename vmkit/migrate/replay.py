"""Recordings of transfers, and what other policies would have decided on the same statistics: pure but for the file.

A recording holds what one transfer went through. Another policy's decision would have changed what came after, so each
is followed up to the first one that ends the transfer, and no further.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vmkit.errors import SpecError
from vmkit.migrate.control import AllowDowntime, Decision, GiveUp, Look, Policy, PostCopy, Round, Terms, pending
from vmkit.migrate.modes import Mode
from vmkit.migrate.policies import FORCED, policies
from vmkit.system.files import open_regular, write_atomic
from vmkit.values import Bytes, show_duration

FORMAT: Final = 1
_LIMIT: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Made:
    """A decision, and when."""

    t: float
    what: str
    why: str


@dataclass(slots=True)
class Recording:
    """One transfer.

    Attributes:
        vm: its name.
        terms: what the controller was allowed to do.
        looks: the statistics.
        made: what was decided.
        outcome: how it ended: `result` ('arrived', 'given up', 'failed'), `total_ms`, `downtime_ms`, `guest_gap_ms`.
        predicted: what had been expected, as vmkit.migrate.record stores it; empty if nothing was.
    """

    vm: str
    terms: Terms
    looks: list[Look] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    outcome: dict[str, Any] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one policy would have made of a recording.

    Attributes:
        policy: its name.
        end: 'switch', 'post-copy', 'give up', or 'goes on' if the recording ends first.
        t: seconds into the transfer.
        downtime_ms: how long the stop would take, estimated from what was left and the link; None without a stop.
        why: in the policy's words.
        decisions: how many it took up to there.
    """

    policy: str
    end: str
    t: float
    downtime_ms: int | None
    why: str
    decisions: int


def describe(decision: Decision) -> str:
    """As a recording and a note name it."""
    match decision:
        case AllowDowntime(seconds):
            return f"allow {round(seconds * 1000)} ms"
        case PostCopy():
            return "post-copy"
        case GiveUp():
            return "give up"


def replay(recording: Recording, policy: Policy) -> Replayed:
    """Show a policy the recorded looks one by one, with QEMU's own rule for the switch-over beside it."""
    terms = recording.terms
    allowed, taken = policy.start_downtime, 0
    carried = max([terms.link or 0, *(look.bandwidth for look in recording.looks)]) or 1
    t, iteration = 0.0, 1
    rounds: list[Round] = []
    # from the first decision on that was carried out, the recording shows what came of that one
    steered = min((m.t for m in recording.made), default=float("inf"))
    for look in recording.looks:
        if look.t > steered:
            return Replayed(policy.name, "goes on", t, None, "from here on the recording was steered otherwise", taken)
        t = look.t
        if look.iteration > iteration:
            rounds.append(Round(look.t, look.remaining))
            iteration = look.iteration
        decision = policy.step(look)
        taken += decision is not None
        match decision:
            case AllowDowntime(seconds):
                allowed = seconds
            case PostCopy(why):
                return Replayed(policy.name, "post-copy", t, None, why, taken)
            case GiveUp(why):
                return Replayed(policy.name, "give up", t, None, why, taken)
        left = pending(look, rounds)
        # near the end of a round QEMU looks at the dirty log anew before it stops the guest
        if rounds and (left <= look.bandwidth * allowed or allowed >= FORCED):
            why = f"{Bytes(left)} fit into the {show_duration(allowed)} allowed"
            return Replayed(policy.name, "switch", t, round((terms.extra + left / carried) * 1000), why, taken)
    return Replayed(policy.name, "goes on", t, None, "the recording ends here", taken)


def replay_all(recording: Recording) -> list[Replayed]:
    """Every policy there is."""
    return [replay(recording, policy) for policy in policies(recording.terms)]


def save(recording: Recording, path: Path) -> None:
    """Write a recording.

    Raises:
        RefusedError: the file cannot be written.
    """
    body = {
        "format": FORMAT,
        "vm": recording.vm,
        "terms": recording.terms.plain(),
        "predicted": recording.predicted,
        "outcome": recording.outcome,
        "made": [{"t": m.t, "what": m.what, "why": m.why} for m in recording.made],
    }
    looks = ",\n  ".join(json.dumps(look.plain()) for look in recording.looks)  # one a line: easier to read and compare
    write_atomic(path, json.dumps(body, indent=1).removesuffix("\n}") + f',\n "looks": [\n  {looks}\n ]\n}}\n')


def load(path: Path) -> Recording:
    """Read a recording.

    Raises:
        NotFoundError, RefusedError: there is no such file, or it cannot be read.
        SpecError: it is not a recording.
    """
    with open_regular(path, "recording", limit=_LIMIT) as f:
        raw = f.read()
    try:
        body = json.loads(raw)
        if body["format"] != FORMAT:
            raise SpecError(f"format {body['format']} is not known", path=str(path), hint="use the vmkit that wrote it")
        curve = tuple((float(t), float(size)) for t, size in body["terms"]["curve"])
        terms = Terms(**{**body["terms"], "mode": Mode(body["terms"]["mode"]), "curve": curve})
        looks = [Look(**look) for look in body["looks"]]
        made = [Made(**m) for m in body["made"]]
        return Recording(str(body["vm"]), terms, looks, made, dict(body["outcome"]), dict(body["predicted"]))
    except (ValueError, KeyError, TypeError) as e:
        raise SpecError(f"it is not a recording of vmkit migrate ({e})", path=str(path)) from e
