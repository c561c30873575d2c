"""Sizes, names, durations and plain data."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import DeadlineError, EffectError, NotFoundError, SpecError, VmkitError
from vmkit.values import (
    NAME_LIMIT,
    Bytes,
    check_mac,
    check_name,
    parse_duration,
    quoted,
    show_duration,
    to_plain,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * 2**20),
        ("1.5G", 3 * 2**29),
        ("4 GiB", 2**32),
        ("4gb", 2**32),
        ("0", 0),
        (1000, 1000),
        ("1000", 1000),
        (" 2k ", 2048),
        ("1P", 2**50),
        ("9B", 9),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert Bytes.parse(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1M", -1, "1X", "1,5G", "1e9", "0x10", "\u0661M", "1M\n2", "9" * 40, True, "1.G"]
)
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(SpecError, match=r"disks\[1\]\.size: ") as e:
        Bytes.parse(text, path="disks[1].size")
    assert e.value.hint
    assert e.value.path == "disks[1].size"


@given(st.integers(min_value=0, max_value=2**50))
def test_every_whole_size_reads_back(size: int) -> None:
    assert Bytes.parse(str(size)) == size
    assert Bytes.parse(Bytes(size).kib * 1024) >= size


@given(st.sampled_from([2**10, 2**20, 2**30, 2**40]), st.integers(min_value=1, max_value=1023))
def test_exact_sizes_are_shown_as_they_are_read(unit: int, count: int) -> None:
    assert Bytes.parse(str(Bytes(unit * count))) == unit * count


def test_how_sizes_look() -> None:
    assert [str(Bytes(n)) for n in (0, 1023, 1024, 3 * 2**29, 2**31)] == ["0", "1023", "1K", "1.5G", "2G"]


@pytest.mark.parametrize("name", ["a", "web1", "Web-1.example_2", "9", "a" * NAME_LIMIT])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "-rf",
        "_a",
        "a b",
        "a\n",
        "a\0",
        "<x>",
        "ä",
        "a" * (NAME_LIMIT + 1),
        "x" * 300,
        "a;b",
    ],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(SpecError) as e:
        check_name(name)
    assert "\n" not in e.value.message
    assert len(e.value.message) < 160


@given(st.text())
def test_a_name_is_one_part_of_a_path(name: str) -> None:
    try:
        check_name(name)
    except SpecError:
        return
    assert (Path("/base") / name).resolve().parent == Path("/base")


def test_mac_addresses() -> None:
    assert check_mac("52:54:00:AB:CD:EF") == "52:54:00:ab:cd:ef"
    for wrong in ("", "52:54:00:ab:cd", "52-54-00-ab-cd-ef", "52:54:00:ab:cd:eg", "01:00:5e:00:00:01"):
        with pytest.raises(SpecError):
            check_mac(wrong)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), (90, 90), ("1.5", 1.5), ("500ms", 0.5), ("5m", 300), ("2min", 120), ("1h", 3600)]
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-1", "1d", "inf", "nan", "1 2", -3])
def test_what_is_no_duration(text: str | float) -> None:
    with pytest.raises(SpecError):
        parse_duration(text)


def test_how_durations_look() -> None:
    assert [show_duration(s) for s in (0.34, 12.34, 245)] == ["340 ms", "12.3 s", "4 min 05 s"]


@given(st.text(max_size=400))
def test_quoted_text_is_one_short_printable_line(text: str) -> None:
    shown = quoted(text)
    assert shown.isprintable()
    assert len(shown) < 700


def test_plain_data() -> None:
    class Colour(enum.Enum):
        RED = "red"

    @dataclass(frozen=True)
    class Thing:
        size: Bytes
        colour: Colour
        path: Path
        parts: tuple[int, ...] = (1, 2)

    assert to_plain({"t": Thing(Bytes(5), Colour.RED, Path("/x"))}) == {
        "t": {"size": 5, "colour": "red", "path": "/x", "parts": [1, 2]}
    }


def test_each_error_knows_its_kind_and_exit_code() -> None:
    assert (NotFoundError("x").kind, NotFoundError("x").exit_code) == ("not-found", 3)
    assert (SpecError("x", path="a.b").message, SpecError("x").exit_code) == ("a.b: x", 2)
    assert (
        EffectError("copy failed", left="the disk is half written").message == "copy failed; the disk is half written"
    )
    assert {VmkitError("x").exit_code, DeadlineError("x").exit_code} == {1, 5}
