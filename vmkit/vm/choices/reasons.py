"""Collecting choices with their reasons, in the order in which they are made."""

from __future__ import annotations

from vmkit.host.finding import Figure
from vmkit.plan import Choice, Rejected

ASKED = "asked for"


class Reasons:
    """The choices and warnings of one plan."""

    def __init__(self) -> None:
        self.choices: list[Choice] = []
        self.warnings: list[str] = []

    def chose(
        self,
        subject: str,
        value: object,
        reason: str,
        *,
        rejected: tuple[Rejected, ...] = (),
        expected: Figure | None = None,
    ) -> None:
        """Note a choice."""
        shown = f"{expected.text} [{expected.source}]" if expected else ""
        self.choices.append(Choice(subject, str(value), reason, rejected, shown))

    def warn(self, text: str) -> None:
        """Note what the user should know beforehand."""
        self.warnings.append(text)
