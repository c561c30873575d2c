"""The plan of an operation: what was chosen and what will be done, each line with its reason.

A plan is made by a pure function of a spec and facts, so it can be printed (`--plan`), compared in tests, and carried
out later. It holds no clock, no random value and no connection.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something else that could have been chosen, and why it was not."""

    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that was decided.

    Attributes:
        subject: what it is about, in the field's own words: 'cpu.model', 'disks[0].bus'.
        value: what was chosen.
        reason: why, as a person would say it.
        rejected: the alternatives, each with why it was not taken.
        expected: what this may cost or gain, from published figures, with their source; empty where none is known.
        measured: the same as measured on this host; empty where it was not.
    """

    subject: str
    value: str
    reason: str
    rejected: tuple[Rejected, ...] = ()
    expected: str = ""
    measured: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that will be done: `verb` ('create', 'copy', 'define'), on `what`, because of `reason`."""

    verb: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Choices, then steps in the order they are carried out. `warnings` are what the user should know beforehand."""

    title: str
    choices: tuple[Choice, ...] = ()
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()
