"""Joining a console's log with its live bytes, whatever the order in which things happen."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmkit.vm.console_join import PATIENCE, Joined


class Guest:
    """A guest that writes, a log that has all of it, and a pty that drops what comes before it is connected."""

    def __init__(self) -> None:
        self.log = b""
        self.in_transit = b""
        self.connected = False
        self.shown = b""
        self.joined = Joined(lambda: self.log, self._show)

    def _show(self, data: bytes) -> None:
        self.shown += data

    def write(self, data: bytes) -> None:
        self.log += data
        if self.connected:
            self.in_transit += data

    def deliver(self, count: int) -> None:
        self.joined.feed(self.in_transit[:count])
        self.in_transit = self.in_transit[count:]


def lines(seed: int, count: int) -> bytes:
    made = random.Random(seed)  # noqa: S311 - lines that differ
    return b"".join(b"[%08d] line %x\r\n" % (made.randrange(10**8), made.getrandbits(32)) for _ in range(count))


@settings(max_examples=400)
@given(
    seed=st.integers(0, 2**31),
    before=st.integers(0, 4),
    gaps=st.lists(st.integers(0, 3), max_size=6),
    after=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200)), min_size=1, max_size=8),
)
def test_nothing_is_missing_and_nothing_twice(
    seed: int, before: int, gaps: list[int], after: list[tuple[int, int]]
) -> None:
    guest = Guest()
    guest.write(lines(seed, before))
    guest.joined.begin()
    for i, count in enumerate(gaps):  # QEMU has not noticed yet that the pty is open
        guest.write(lines(seed + 1 + i, count))
        guest.joined.look()
    guest.connected = True
    for i, (count, delivered) in enumerate(after):
        guest.write(lines(seed + 100 + i, count))
        guest.deliver(delivered)
        guest.joined.look()
        guest.deliver(len(guest.in_transit))  # a round trip is shorter than the time between two looks
    for _ in range(PATIENCE + 1):
        guest.joined.look()
    assert guest.joined.live
    guest.write(b"the end\r\n")
    guest.deliver(len(guest.in_transit))
    assert guest.shown == guest.log


def test_history_is_shown_at_once_and_a_quiet_console_goes_live() -> None:
    guest = Guest()
    guest.write(b"boot\r\nlogin: ")
    guest.joined.begin()
    assert guest.shown == b"boot\r\nlogin: "
    guest.connected = True
    for _ in range(PATIENCE):
        guest.joined.look()
    guest.write(b"x")
    guest.deliver(1)
    assert guest.shown == guest.log


def test_a_short_answer_joins_at_the_end_of_the_log() -> None:
    guest = Guest()
    guest.write(b"\r\n\r\n")
    guest.joined.begin()
    guest.connected = True
    guest.write(b"\r\n")
    guest.deliver(2)
    guest.joined.look()
    assert guest.joined.live
    assert guest.shown == guest.log


def test_without_history_only_what_comes_is_shown() -> None:
    guest = Guest()
    guest.connected = True
    guest.write(b"before")
    guest.in_transit = b""
    guest.joined.skip()
    guest.write(b"after")
    guest.deliver(5)
    assert guest.shown == b"after"


@pytest.mark.parametrize(
    "question", [b"\x1b[6n", b"\x1b[c", b"\x1b[>0c", b"\x1b[5n", b"\x1bZ", b"\x1b]11;?\x07", b"\x1bc", b"\x1b[?7l"]
)
def test_history_asks_the_terminal_nothing_and_wipes_nothing(question: bytes) -> None:
    guest = Guest()
    guest.write(b"a" + question + b"b\x1b[1;31mred\x1b[0m")
    guest.joined.begin()
    assert guest.shown == b"ab\x1b[1;31mred\x1b[0m"


def test_a_log_that_cannot_be_found_holds_nothing_back_for_long() -> None:
    guest = Guest()
    guest.joined.begin()
    guest.joined.feed(b"not in the log")
    for _ in range(PATIENCE):
        guest.joined.look()
    assert guest.shown == b"not in the log"


def test_a_vm_that_is_started_anew_has_a_new_log() -> None:
    guest = Guest()
    guest.write(b"a long first run\r\n")
    guest.joined.begin()
    guest.log = b"new\r\n"
    guest.connected = True
    guest.joined.feed(b"new\r\n")
    guest.joined.look()
    assert guest.shown == b"a long first run\r\nnew\r\n"
