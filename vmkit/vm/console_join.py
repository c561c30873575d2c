"""A console's log and its live bytes as one stream: from the first byte on, nothing missing, nothing twice. No I/O.

Both are needed. The log has all that was written, and is a file that somebody has to read again and again. The live
bytes come at once, but begin at a moment that nobody tells: with the opening of the pty or, before QEMU 8.2, up to a
second later, with what the guest wrote meanwhile dropped (chardev/char-pty.c).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Final

_ASKS: Final = re.compile(
    rb"\x1b\[[0-9;?>=]*[cn]|\x1bZ|\x1bc|\x1b\[\?7l|\x1b\][0-9;]*\?(?:\x07|\x1b\\)|\x1bP\+q[0-9A-Fa-f;]*\x1b\\"
)
"""Questions to a terminal, whose answers would go to the guest as if they had been typed; and what SeaBIOS begins with:
a reset, which takes the lines before it away, and an end to the wrapping of lines."""
PATIENCE: Final = 12
"""Looks after which the live bytes are taken as they come, though where they join the log was not found."""
_CERTAIN: Final = 24
"""Bytes that are not likely to be twice among the last ones of a console."""


class Joined:
    """The joint. `feed` may be called by another thread than the rest.

    Args:
        read: returns the log so far.
        write: takes what is to be shown.
    """

    def __init__(self, read: Callable[[], bytes], write: Callable[[bytes], None]) -> None:
        self._read = read
        self._write = write
        self._lock = threading.Lock()
        self._held = b""
        self._printed = 0
        self._before = 0
        self._looks = 0
        self._live = False

    @property
    def live(self) -> bool:
        """Whether the live bytes are shown as they come."""
        return self._live

    def feed(self, data: bytes) -> None:
        """Take live bytes: held back until it is known where they join the log."""
        with self._lock:
            if self._live:
                self._write(data)
            else:
                self._held += data

    def begin(self) -> None:
        """Show the log so far, without its questions to a terminal."""
        with self._lock:
            log = self._read()
            self._write(_ASKS.sub(b"", log))
            self._printed = self._before = len(log)

    def look(self) -> None:
        """Look whether the two can be joined. To be called every 0.2 s or so; does nothing once they are."""
        with self._lock:
            if self._live:
                return
            self._looks += 1
            log = self._read()
            if len(log) < self._printed:  # a new one: the VM was started anew
                self._printed = self._before = 0
            if self._held:
                self._join(log)
            elif len(log) == self._before and self._looks >= PATIENCE // 2:  # quiet
                self._go_live(log[self._printed :])
            else:
                # What the log had at the last look and was not brought since then does not come any more.
                self._write(log[self._printed : self._before])
                self._printed, self._before = max(self._printed, self._before), len(log)

    def skip(self) -> None:
        """Show the live bytes alone."""
        with self._lock:
            self._go_live(self._held)

    def _join(self, log: bytes) -> None:
        held = self._held
        at = len(log) - len(held) if log.endswith(held) else -1
        if at < 0 and (len(held) >= _CERTAIN or self._looks >= PATIENCE):
            at = log.rfind(held)
        if at >= 0:
            self._go_live(log[self._printed : at + len(held)])
        elif self._looks >= PATIENCE:
            self._go_live(held)

    def _go_live(self, last: bytes) -> None:
        self._write(last)
        self._held = b""
        self._live = True
