"""What advice is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Level(Enum):
    """How much a finding matters."""

    PROBLEM = "problem"
    """Guests do not run, or not as they should."""
    GAP = "gap"
    """Something that this host could do, or that costs much, is not there."""
    NOTE = "note"
    """Worth knowing; may well be meant so."""
    OK = "ok"
    """As it should be."""


ORDER: Final = tuple(Level)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, and where it is from."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One judgement about a host.

    Attributes:
        id: short name that does not change between versions: 'iommu-off'.
        area: 'cpu', 'kvm', 'memory', 'iommu', 'sriov', 'io', 'system', 'libvirt', 'migration'.
        level: how much it matters.
        what: one line: what is so.
        cost: what that costs; empty where it costs nothing.
        fix: commands or firmware settings that mend it, one a line; empty where there is nothing to mend.
        source: where a figure in `cost` is from; empty where there is none.
    """

    id: str
    area: str
    level: Level
    what: str
    cost: str = ""
    fix: tuple[str, ...] = ()
    source: str = ""


def counted(number: int, what: str) -> str:
    """'1 core', '2 cores'."""
    return f"{number} {what}{'' if number == 1 else 's'}"
