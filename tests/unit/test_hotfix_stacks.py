"""Words of stacks that are addresses of code, and which mappings are stacks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmkit.hotfix.stacks import loose_stacks, may_return, stack_of, words_in
from vmkit.hotfix.verify import Span, Write, spans_of
from vmkit.system.procmem import Mapping


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
        m(0xB01000, 0x10B01000, "rw-p"),  # a guest's memory
        m(0x20000000, 0x20100000, "rw-p"),  # a heap, without a guard page
    ]
    assert loose_stacks(maps, [0xA00F00]) == [(0x2000, 0x102000)]
    assert stack_of(maps, 0xA00F04) == (0xA00F00, 0xA01000)
    assert stack_of(maps, 0x3) is None


def test_code_without_a_call_has_no_return_address_in_it() -> None:
    assert not may_return(bytes.fromhex("b8ed000002c3"))
    assert may_return(bytes.fromhex("e800000000c3"))
    assert may_return(bytes.fromhex("ff94240001000090"))
