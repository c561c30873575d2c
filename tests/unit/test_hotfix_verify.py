"""What may be written, decided from values: places, states, pages, threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import RefusedError, SpecError
from vmkit.hotfix.manifest import Edit, Patch, Pattern, Range
from vmkit.hotfix.verify import (
    PAGE,
    Site,
    State,
    Write,
    check_patch,
    inside,
    judge,
    merge,
    resolve,
    spans_of,
    state_of,
    writes_back,
    writes_for,
)
from vmkit.system.elf import Binary, Segment

BUILD = "ab" * 20
BINARY = Binary(
    Path("/none"), BUILD, 0x100, "X86_64", (Segment(0, 0, 0x1000, False), Segment(0x1000, 0x1000, 0x2000, True))
)


def edit(address: int, expected: str, replacement: str, offset: int = 0) -> Edit:
    pattern = Pattern.parse(expected, path="expected")
    return Edit(address, "", 0, pattern, offset, bytes.fromhex(replacement))


def patch(*edits: Edit) -> Patch:
    return Patch("x", "x", "", "qemu", (BUILD,), edits)


class Memory:
    """A stretch of memory at an address."""

    def __init__(self, base: int, data: bytes) -> None:
        self.base = base
        self.data = bytearray(data)

    def read(self, address: int, length: int) -> bytes:
        start = address - self.base
        assert start >= 0
        assert start + length <= len(self.data)
        return bytes(self.data[start : start + length])

    def write(self, write: Write) -> None:
        start = write.address - self.base
        self.data[start : start + len(write.new)] = write.new


def test_edits_are_moved_by_the_load_bias() -> None:
    (site,) = resolve(patch(edit(0x1234, "aa bb cc", "dd", 1)), BINARY, 0x7F0000000000, "it")
    assert (site.address, site.start, site.end) == (0x7F0000001234, 0x7F0000001235, 0x7F0000001236)


@pytest.mark.parametrize("address", [0x10, 0xFFF, 0x2FFE, 0x3000, 0x400000])
def test_an_edit_outside_of_the_code_is_refused(address: int) -> None:
    with pytest.raises(SpecError) as error:
        resolve(patch(edit(address, "aa bb cc", "dd")), BINARY, 0, "it")
    assert error.value.path == "edits[0].address"


def test_another_build_is_refused() -> None:
    other = Binary(Path("/none"), "cd" * 20, None, "X86_64", BINARY.segments)
    with pytest.raises(RefusedError, match="build cdcdcdcdcdcd"):
        resolve(patch(edit(0x1000, "aa", "bb")), other, 0, "the QEMU of a")


def test_the_three_states() -> None:
    site = Site(edit(0, "11 ?? 33 44 55", "aa bb", 2), 0x1000, "edits[0]")
    assert state_of(site, bytes.fromhex("1122334455")) is State.ORIGINAL
    assert state_of(site, bytes.fromhex("119933 4455")) is State.ORIGINAL
    assert state_of(site, bytes.fromhex("1122aabb55")) is State.REPLACED
    for other in ("1022334455", "1022aabb55", "1122aabb56", "1122aa4455", "112233bb55", "1122334455ff", "1122"):
        assert state_of(site, bytes.fromhex(other)) is State.OTHER, other


def test_an_image_is_wholly_one_or_the_other() -> None:
    sites = resolve(patch(edit(0x1000, "11 22", "aa bb"), edit(0x1010, "33", "cc")), BINARY, 0, "it")
    memory = Memory(0x1000, bytes.fromhex("1122") + bytes(14) + bytes.fromhex("33") + bytes(PAGE))
    assert judge(sites, memory.read) == (State.ORIGINAL, "")
    memory.data[0:2] = b"\xaa\xbb"
    state, detail = judge(sites, memory.read)
    assert state is State.OTHER
    assert "edits[0]" in detail
    memory.data[16] = 0xCC
    assert judge(sites, memory.read) == (State.REPLACED, "")
    memory.data[16] = 0x77
    state, detail = judge(sites, memory.read)
    assert state is State.OTHER
    assert "edits[1]: 0x1010 holds 77, expected 33" in detail


def test_wrong_context_of_a_patched_place_is_what_is_shown() -> None:
    site = Site(edit(0, "11 22 33", "aa", 1), 0x1000, "edits[0]")
    memory = Memory(0x1000, bytes.fromhex("11aa99"))
    assert judge([site], memory.read) == (State.OTHER, "edits[0]: 0x1002 holds 99, expected 33")


def test_reverting_needs_to_know_what_was_there() -> None:
    sites = (Site(edit(0, "11 ?? 33", "aa bb cc"), 0x1000, "edits[0]"),)
    assert writes_back(sites, ()) is None
    recorded = (Write(0x1000, bytes.fromhex("119933"), bytes.fromhex("aabbcc")),)
    assert writes_back(sites, recorded) == (Write(0x1000, bytes.fromhex("aabbcc"), bytes.fromhex("119933")),)
    false_record = (Write(0x1000, bytes.fromhex("009933"), bytes.fromhex("aabbcc")),)
    assert writes_back(sites, false_record) is None
    concrete = (Site(edit(0, "11 22", "aa", 1), 0x1000, "edits[0]"),)
    assert writes_back(concrete, ()) == (Write(0x1001, b"\xaa", b"\x22"),)


def test_threads_inside_the_bytes() -> None:
    writes = [Write(0x1000, b"ab", b"cd"), Write(0x2000, b"a", b"c")]
    assert inside({1: 0xFFF, 2: 0x1000, 3: 0x1001, 4: 0x1002, 5: 0x2000, 6: 0x2001}, spans_of(writes)) == {
        2: 0x1000,
        3: 0x1001,
        5: 0x2000,
    }


def test_two_symbols_on_the_same_place_overlap_once_resolved() -> None:
    class Named(Binary):
        def symbol(self, name: str) -> int:
            return 0x1000 if name == "f" else 0x1002

    binary = Named(BINARY.path, BUILD, None, "X86_64", BINARY.segments)
    a = Edit(None, "f", 0, Pattern.of(b"abc"), 0, b"x")
    b = Edit(None, "g", 0, Pattern.of(b"cde"), 0, b"x")
    with pytest.raises(SpecError, match="overlap"):
        resolve(check_patch(patch(a, b)), binary, 0, "it")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Memory, tuple[Site, ...]]:
    """Three pages of memory, and edits that fit to it, some of them across page boundaries."""
    base = 0x40000
    memory = Memory(base, draw(st.binary(min_size=64, max_size=64)) * (3 * PAGE // 64))
    sites = []
    position = draw(st.integers(0, PAGE))
    for i in range(draw(st.integers(1, 5))):
        position += draw(st.integers(0, PAGE // 2))
        length = draw(st.integers(1, 64))
        if position + length > 3 * PAGE:
            break
        data = memory.read(base + position, length)
        offset = draw(st.integers(0, length - 1))
        size = draw(st.integers(1, length - offset))
        new = bytes((data[offset] ^ draw(st.integers(1, 255)),)) + draw(st.binary(min_size=size - 1, max_size=size - 1))
        sites.append(Site(Edit(base + position, "", 0, Pattern.of(data), offset, new), base + position, f"edits[{i}]"))
        position += length
    return memory, tuple(sites)


@given(cases())
def test_apply_then_revert_gives_back_every_byte(case: tuple[Memory, tuple[Site, ...]]) -> None:
    memory, sites = case
    if not sites:
        return
    original = bytes(memory.data)
    assert judge(sites, memory.read)[0] is State.ORIGINAL
    writes = writes_for(sites, memory.read)
    pages = merge(writes, memory.read)
    assert all(p.before == memory.read(p.address, PAGE) and p.before != p.after for p in pages)
    for write in writes:
        memory.write(write)
    assert all(p.after == memory.read(p.address, PAGE) for p in pages)
    touched = {p.address + i for p in pages for i in range(PAGE) if p.before[i] != p.after[i]}
    changed = {memory.base + i for i, (a, b) in enumerate(zip(original, memory.data, strict=True)) if a != b}
    assert touched == changed
    assert judge(sites, memory.read) == (State.REPLACED, "")
    back = writes_back(sites, writes)
    assert back is not None
    for write in back:
        memory.write(write)
    assert bytes(memory.data) == original


@given(cases(), st.data())
def test_one_changed_byte_is_always_noticed(case: tuple[Memory, tuple[Site, ...]], data: st.DataObject) -> None:
    memory, sites = case
    if not sites:
        return
    site = data.draw(st.sampled_from(sites))
    at = site.address - memory.base + data.draw(st.integers(0, len(site.edit.expected) - 1))
    memory.data[at] ^= data.draw(st.integers(1, 255))
    # It may only count as patched where the one byte is all that the only edit changes.
    state, detail = judge(sites, memory.read)
    if state is State.REPLACED:
        assert len(sites) == 1
        assert sum(a != b for a, b in zip(site.edit.overwritten.values, site.edit.replacement, strict=True)) == 1
    else:
        assert state is State.OTHER
        assert detail


ROOM = Range(-0x2000, 0x1000)


def test_edits_in_new_memory_are_below_the_executable() -> None:
    there = replace(patch(edit(-0x1FC0, "00 00", "90 c3"), edit(0x1100, "01", "02")), room=ROOM)
    assert [s.address for s in resolve(there, BINARY, 0x555000, "it")] == [0x555000 - 0x1FC0, 0x555000 + 0x1100]


@pytest.mark.parametrize(
    ("room", "wrong", "words"),
    [
        (ROOM, edit(-0x1FC0, "00 01", "90 c3"), "only zeros can be expected"),
        (ROOM, edit(-0x1FC0, "00 ??", "90 c3"), "only zeros can be expected"),
        (ROOM, edit(-0x1001, "00 00", "90 c3"), "and all within it"),
        (Range(0x2000, 0x1000), edit(0x2100, "00 00", "90 c3"), "overlaps what build"),
        (Range(-0x1000, 0x2000), edit(-0x800, "00 00", "90 c3"), "overlaps what build"),
        (None, edit(-0x1FC0, "00 00", "90 c3"), "not all in the code"),
    ],
)
def test_what_cannot_be_in_new_memory(room: Range | None, wrong: Edit, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        resolve(replace(patch(wrong), room=room), BINARY, 0x555000, "it")
