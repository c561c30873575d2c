"""Words of stacks that may be return addresses into code that changes. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from vmkit.hotfix.verify import Span
from vmkit.system.procmem import Mapping

COROUTINE_LIMIT: Final = 16 << 20
"""Largest mapping that is taken for a stack that no thread is on; QEMU's coroutines have 1 MiB (coroutine_int.h)."""


def words_in(data: bytes, spans: Sequence[Span]) -> Iterator[int]:
    """Aligned words of a piece of stack that are addresses within one of the spans. The piece begins aligned to 8."""
    blocks = {b for s in spans for b in range(s.address >> 16, ((s.address + s.length - 1) >> 16) + 1)}
    for block in sorted(blocks):
        upper = block.to_bytes(6, "little")
        at = data.find(upper)
        while at >= 0:
            if at % 8 == 2:
                value = int.from_bytes(data[at - 2 : at + 6], "little")
                if any(value in s for s in spans):
                    yield value
            at = data.find(upper, at + 1)


def stack_of(maps: Sequence[Mapping], pointer: int) -> tuple[int, int] | None:
    """From a stack pointer, aligned, to the end of the mapping that it is in; None if it is in none."""
    m = next((m for m in maps if m.start <= pointer < m.end), None)
    return (pointer & -8, m.end) if m is not None else None


def loose_stacks(maps: Sequence[Mapping], pointers: Sequence[int]) -> list[tuple[int, int]]:
    """Mappings that may be stacks that no thread is on, of coroutines for one: anonymous, behind a guard page."""
    found = []
    for guard, m in itertools.pairwise(maps):
        if (
            m.permissions == "rw-p"
            and not m.path
            and guard.permissions == "---p"
            and guard.end == m.start
            and m.end - m.start <= COROUTINE_LIMIT
            and not any(m.start <= p < m.end for p in pointers)
        ):
            found.append((m.start, m.end))
    return found


def may_return(code: bytes) -> bool:
    """Whether a call may end in the code: `code` is the span, and the seven bytes before it.

    A return address follows `e8 disp32` or an `ff /2`, whose opcode is at most seven bytes before it.
    """
    return b"\xe8" in code or b"\xff" in code
