"""Judging the race of two probe guests. Pure: the clock is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PROBE_DEADLINE: Final = 180.0
"""Seconds after which a guest that has not booted is taken not to boot, while TCG has not booted one either: on a
nested host that is itself emulated KVM took 28 s and TCG more than 90 s (measured)."""
ALONE_DEADLINE: Final = 60.0
"""The same where there is no TCG guest to compare with."""
_FACTOR: Final = 2.0
_GRACE: Final = 2.0
"""KVM runs a guest several times as fast as TCG does. One that needs more than twice TCG's time, and 2 s more than it,
does not run, or runs so slowly that TCG is the better choice."""


@dataclass(frozen=True, slots=True)
class KvmVerdict:
    """Whether KVM really runs guests on a host.

    Attributes:
        works: it does.
        reason: how that is known, as part of a sentence for the plan.
        seconds: what finding out took; 0.0 where no guest had to be started.
    """

    works: bool
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Runner:
    """One of the two guests at a moment.

    Attributes:
        age: seconds since its start was asked for.
        booted: seconds from there to its first line from user space; None if there was none yet.
        failed: why it is no longer running; None while it does, and after it has booted.
    """

    age: float
    booted: float | None = None
    failed: str | None = None


def judge(kvm: Runner, tcg: Runner, seconds: float) -> KvmVerdict | None:
    """The verdict, or None while it is open. `seconds` is what the race has taken until now."""
    beside = "" if tcg.booted is None else f" (TCG took {tcg.booted:.1f} s)"
    if kvm.booted is not None:
        return KvmVerdict(True, f"a probe guest booted on KVM in {kvm.booted:.1f} s{beside}", seconds)
    if kvm.failed is not None:
        return KvmVerdict(False, f"a probe guest failed on KVM: {kvm.failed}", seconds)
    limit = ALONE_DEADLINE if tcg.failed is not None else PROBE_DEADLINE
    if tcg.booted is not None:
        limit = min(PROBE_DEADLINE, patience(tcg.booted))
    if kvm.age < limit:
        return None
    return KvmVerdict(False, f"probe guest did not boot on /dev/kvm within {kvm.age:.1f} s{beside}", seconds)


def patience(tcg: float) -> float:
    """Seconds that KVM gets where TCG needed `tcg`."""
    return max(_FACTOR * tcg, tcg + _GRACE)
