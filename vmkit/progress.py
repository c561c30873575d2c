"""What a long operation tells while it runs.

An operation takes a `Reporter` and calls it with events; it never prints. The command line draws the events, a test
collects them, and `silent` drops them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """A named part of the work began, as in 'kernel' or 'pre-copy'."""

    step: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Advanced:
    """How far the named part is. `done` and `total` share a unit; `total` is None where it is not known."""

    step: str
    done: float
    total: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """The named part ended well after `seconds`."""

    step: str
    seconds: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the user should read; it stays on the screen."""

    text: str
    warning: bool = False


Event = Started | Advanced | Finished | Note
Reporter = Callable[[Event], None]


def silent(_event: Event) -> None:
    """The reporter that drops everything."""
