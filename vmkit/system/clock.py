"""Deadlines. Every wait in vmkit has one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self, TypeVar

from vmkit.errors import DeadlineError

T = TypeVar("T")


class Deadline:
    """A moment on the monotonic clock.

    Attributes:
        seconds: how much time there was at the start.
    """

    __slots__ = ("_end", "_start", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = time.monotonic()
        self._end = self._start + seconds

    @classmethod
    def after(cls, seconds: float) -> Self:
        """The moment `seconds` from now."""
        return cls(seconds)

    @property
    def left(self) -> float:
        """Seconds until the moment; 0.0 once it has passed."""
        return max(0.0, self._end - time.monotonic())

    @property
    def elapsed(self) -> float:
        """Seconds since the deadline was set."""
        return time.monotonic() - self._start

    @property
    def passed(self) -> bool:
        """Whether the moment has passed."""
        return self.left == 0.0

    def check(self, what: str) -> None:
        """Raise DeadlineError that names `what`, if the moment has passed."""
        if self.passed:
            raise DeadlineError(f"{what}: not within {self.seconds:g} s")

    def wait_for(self, what: str, probe: Callable[[], T], *, interval: float = 0.1) -> T:
        """Call `probe` until it returns something true, and return that.

        Raises:
            DeadlineError: it did not in time; the message is `what`.
        """
        while True:
            if found := probe():
                return found
            self.check(what)
            time.sleep(min(interval, self.left))


def stopwatch() -> Callable[[], float]:
    """A function that returns the seconds since this call."""
    start = time.monotonic()
    return lambda: time.monotonic() - start
