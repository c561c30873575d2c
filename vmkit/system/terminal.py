"""A terminal that passes every key on."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator

ESCAPE = b"\x1d"
"""Ctrl-], as in virsh, telnet and docker's kin."""


_RESET = b"\x1b[0m\x1b[?25h\x1b[?7h"
"""Colours off, cursor shown, lines wrapped: a guest may have left it otherwise."""


@contextlib.contextmanager
def raw() -> Iterator[None]:
    """Have every key passed on as it is while the block runs; the terminal is put back whatever happens.

    What was typed before is kept. Nothing happens where standard input is no terminal.
    """
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd) if os.isatty(fd) else None
    try:
        if before is not None:
            tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        if before is not None:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
            if sys.stdout.isatty():
                write_out(_RESET)


def pass_through(
    send: Callable[[bytes], None], closed: Callable[[], bool], *, idle: Callable[[], None] = lambda: None
) -> str:
    """Read keys from standard input and pass them on until Ctrl-] or the end of the input. To be called within `raw`.

    Args:
        send: takes what was typed.
        closed: whether the other side is gone.
        idle: called between keys, at least every 0.2 s.

    Returns:
        'detached' (the key was pressed), 'end of input', or 'closed'.
    """
    fd = sys.stdin.fileno()
    while not closed():
        idle()
        if not select.select([fd], [], [], 0.2)[0]:
            continue
        data = os.read(fd, 4096)
        if not data:
            return "end of input"
        head, escape, _ = data.partition(ESCAPE)
        if head:
            send(head)
        if escape:
            return "detached"
    return "closed"


def write_out(data: bytes) -> None:
    """Write bytes to standard output at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]
