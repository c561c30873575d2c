"""Ctrl-C as a wish that is looked at, where an exception in the middle of the work would do harm."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_asked: list[Callable[[], str | None]] = []
"""What the blocks that are open in the main thread have yielded, innermost last."""


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], str | None]]:
    """Hold back SIGINT, SIGTERM and SIGHUP while the block runs.

    Yields a function that says which one came ('Ctrl-C', 'SIGTERM', ...), or None. Signals do not arrive outside the
    main thread: there it says what came to the block that is open in the main thread, and None if there is no such. A
    process that ignores a signal (nohup) goes on ignoring it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _asked[-1] if _asked else lambda: None
        return
    came: list[str] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

    before = {s: signal.getsignal(s) for s in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, note)
    asked: Callable[[], str | None] = lambda: came[0] if came else None  # noqa: E731
    _asked.append(asked)
    try:
        yield asked
    finally:
        _asked.remove(asked)
        for number, handler in before.items():
            signal.signal(number, handler)
