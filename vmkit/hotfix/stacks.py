"""Words of stacks that may be return addresses into code that changes. Pure."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

from vmkit.hotfix.verify import Span
from vmkit.system.procmem import Mapping

COROUTINE_STACK: Final = 1 << 20
"""Bytes of a coroutine's stack in QEMU (COROUTINE_STACK_SIZE in include/qemu/coroutine_int.h)."""
FIRST_STACK: Final = "[stack]"
"""What the kernel calls the stack of a process's first thread (proc_pid_maps(5))."""
CALL_LENGTH: Final = 7
"""Bytes of the longest call of x86-64 without a prefix: ff /2 with SIB and disp32 (Intel SDM vol. 2)."""
_CALL: Final = re.compile(rb"\xe8|\xff(?=[\x10-\x17\x50-\x57\x90-\x97\xd0-\xd7])", re.DOTALL)
"""`call rel32`, or `ff` with 2 in the middle bits of the byte behind it."""
STACK_LIMIT: Final = 16 << 20
"""Largest mapping that is taken for one stack that no thread is on."""


class Stack(NamedTuple):
    """Where a stack may be: from `start`, as far as `end`, in a mapping that reaches to `top`."""

    start: int
    end: int
    top: int


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
    at = bisect.bisect_right(maps, pointer, key=lambda m: m.start) - 1
    return (pointer & -8, maps[at].end) if at >= 0 and pointer < maps[at].end else None


def loose_stacks(maps: Sequence[Mapping]) -> list[Stack]:
    """Where stacks may be that no thread is on: anonymous mappings behind a guard page, those of coroutines for one.

    The first thread's own stack is one too: no thread is on it while that one is on a coroutine's. A mapping that is
    too large is a coroutine's stack that the kernel has joined with what lies above it, or no stack: then as much of it
    counts as a coroutine has.
    """
    found = []
    for before, m in itertools.pairwise(maps):
        if m.permissions != "rw-p":
            continue
        if m.path == FIRST_STACK or (m.end - m.start <= STACK_LIMIT and _guarded(before, m)):
            found.append(Stack(m.start, m.end, m.end))
        elif _guarded(before, m):
            found.append(Stack(m.start, m.start + COROUTINE_STACK, m.end))
    return found


def _guarded(before: Mapping, m: Mapping) -> bool:
    return not m.path and before.permissions == "---p" and before.end == m.start


def return_sites(code: bytes, span: Span, machine: str) -> Collection[int]:
    """Addresses of a span that a call may return to.

    Args:
        code: the bytes from CALL_LENGTH before the span to its end.
        span: where it is.
        machine: as platform.machine() says it. On x86-64 a return address follows `e8 disp32`, or `ff /2`, which has
            two to seven bytes; a call of either kind that these bytes only look like counts too. On other machines
            every address counts.
    """
    if machine != "x86_64":
        return range(span.address, span.address + span.length)
    found: set[int] = set()
    for match in _CALL.finditer(code):
        i = match.start()
        found.update((i + 5,) if code[i] == 0xE8 else range(i + 2, i + 8))
    first = span.address - CALL_LENGTH
    return frozenset(first + at for at in found if first + at in span)
