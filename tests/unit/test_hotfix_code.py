"""Machine code as values, judged without a process: forms, bounds of functions, and what may be written where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import RefusedError, SpecError, VmkitError
from vmkit.hotfix.build.code import Body, base_name, decode
from vmkit.hotfix.build.frames import function_bounds
from vmkit.hotfix.build.program import Named, Program, Section
from vmkit.hotfix.codemap import CodeMap
from vmkit.hotfix.manifest import Edit, Patch, Pattern, Range, parse, render
from vmkit.hotfix.soundness import check_code
from vmkit.hotfix.verify import Site, check_patch

BUILD = "ab" * 20
# endbr64; xor eax, eax; loop: add eax, edi; dec edi; jne loop; ret
COUNT = bytes.fromhex("f30f1efa 31c0 01f8 ffcf 75fa c3")
# endbr64; mov eax, 1; ret
ONE = bytes.fromhex("f30f1efa b801000000 c3")
TEXT = COUNT.ljust(32, b"\xcc") + ONE.ljust(32, b"\xcc") + bytes.fromhex("e8d7ffffff c3").ljust(32, b"\xcc")
CODE = CodeMap(((0x1000, TEXT),), ((0x1000, len(COUNT)), (0x1020, len(ONE)), (0x1040, 6)))


def site(address: int, replacement: bytes, *, before: int = 0, after: int = 0) -> Site:
    low = address - before - 0x1000
    expected = TEXT[low : low + before + len(replacement) + after]
    edit = Edit(0x1000 + low, "", 0, Pattern.of(expected), before, replacement)
    return Site(edit, 0x1000 + low, "edits[0]")


def judge(*sites: Site, clear: tuple[Range, ...] = ()) -> None:
    patch = check_patch(Patch("x", "x", "", "qemu", (BUILD,), tuple(s.edit for s in sites), clear))
    check_code(patch, sites, CODE, "it")


def test_sound_ones() -> None:
    judge(site(0x1025, b"\x02", before=1))
    judge(site(0x1024, bytes.fromhex("b802000000")))
    judge(site(0x1006, bytes.fromhex("29f8ffcf75fa"), before=2))
    judge(site(0x1004, bytes.fromhex("31d2"), after=2))
    judge(site(0x1024, bytes.fromhex("31c0ffc0c3cc")))  # all of it but ENDBR64


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (site(0x1020, bytes.fromhex("90909090")), "ENDBR64"),
        (site(0x100B, b"\xf9", before=3), "middle of an instruction"),
        (site(0x1024, bytes.fromhex("48b802000000"), after=2), "no whole instruction"),
        (site(0x1029, bytes.fromhex("06")), "no whole instruction"),
        (site(0x1004, bytes.fromhex("b800000000 90")), "a branch at 0x100a leads to 0x1006"),
        (site(0x1024, b"\x90" * 40), "next function"),
        (site(0x1030, b"\x90\x90"), "no function"),
    ],
)
def test_unsound_ones(one: Site, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        judge(one)


def test_a_call_from_elsewhere_into_the_middle() -> None:
    (found,) = CODE.branches_into(0x101C, 0x101D)
    assert found == (0x1040, 0x101C)


def test_other_code_than_it_was_made_from() -> None:
    one = site(0x1025, b"\x02", before=1)
    patch = Patch("x", "x", "", "qemu", (BUILD,), (one.edit,), (), "0" * 64)
    with pytest.raises(RefusedError, match="other code"):
        check_code(patch, [one], CODE, "it")
    check_code(Patch("x", "x", "", "qemu", (BUILD,), (one.edit,), (), CODE.digest), [one], CODE, "it")


def test_ranges_to_be_clear_are_in_the_code() -> None:
    judge(site(0x1025, b"\x02", before=1), clear=(Range(0x1000, 96),))
    with pytest.raises(SpecError) as error:
        judge(site(0x1025, b"\x02", before=1), clear=(Range(0x1000, 97),))
    assert error.value.path == "clear[0]"


@given(st.integers(0x1000, 0x105F), st.binary(min_size=1, max_size=24), st.integers(0, 8), st.integers(0, 8))
def test_what_gets_through_is_whole_instructions(at: int, replacement: bytes, before: int, after: int) -> None:
    before = min(before, at - 0x1000)
    end = min(len(TEXT), at - 0x1000 + len(replacement))
    replacement = replacement[: end - (at - 0x1000)]
    one = site(at, replacement, before=before, after=after)
    try:
        judge(one)
    except VmkitError:
        return
    start, size = next(f for f in CODE.functions if f[0] <= at < f[0] + 32)
    code = bytearray(TEXT)
    code[at - 0x1000 : end] = replacement
    insns = decode(bytes(code[start - 0x1000 : start - 0x1000 + 32]), start)
    marks = {i.address for i in insns}
    old = {i.address for i in decode(TEXT[start - 0x1000 : start - 0x1000 + 32], start)} | {start + 32}
    assert min(m for m in old if m >= end + 0x1000) in marks | {start + 32}
    assert not any(i.mnemonic == ".byte" for i in insns if i.address < start + size)
    if TEXT[start - 0x1000 :].startswith(b"\xf3\x0f\x1e\xfa"):
        assert insns[0].mnemonic == "endbr64"


@given(st.lists(st.tuples(st.integers(1, 1 << 46), st.integers(1, 1 << 20)), max_size=8))
def test_ranges_come_back_from_a_file(ranges: list[tuple[int, int]]) -> None:
    patch = Patch(
        *("x", "x", "", "qemu", (BUILD,), (site(0x1025, b"\x02").edit,)),
        tuple(Range(a, n) for a, n in ranges),
        "ab" * 32,
    )
    assert parse(render(patch)) == patch


def program(base: int, text: bytes, functions: tuple[Named, ...], data: bytes = b"\0" * 64) -> Program:
    sections = (
        Section(".text", base, len(text), text, False, True),
        Section(".rodata", base + 0x1000, len(data), data, False, False),
        Section(".data", base + 0x2000, 64, bytes(64), True, False),
    )
    objects = (Named(base + 0x2000, 4, "limit"),)
    return Program(Path("/none"), BUILD, False, False, (), sections, functions, objects)


def test_the_form_of_a_function_does_not_depend_on_where_things_lie() -> None:
    # lea rdi, [text]; call g; mov eax, [limit]; ret   and g: ret
    def one(base: int, g: int, at: int) -> Program:
        call = g - (base + 12)
        raw = (
            b"\x48\x8d\x3d"
            + (base + 0x1000 + at - (base + 7)).to_bytes(4, "little")
            + b"\xe8"
            + call.to_bytes(4, "little", signed=True)
            + b"\x8b\x05"
            + (base + 0x2000 - (base + 18)).to_bytes(4, "little")
            + b"\xc3"
        )
        text = raw.ljust(g - base, b"\xcc") + b"\xc3"
        data = bytes(at) + b"hello\n\0" + bytes(8)
        return program(base, text, (Named(base, len(raw), "f"), Named(g, 1, "g")), data)

    a, b = one(0x10000, 0x10020, 0), one(0x50000, 0x50080, 16)
    form = Body(a, a.functions[0]).form()
    assert form == Body(b, b.functions[0]).form()
    assert form[0] == r"lea rdi, ['hello\n']"
    assert form[1:] == ("call g", "mov eax, dword ptr [limit]", "ret")


def test_names_without_the_numbers_of_clones() -> None:
    assert base_name("copy.constprop.0") == base_name("copy.constprop.12") == "copy.constprop"
    assert base_name("counter.3") == "counter"
    assert base_name("f.cold") == "f.cold"


@given(st.binary(max_size=200))
def test_damaged_frames_end_the_reading(data: bytes) -> None:
    assert all(length > 0 for _, length in function_bounds(data, 0x1000))


@given(st.binary(max_size=64))
def test_any_bytes_decode_to_their_length(data: bytes) -> None:
    assert b"".join(i.raw for i in decode(data, 0x1000)) == data
