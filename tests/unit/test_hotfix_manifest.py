"""Patch files: sound ones come back as they were written, and every kind of unsound one is refused with its field."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import NotFoundError, RefusedError, SpecError
from vmkit.hotfix.manifest import EDIT_LIMIT, FILE_LIMIT, Edit, Patch, Pattern, load, parse, render

BUILD = "0fbbd5ca8d2d0a32532049e20739f3e0d521c5ed"
HEAD = f'id = "edu-id"\ntitle = "edu"\ntarget = "qemu"\nbuild_ids = ["{BUILD}"]\n'
EDIT = (
    '[[edits]]\naddress = "0x5d81e0"\nexpected = "55 b8 ed 00 00 01 c3"\noffset = 1\nreplacement = "b8 ed 00 00 02"\n'
)
GOOD = HEAD + EDIT


def test_a_sound_file() -> None:
    patch = parse(GOOD)
    assert (patch.id, patch.title, patch.target, patch.build_ids, patch.cve) == ("edu-id", "edu", "qemu", (BUILD,), "")
    (edit,) = patch.edits
    assert edit.address == 0x5D81E0
    assert edit.expected.values == bytes.fromhex("55b8ed000001c3")
    assert edit.overwritten.concrete == bytes.fromhex("b8ed000001")
    assert edit.replacement == bytes.fromhex("b8ed000002")


def test_symbols_wildcards_integers_and_a_cve() -> None:
    text = HEAD + 'cve = "CVE-2026-12345"\n' + EDIT.replace('address = "0x5d81e0"', 'symbol = "edu_mmio_read+0x1c"')
    patch = parse(text.replace("00 00 01", "??00 01"))
    assert patch.cve == "CVE-2026-12345"
    (edit,) = patch.edits
    assert (edit.symbol, edit.symbol_offset, edit.address) == ("edu_mmio_read", 0x1C, None)
    assert str(edit.expected) == "55 b8 ed ?? 00 01 c3"
    assert edit.overwritten.concrete is None
    assert parse(GOOD.replace('"0x5d81e0"', "0x5d81e0")).edits[0].address == 0x5D81E0


BAD = {
    "not TOML": ("id = ", ""),
    "empty": ("", ""),
    "binary": ("\0\1\2", ""),
    "nested too deeply": ("a = " + "[" * 20000, ""),
    "an integer of 5000 digits": (GOOD.replace("offset = 1", "offset = " + "9" * 5000), ""),
    "a huge offset": (GOOD.replace("offset = 1", "offset = " + "9" * 40), "edits[0].offset"),
    "an unknown field": (HEAD + 'colour = "red"\n' + EDIT, ""),
    "an unknown field of an edit": (GOOD + "force = true\n", "edits[0]"),
    "no id": (GOOD.replace('id = "edu-id"\n', ""), ""),
    "an id that climbs": (GOOD.replace("edu-id", "../../etc/passwd"), "id"),
    "an id with a slash": (GOOD.replace("edu-id", "a/b"), "id"),
    "a hidden id": (GOOD.replace("edu-id", ".ssh"), "id"),
    "an id with a newline": (GOOD.replace("edu-id", "a\\nb"), "id"),
    "an id of 300 characters": (GOOD.replace("edu-id", "a" * 300), "id"),
    "an empty id": (GOOD.replace("edu-id", ""), "id"),
    "an id that is a number": (GOOD.replace('"edu-id"', "7"), "id"),
    "a title of two lines": (GOOD.replace('title = "edu"', 'title = "a\\nb"'), "title"),
    "a title that colours the terminal": (GOOD.replace('title = "edu"', 'title = "\\u001b[31m"'), "title"),
    "an empty title": (GOOD.replace('title = "edu"', 'title = " "'), "title"),
    "a CVE that is none": (HEAD + 'cve = "CVE-1"\n' + EDIT, "cve"),
    "another target": (GOOD.replace('"qemu"', '"linux"'), "target"),
    "no builds": (GOOD.replace(f'["{BUILD}"]', "[]"), "build_ids"),
    "builds that are text": (GOOD.replace(f'["{BUILD}"]', f'"{BUILD}"'), "build_ids"),
    "a build that is not hexadecimal": (GOOD.replace(BUILD, "zz" * 20), "build_ids[0]"),
    "a build that is too short": (GOOD.replace(BUILD, "0f"), "build_ids[0]"),
    "half a byte of a build": (GOOD.replace(BUILD, BUILD + "a"), "build_ids[0]"),
    "a build twice": (GOOD.replace(f'"{BUILD}"', f'"{BUILD}", "{BUILD.upper()}"'), "build_ids[1]"),
    "no edits": (HEAD + "edits = []\n", "edits"),
    "edits that are a table": (HEAD + "[edits]\naddress = 1\n", "edits"),
    "too many edits": (HEAD + EDIT * (EDIT_LIMIT + 1), "edits"),
    "neither address nor symbol": (GOOD.replace('address = "0x5d81e0"\n', ""), "edits[0]"),
    "address and symbol": (GOOD + 'symbol = "main"\n', "edits[0]"),
    "an address of zero": (GOOD.replace('"0x5d81e0"', "0"), "edits[0].address"),
    "a negative address": (GOOD.replace('"0x5d81e0"', "-4096"), "edits[0].address"),
    "a kernel address": (GOOD.replace("0x5d81e0", "0xffffffff81000000"), "edits[0].address"),
    "an address that is a float": (GOOD.replace('"0x5d81e0"', "1.5"), "edits[0].address"),
    "an address that is a word": (GOOD.replace("0x5d81e0", "main"), "edits[0].address"),
    "a symbol with a path in it": (GOOD.replace('address = "0x5d81e0"', 'symbol = "../x"'), "edits[0].symbol"),
    "a symbol with a huge offset": (GOOD.replace('address = "0x5d81e0"', f'symbol = "f+{9**20}"'), "edits[0].symbol"),
    "expected that is empty": (GOOD.replace("55 b8 ed 00 00 01 c3", " "), "edits[0].expected"),
    "expected with half a byte": (GOOD.replace("55 b8", "5 b8"), "edits[0].expected"),
    "expected with half a wildcard": (GOOD.replace("55 b8", "?5 b8"), "edits[0].expected"),
    "expected with full-width digits": (GOOD.replace("55 b8", "\uff15\uff15 b8"), "edits[0].expected"),
    "expected that is too long": (GOOD.replace("55 b8", "55 " * 5000 + "b8"), "edits[0].expected"),
    "expected that is a number": (GOOD.replace('"55 b8 ed 00 00 01 c3"', "55"), "edits[0].expected"),
    "wildcards all over the overwritten range": (GOOD.replace("b8 ed 00 00 01", "?? ?? ?? ?? ??"), "edits[0].expected"),
    "a wildcard in the replacement": (GOOD.replace("b8 ed 00 00 02", "b8 ed 00 00 ??"), "edits[0].replacement"),
    "a replacement that is empty": (GOOD.replace("b8 ed 00 00 02", ""), "edits[0].replacement"),
    "a replacement that reaches out": (GOOD.replace("b8 ed 00 00 02", "b8 " * 7), "edits[0].replacement"),
    "a replacement that changes nothing": (GOOD.replace("00 02", "00 01"), "edits[0].replacement"),
    "a replacement that a wildcard takes": (GOOD.replace("00 01 c3", "00 ?? c3"), "edits[0].replacement"),
    "a negative offset": (GOOD.replace("offset = 1", "offset = -1"), "edits[0].offset"),
    "an offset at the end": (GOOD.replace("offset = 1", "offset = 7"), "edits[0].offset"),
    "an offset that is text": (GOOD.replace("offset = 1", 'offset = "1"'), "edits[0].offset"),
    "a room that is no range": (HEAD + 'room = "0x1000"\n' + EDIT, "room"),
    "a room of half a page": (HEAD + 'room = "-0x2000+0x800"\n' + EDIT, "room"),
    "a room that begins in a page": (HEAD + 'room = "-0x1800+0x1000"\n' + EDIT, "room"),
    "a room that is too large": (HEAD + 'room = "-0x800000+0x200000"\n' + EDIT, "room"),
    "a room that is too far away": (HEAD + 'room = "-0x80000000+0x1000"\n' + EDIT, "room"),
    "an edit below its room": (
        HEAD + 'room = "-0x2000+0x1000"\n' + EDIT.replace("0x5d81e0", "-0x2008"),
        "edits[0].address",
    ),
    "the same edit twice": (GOOD + EDIT, "edits[1]"),
    "edits that overlap by one byte": (GOOD + EDIT.replace("5d81e0", "5d81e6"), "edits[1]"),
    "an edit that begins inside another": (GOOD + EDIT.replace("5d81e0", "5d81da"), "edits[0]"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unsound_file_is_refused_with_its_field(name: str) -> None:
    text, path = BAD[name]
    with pytest.raises(SpecError) as error:
        parse(text)
    assert error.value.path == path, error.value.message
    assert "\n" not in error.value.message
    assert len(error.value.message) < 600
    assert error.value.message.isprintable()


def test_neighbouring_edits_do_not_overlap() -> None:
    assert len(parse(GOOD + EDIT.replace("5d81e0", "5d81e7")).edits) == 2


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load(tmp_path / "absent.toml")
    with pytest.raises(RefusedError):
        load(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RefusedError):
        load(tmp_path / "fifo")
    with pytest.raises(RefusedError):
        load(Path("/dev/zero"))
    with pytest.raises(RefusedError):
        load(Path("a\0b"))
    latin = tmp_path / "latin.toml"
    latin.write_bytes(GOOD.encode() + b"# \xe4\n")
    with pytest.raises(SpecError):
        load(latin)
    huge = tmp_path / "huge.toml"
    huge.write_text(GOOD + "#" * FILE_LIMIT)
    with pytest.raises(RefusedError):
        load(huge)


@given(st.text(max_size=400))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse(text)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 8), st.text(max_size=8))
def test_no_damage_to_a_sound_file_gets_through_as_anything_else(at: int, length: int, text: str) -> None:
    try:
        patch = parse(GOOD[:at] + text + GOOD[at + length :])
    except SpecError:
        return
    assert parse(render(patch)) == patch


@st.composite
def edits(draw: st.DrawFn, index: int) -> Edit:
    data = draw(st.binary(min_size=1, max_size=40))
    known = tuple(draw(st.lists(st.booleans(), min_size=len(data), max_size=len(data))))
    offset = draw(st.integers(0, len(data) - 1))
    length = draw(st.integers(1, len(data) - offset))
    known = (*known[:offset], True, *known[offset + 1 :])
    replacement = (
        bytes((data[offset] ^ draw(st.integers(1, 255)),)) + draw(st.binary(min_size=length, max_size=length))[1:]
    )
    values = bytes(v if k else 0 for v, k in zip(data, known, strict=True))
    address = None if draw(st.booleans()) else 0x1000 + 100 * index + draw(st.integers(0, 50))
    symbol = "" if address is not None else f"f{index}"
    return Edit(address, symbol, draw(st.integers(0, 99)) if symbol else 0, Pattern(values, known), offset, replacement)


@given(st.data())
def test_a_rendered_patch_reads_back_the_same(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    patch = Patch("x", "t", "", "qemu", (BUILD,), tuple(data.draw(edits(i)) for i in range(count)))
    assert parse(render(patch)) == patch
