"""The answer of the probe guest, as a fact."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """What the probe guest said.

    Attributes:
        works: KVM runs guests; None if that was not tried, or could not be.
        reason: how that is known, or why not.
    """

    works: bool | None
    reason: str
