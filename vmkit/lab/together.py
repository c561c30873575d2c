"""Doing the same with every host of a lab at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from vmkit.errors import DeadlineError
from vmkit.progress import Finished, Reporter, Started
from vmkit.system.clock import stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


def with_all(things: Sequence[T], work: Callable[[T], None], *, what: str, timeout: float) -> None:
    """Call `work` with each thing, all at once. The first failure is raised at once.

    Threads that are still at work then are left behind; the tear-down that follows, which ends the processes that they
    wait for, ends them.

    Raises:
        DeadlineError: they were not all done within `timeout` seconds.
    """
    outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(thing: T) -> None:
        try:
            work(thing)
            outcomes.put(None)
        except BaseException as e:
            outcomes.put(e)

    for thing in things:
        threading.Thread(target=run, args=(thing,), daemon=True).start()
    for _ in things:
        try:
            failed = outcomes.get(timeout=timeout)
        except queue.Empty:
            raise DeadlineError(
                f"{what} not within {timeout:g} s", hint="the machine may be busy: see what runs (top), and try again"
            ) from None
        if failed is not None:
            raise failed


@contextmanager
def step(reporter: Reporter, name: str, text: str = "") -> Iterator[None]:
    """Tell the reporter that a part of the work began, and how long it took once it has ended well."""
    reporter(Started(name, text))
    watch = stopwatch()
    yield
    reporter(Finished(name, watch(), text))
