"""Words of stacks that are addresses of code, and which mappings are stacks."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.hotfix.stacks import CALL_LENGTH, loose_stacks, return_sites, stack_of, words_in
from vmkit.hotfix.verify import Span, Write, spans_of
from vmkit.system.process import ProcessId
from vmkit.system.procmem import Mapping, MappingTable, ProcessMemory, mappings


@given(
    st.lists(st.integers(0x7F0000000000 - 40, 0x7F0000000000 + 40) | st.integers(0, (1 << 64) - 1), max_size=64),
    st.integers(0x7F0000000000 - 32, 0x7F0000000000 + 32),
    st.integers(1, 70_000),
)
def test_every_word_within_is_found(words: list[int], start: int, length: int) -> None:
    data = b"".join(w.to_bytes(8, "little") for w in words)
    span = Span(start, length)
    assert sorted(words_in(data, [span])) == sorted(w for w in words if start <= w < start + length)


def test_spans_of_writes_and_of_what_else_has_to_be_clear() -> None:
    assert spans_of([Write(8, b"ab", b"cd")], [Span(1, 2)]) == (Span(8, 2), Span(1, 2))


def test_which_mappings_are_stacks() -> None:
    def m(start: int, end: int, permissions: str, path: str = "") -> Mapping:
        return Mapping(start, end, 0, permissions, path)

    maps = [
        m(0x1000, 0x2000, "---p"),
        m(0x2000, 0x102000, "rw-p"),  # a coroutine's
        m(0x200000, 0x201000, "---p"),
        m(0x201000, 0xA01000, "rw-p"),  # a thread's
        m(0xB00000, 0xB01000, "---p"),
        m(0xB01000, 0x10B01000, "rw-p"),  # a coroutine's that lies right below a heap, or a guest's memory
        m(0x20000000, 0x20100000, "rw-p"),  # a heap, without a guard page
        m(0x30000000, 0x30001000, "---p"),
        m(0x30001000, 0x30002000, "rw-p", "/a/file"),
        m(0x40000000, 0x40021000, "rw-p", "[stack]"),
    ]
    assert loose_stacks(maps) == [
        (0x2000, 0x102000, 0x102000),
        (0x201000, 0xA01000, 0xA01000),
        (0xB01000, 0xC01000, 0x10B01000),
        (0x40000000, 0x40021000, 0x40021000),
    ]
    assert stack_of(maps, 0xA00F04) == (0xA00F00, 0xA01000)
    assert stack_of(maps, 0x3) is None


@pytest.mark.parametrize(
    ("before", "code", "sites"),
    [
        ("90909090909090", "b8ed000002c3", []),
        ("90909090909090", "e800000000c3", [5]),  # call rel32
        ("9090e800000000", "c3", [0]),  # it returns to the first byte of what changes
        ("90909090909090", "ffd09090", [2, 3]),  # call *%rax; how long an ff /2 is is not told
        ("90909090909090", "ffe09090", []),  # jmp *%rax
        ("ff942400010000", "90", [0]),  # call *0x100(%rsp), the longest
    ],
)
def test_where_a_call_may_return_to(before: str, code: str, sites: list[int]) -> None:
    body = bytes.fromhex(before + code)
    span = Span(0x1000, len(body) - CALL_LENGTH)
    assert sorted(return_sites(body, span, "x86_64")) == [0x1000 + s for s in sites]
    assert list(return_sites(body, span, "aarch64")) == list(range(0x1000, 0x1000 + span.length))


def test_what_was_touched_of_a_mapping() -> None:
    page = mmap.PAGESIZE
    own = ProcessId.of(os.getpid())
    assert own
    with mmap.mmap(-1, 64 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area, ProcessMemory(own) as memory:
        area.madvise(mmap.MADV_NOHUGEPAGE)
        start = ctypes.addressof(view := ctypes.c_char.from_buffer(area))
        del view
        for number in (3, 4, 9):
            area[number * page] = 1
        wanted = [(start + 3 * page, start + 5 * page), (start + 9 * page, start + 10 * page)]
        assert memory.touched(start, start + 64 * page) == wanted
        assert memory.touched(start + 3 * page + 8, start + 4 * page) == [(start + 3 * page + 8, start + 4 * page)]
        assert memory.touched(start + 10 * page, start + 64 * page) == []


def test_a_table_of_mappings_follows_what_changes() -> None:
    table = MappingTable(os.getpid())
    first = table.now()
    with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ) as area:
        area[0]
        assert table.now() != first
        assert [m.end - m.start for m in table.now()] == [m.end - m.start for m in mappings(os.getpid())]
