"""Patch files that are made to do harm, or wrong: each is refused with its reason, and no process is touched."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest

from tests.hotfix_builds import Server, build
from tests.hotfix_targets import FakeDomain, FakeHost
from vmkit.errors import VmkitError
from vmkit.hotfix import signing
from vmkit.hotfix.api import Hotfixes
from vmkit.hotfix.manifest import EDIT_LIMIT, FILE_LIMIT
from vmkit.system.elf import Binary, read_binary
from vmkit.system.journal import records

CODE = "f3 0f 1e fa b8 01 00 00 00 c3"
"""version() of the server: endbr64; mov eax, 1; ret."""


@dataclass
class Site:
    """A running server, how its code is laid out, and a folder for files."""

    server: Server
    binary: Binary
    folder: Path
    keys: dict[str, Path]

    def at(self, symbol: str, offset: int = 0) -> str:
        return f"{self.binary.symbol(symbol) + offset:#x}"

    def code(self, symbol: str, length: int, offset: int = 0) -> str:
        address = self.binary.symbol(symbol) + offset
        segment, data = next((s, d) for s, d in self.binary.code() if s.holds(address, length))
        return data[address - segment.address : address - segment.address + length].hex(" ")

    def head(self, **changes: str) -> str:
        fields = {"id": '"x"', "title": '"x"', "target": '"qemu"', "build_ids": f'["{self.binary.build_id}"]'}
        return "".join(f"{k} = {v}\n" for k, v in (fields | changes).items())

    def edit(self, address: str, expected: str, replacement: str, offset: int = 0) -> str:
        return (
            f'[[edits]]\naddress = "{address}"\nexpected = "{expected}"\noffset = {offset}\n'
            f'replacement = "{replacement}"\n'
        )

    def version(self, replacement: str, offset: int = 0, expected: str = CODE) -> str:
        return self.edit(self.at("version"), expected, replacement, offset)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("adversary")
    home = os.environ.get("VMKIT_HOME")
    os.environ["VMKIT_HOME"] = str(folder / "home")
    keys = {
        "good": signing.keygen("good", folder / "keys", expires=None, trust=True)[0],
        "old": signing.keygen("old", folder / "keys", expires=date(2020, 1, 1), trust=True)[0],
        "stranger": signing.keygen("stranger", folder / "keys", expires=None, trust=False)[0],
        "twin": signing.keygen("good", folder / "twin", expires=None, trust=False)[0],
    }
    binary = build(folder, "victim")
    server = Server(binary)
    try:
        yield Site(server, read_binary(binary), folder, keys)
    finally:
        server.stop()
        if home is None:
            del os.environ["VMKIT_HOME"]
        else:
            os.environ["VMKIT_HOME"] = home


def good(s: Site) -> str:
    return s.head() + s.version("b8 02 00 00 00", 4)


def loop(s: Site) -> tuple[str, str, int]:
    """quota() has a loop: the address, its code, and how long."""
    length = 48
    return s.at("quota"), s.code("quota", length), length


SIGNED: dict[str, tuple[Callable[[Site], str], str]] = {
    "another build": (lambda s: good(s).replace(s.binary.build_id, "00" * 20), "is build"),
    "a build id that is cut short": (lambda s: good(s).replace(s.binary.build_id, s.binary.build_id[:38]), "is build"),
    "code of another file": (lambda s: s.head(code_sha256=f'"{"0" * 64}"') + s.version("b8 02", 4), "other code"),
    "no build": (lambda s: s.head(build_ids="[]") + s.version("b8 02 00 00 00", 4), "has to name"),
    "every build there is": (
        lambda s: s.head(build_ids="[" + ",".join(f'"{i:040x}"' for i in range(99)) + "]") + s.version("b8 02", 4),
        "has to name",
    ),
    "overlapping edits": (lambda s: good(s) + s.version("90", 9), "overlap"),
    "edits whose contexts overlap": (
        lambda s: good(s) + s.edit(s.at("version", 9), s.code("version", 8, 9), "90 90", 7),
        "overlap|reach beyond",
    ),
    "an address and a symbol for one place": (
        lambda s: good(s) + s.version("90", 9).replace(f'address = "{s.at("version")}"', 'symbol = "version"'),
        "overlap",
    ),
    "an address in data": (lambda s: s.head() + s.edit(s.at("limits"), "0a 00 00 00", "0b"), "not all in the code"),
    "an address of nothing": (lambda s: s.head() + s.edit("0x7fff0000", "0a 00", "0b"), "not all in the code"),
    "an address of the kernel": (
        lambda s: s.head() + s.edit("0xffffffff81000000", "0a 00", "0b"),
        "no user address",
    ),
    "an address at the very end": (lambda s: s.head() + s.edit("0x7fffffffffff", "0a 00", "0b"), "not all in the"),
    "the headers of the file": (lambda s: s.head() + s.edit("0x1", "45 4c 46", "00"), "not all in the code"),
    "an address of a running process": (lambda s: s.head() + s.edit("0x555555555000", "f3", "90"), "not all in the"),
    "wildcards everywhere": (lambda s: s.head() + s.version("b8 02", 4, "?? " * 10), "wildcards"),
    "wildcards over what is overwritten": (
        lambda s: s.head() + s.version("b8 02 00 00 00", 4, "f3 0f 1e fa ?? ?? ?? ?? ?? c3"),
        "wildcards",
    ),
    "expected that is in many places": (
        lambda s: s.head() + s.edit(s.at("version"), "f3 0f 1e fa", "0f 1f 40 00"),
        "more than once|ENDBR64",
    ),
    "expected that is not there": (lambda s: good(s).replace("b8 01", "b8 07"), "does not hold"),
    "one byte of context that differs": (lambda s: good(s).replace("00 c3", "00 c2"), "does not hold"),
    "too many expected bytes": (lambda s: s.head() + s.version("b8", 0, "00 " * 4097), "more than 4096"),
    "a replacement beyond what is expected": (lambda s: s.head() + s.version("90 " * 64, 4), "reach beyond"),
    "an offset beyond what is expected": (lambda s: s.head() + s.version("90", 10), "outside of"),
    "a negative offset": (lambda s: s.head() + s.version("90", -1), "outside of"),
    "a replacement that changes nothing": (lambda s: s.head() + s.version("b8 01 00 00 00", 4), "cannot be told apart"),
    "too many edits": (
        lambda s: s.head() + "".join(s.edit(hex(0x1000 + 16 * i), "01", "02") for i in range(EDIT_LIMIT + 1)),
        "1 to 64 edits",
    ),
    "across a page into data": (
        lambda s: s.head() + s.edit("0x1ffe", "00 00 00 00 00 00", "90 90 90 90 90 90"),
        "not all in the code",
    ),
    "bytes behind the code that are expected to be none": (
        lambda s: s.head() + s.edit("0x1ff0", "01 02 03 04", "90 90 90 90"),
        "only zeros|does not hold",
    ),
    "half an instruction": (lambda s: s.head() + s.version("48 b8 02 00", 4), "no whole instruction|does not end"),
    "an instruction that swallows the next": (lambda s: s.head() + s.version("e9", 9), "no whole instruction"),
    "bytes that are no instruction": (lambda s: s.head() + s.version("06 06 06 06 06", 4), "no whole instruction"),
    "ENDBR64 overwritten": (lambda s: s.head() + s.version("e9 00 00 00 00 90 90 90 90", 0), "ENDBR64"),
    "ENDBR64 overwritten by nops": (lambda s: s.head() + s.version("0f 1f 40 00", 0), "ENDBR64"),
    "over a branch's target": (
        lambda s: s.head() + s.edit(*over_a_target(s)),
        "a branch at .* leads to",
    ),
    "into the next function": (
        lambda s: s.head() + s.edit(s.at("version"), s.code("version", 40), "90 " * 36, 4),
        "next function",
    ),
    "padding between functions alone": (
        lambda s: s.head() + s.edit(s.at("version", 10), s.code("version", 6, 10), "90"),
        "no function|more than once",
    ),
    "a clear range of nothing": (lambda s: s.head(clear='["0x7000000+0x10"]') + s.version("b8 02", 4), "not all in"),
    "a clear range without end": (lambda s: s.head(clear='["0x1000+0xffffffff"]') + s.version("b8 02", 4), "no range"),
    "a clear range that is none": (lambda s: s.head(clear='["all"]') + s.version("b8 02", 4), "not a range"),
    "a symbol that is not there": (
        lambda s: s.head() + f'[[edits]]\nsymbol = "evil"\nexpected = "{CODE}"\nreplacement = "90"\n',
        "no symbol",
    ),
    "a symbol far beyond its function": (
        lambda s: s.head() + f'[[edits]]\nsymbol = "version+0x8000000"\nexpected = "{CODE}"\nreplacement = "90"\n',
        "not all in the code",
    ),
    "an id with a path": (lambda s: s.head(id='"../../etc/x"') + s.version("b8 02", 4), "id"),
    "an absolute id": (lambda s: s.head(id='"/etc/x"') + s.version("b8 02", 4), "id"),
    "another target": (lambda s: s.head(target='"firmware"') + s.version("b8 02", 4), "not a known target"),
    "the kernel without a livepatch": (lambda s: s.head(target='"kernel"') + s.version("b8 02", 4), "livepatch"),
    "a field that is not known": (lambda s: s.head(force="true") + s.version("b8 02", 4), "force"),
    "a title that moves the cursor": (lambda s: s.head(title='"\\u001b[2J"') + s.version("b8 02", 4), "title"),
}


def over_a_target(s: Site) -> tuple[str, str, str, int]:
    """An edit of quota() whose bytes another branch of it leads into, at no boundary of the new instructions."""
    from vmkit.hotfix.build.code import decode

    address, length = s.binary.symbol("quota"), 64
    insns = decode(bytes.fromhex(s.code("quota", length)), address)
    back = next(i for i in insns if i.branch_target is not None and address < i.branch_target < i.address)
    target = back.branch_target or 0
    before = next(i for i in insns if i.end == target)
    after = next(i for i in insns if i.address == target)
    size = len(before.raw) + len(after.raw)
    # One long instruction over two: lea rax, [rax+rax+0], with prefixes, or nops of that length.
    long = b"\x66" * (size - 1) + b"\x90"
    low = before.address - address
    return f"{address:#x}", s.code("quota", 40), long.hex(" "), low


def refused(s: Site, path: Path, words: str) -> None:
    """It is refused as a hot-fix of the one running server, in these words, and the server is as it was."""
    host = FakeHost([FakeDomain(s.folder, "vm0", s.server.uuid)])
    before, said = s.server.code(), s.server.tell("v")
    with pytest.raises(VmkitError, match=words) as error:
        Hotfixes(lambda: host).apply(path)  # type: ignore[arg-type,return-value]
    assert error.value.exit_code in (2, 3), error.value.message
    assert "\n" not in error.value.message
    assert error.value.message.isprintable()
    assert s.server.code() == before
    assert s.server.tell("v") == said
    assert (s.folder / "vm0.state").read_text() == "running"
    assert records() == []


@pytest.mark.parametrize("name", SIGNED)
def test_refused_although_it_is_signed(site: Site, tmp_path: Path, name: str) -> None:
    make, words = SIGNED[name]
    path = tmp_path / "x.toml"
    path.write_text(signing.sign(make(site), site.keys["good"]))
    refused(site, path, words)


UNSIGNED: dict[str, tuple[Callable[[Site], str], str]] = {
    "not signed": (good, "is not signed"),
    "an expired key": (lambda s: signing.sign(good(s), s.keys["old"]), "expired on 2020-01-01"),
    "a key that nobody trusts": (lambda s: signing.sign(good(s), s.keys["stranger"]), "not trusted"),
    "a stranger's key of a trusted name": (lambda s: signing.sign(good(s), s.keys["twin"]), "not by the key"),
    "changed after it was signed": (
        lambda s: signing.sign(good(s), s.keys["good"]).replace("b8 02", "b8 03"),
        "changed after",
    ),
    "an edit behind the signature": (
        lambda s: signing.sign(good(s), s.keys["good"]) + s.edit("0x1000", "f3", "90"),
        "not the last thing",
    ),
    "a signature from another patch": (
        lambda s: (
            good(s)
            + "\n"
            + re.findall(r"\[signature\].*", signing.sign(good(s) + "# x\n", s.keys["good"]), re.DOTALL)[0]
        ),
        "changed after",
    ),
    "a huge file": (lambda s: good(s) + "#" * FILE_LIMIT, "larger than"),
    "deep nesting": (lambda s: "x = " + "[" * 100_000, "TOML"),
    "a number of many digits": (lambda s: "x = " + "9" * 10_000, "TOML"),
    "no text": (lambda s: "\0", "TOML"),
}


@pytest.mark.parametrize("name", UNSIGNED)
def test_refused_for_its_signature_or_form(site: Site, tmp_path: Path, name: str) -> None:
    make, words = UNSIGNED[name]
    path = tmp_path / "x.toml"
    path.write_text(make(site))
    refused(site, path, words)


def test_files_that_are_none(site: Site, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "loop", tmp_path / "none", Path("/dev/zero"), Path("a\0b")):
        refused(site, path, "no regular file|not a regular file|cannot read|no patch file")


def test_the_sound_one_is_not_refused(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(signing.sign(good(site), site.keys["good"]))
    host = FakeHost([FakeDomain(site.folder, "vm0", site.server.uuid)])
    fixes = Hotfixes(lambda: host)  # type: ignore[arg-type,return-value]
    assert fixes.apply(path).state == "applied"
    assert site.server.tell("v") == "2"
    assert fixes.revert(path).state == "reverted"
    assert site.server.tell("v") == "1"


def test_there_are_many_of_them() -> None:
    assert len(SIGNED) + len(UNSIGNED) >= 40
