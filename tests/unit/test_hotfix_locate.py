"""Making a patch from bytes in an executable."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.hotfix_targets import compile_target
from vmkit.errors import NotFoundError, RefusedError, SpecError
from vmkit.hotfix.api import Hotfixes
from vmkit.hotfix.locate import find_all, make_patch
from vmkit.hotfix.manifest import Pattern, load
from vmkit.hypervisor.host import Host
from vmkit.system.elf import read_binary

ANSWER = "b8 44 33 22 11"


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    return compile_target(tmp_path_factory.mktemp("elf"))


def no_host() -> Host:
    raise AssertionError("making a patch needs no host")


def test_the_place_is_found_with_its_context(binary: Path, tmp_path: Path) -> None:
    out = tmp_path / "answer.toml"
    made = Hotfixes(no_host).make(binary, find=ANSWER, replace="b8 01", id="answer", cve="CVE-2026-1234", path=out)
    assert made.path == out
    patch = load(out)
    assert made.text == out.read_text()
    file = read_binary(binary)
    (edit,) = patch.edits
    assert (patch.build_ids, patch.cve) == ((file.build_id,), "CVE-2026-1234")
    assert edit.address is not None
    assert edit.address + edit.offset == file.symbol("answer")
    assert edit.overwritten.concrete == bytes.fromhex("b844")
    assert len(edit.expected) == 16 + 5 + 16
    segment, data = next(pair for pair in file.code() if pair[0].holds(edit.address, 1))
    assert edit.expected.matches(data[edit.address - segment.address :][: len(edit.expected)])


def test_wildcards_find_but_the_patch_expects_what_was_found(binary: Path) -> None:
    (edit,) = make_patch(binary, find="b8 44 ?? 22 11", replace="b8 44 00", patch_id="x", context=0).edits
    assert edit.expected.concrete == bytes.fromhex("b844332211")


@pytest.mark.parametrize(
    ("find", "replace", "kind", "text"),
    [
        ("de ad be ef de ad be ef", "90", NotFoundError, "nowhere in the code"),
        ("90", "91", RefusedError, "times"),
        ("?? ??", "90", SpecError, "only wildcards"),
        (ANSWER, "b8 44 33 22 11 90", SpecError, "do not fit"),
        (ANSWER, "b8 44 33 22 ??", SpecError, "no wildcards"),
        (ANSWER, ANSWER, SpecError, "cannot be told apart"),
        ("xyz", "90", SpecError, "--find"),
        (ANSWER, "", SpecError, "--replace"),
    ],
)
def test_refusals(binary: Path, find: str, replace: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        make_patch(binary, find=find, replace=replace, patch_id="x")


@pytest.mark.parametrize(("field", "value"), [("patch_id", "../x"), ("title", "two\nlines"), ("cve", "CVE")])
def test_unsound_names(binary: Path, field: str, value: str) -> None:
    with pytest.raises(SpecError):
        make_patch(binary, **{"find": ANSWER, "replace": "b8 01", "patch_id": "x", field: value})


def test_files_that_are_no_executables(tmp_path: Path, binary: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello")
    cut = tmp_path / "cut"
    cut.write_bytes(binary.read_bytes()[:100])
    for path in (text, cut, tmp_path, Path("/dev/zero")):
        with pytest.raises(RefusedError):
            make_patch(path, find=ANSWER, replace="90", patch_id="x")
    with pytest.raises(NotFoundError):
        make_patch(tmp_path / "absent", find=ANSWER, replace="90", patch_id="x")


def test_a_binary_without_a_build_id(tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    with pytest.raises(RefusedError, match="no build id"):
        read_binary(compile_target(tmp_path, flags=("-Wl,--build-id=none",)))


def test_symbols(binary: Path) -> None:
    file = read_binary(binary)
    assert file.code_at(file.symbol("straddle"), 6)
    with pytest.raises(NotFoundError):
        file.symbol("no_such_function")


def test_matches_that_overlap_are_all_found() -> None:
    assert find_all(Pattern.parse("aa aa", path=""), b"\xaa\xaa\xaa") == [0, 1]
    assert find_all(Pattern.parse("?? 0a", path=""), b"\x0a\x0a") == [0]
