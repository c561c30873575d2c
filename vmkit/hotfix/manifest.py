"""The patch file: which code, in which build, is to become what.

::

    id = "edu-id"                        # a name; also the name of the undo record
    title = "edu: identify as revision 2"
    cve = "CVE-2026-12345"               # optional
    target = "qemu"
    build_ids = ["0fbbd5ca8d2d0a32..."]  # of the executables that the addresses are true for
    code_sha256 = "9f2c..."              # optional; of the executable segments that the patch was made from
    clear = ["0x6a1f00+0x85"]            # optional; link-time address and length of code that no thread may stand in
    room = "-0x1800000+0x2000"           # optional; memory that the process has to map first, for new code, as far from
                                         # its executable as is said: of position-independent ones below address 0

    [[edits]]
    address = "0x6a1f30"                 # where `expected` begins, as readelf and objdump print addresses (link time);
    # symbol = "edu_mmio_read+0x1c"      # or a symbol of the executable, with an optional offset
    expected = "48 89 e5 b8 ed 00 00 01 5d c3"   # what memory has to hold; ?? stands for any byte
    offset = 3                           # where in `expected` the replacement begins (default 0)
    replacement = "b8 ed 00 00 02"       # no wildcards; the same length as what it replaces

    [signature]                          # optional, at the very end; see vmkit.hotfix.signing
    key = "ops"
    value = "base64..."

With `target = "kernel"` functions of a module of the running kernel are replaced, by a livepatch module that is in the
file. `build_ids` are then those of that module, edits have `symbol` and `expected` alone, and there is no `room`,
`clear` or `code_sha256`, but::

    [livepatch]
    release = "6.12.107+deb13-amd64"     # of the kernel
    object = "kvm"                       # the module whose functions the edits name
    name = "vmkit_cpuid"                 # of the livepatch module
    sha256 = "9f2c..."                   # of it
    data = "base64..."                   # the module, deflated

`expected` covers every byte that is overwritten and as much around it as the author wants to be sure of. No thread may
stand in, or return to, a byte that is overwritten; `clear` says where else, because the code there does not go on well
with what is written.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vmkit.errors import SpecError
from vmkit.hotfix.document import RawEdit, RawPatch, read_document
from vmkit.system.files import open_regular
from vmkit.values import check_name, quoted

FILE_LIMIT: Final = 1 << 20
"""Largest patch file, bytes."""
EDIT_LIMIT: Final = 64
LENGTH_LIMIT: Final = 4096
"""Most bytes of `expected` in one edit: a page of x86-64. The range may straddle two pages."""
PAGE: Final = 4096
CLEAR_LIMIT: Final = 256
CLEAR_LENGTH_LIMIT: Final = 1 << 20
"""Longest range of `clear`, bytes: well above the longest function."""
ROOM_LIMIT: Final = 1 << 20
"""Largest room for new code, bytes."""
REACH: Final = 1 << 31
"""Direct branches of x86-64 reach no farther, bytes."""
ADDRESS_LIMIT: Final = 1 << 47
"""User addresses of x86-64 with four-level page tables end here (Documentation/arch/x86/x86_64/mm.rst)."""

_BUILD_ID = re.compile(r"[0-9a-f]{16,128}\Z")
_CVE = re.compile(r"CVE-\d{4}-\d{4,19}\Z", re.ASCII)
SYMBOL: Final = re.compile(r"([A-Za-z_.$][A-Za-z0-9_.$@]{0,511})(?:\+(0x[0-9a-fA-F]{1,8}|\d{1,9}))?\Z", re.ASCII)
_ADDRESS = re.compile(r"(-?)(?:0x)?([0-9a-fA-F]{1,16})\Z", re.ASCII)
_HEX = re.compile(r"[0-9a-fA-F]+\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_RANGE = re.compile(r"(-?)0x([0-9a-f]{1,16})\+0x([0-9a-f]{1,8})\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Bytes, some of which may be anything.

    Attributes:
        values: the bytes; 0 where anything goes.
        known: for each byte, whether it counts.
    """

    values: bytes
    known: tuple[bool, ...]

    @classmethod
    def parse(cls, text: str, *, path: str) -> Pattern:
        """Read `b8 ed ?? 01`; spaces between bytes are optional.

        Raises:
            SpecError: it is not that, or it is empty or longer than LENGTH_LIMIT.
        """
        if len(text) > LENGTH_LIMIT * 4:
            raise SpecError(f"more than {LENGTH_LIMIT} bytes", path=path, hint="split it into several edits")
        values = bytearray()
        known = []
        tokens = text.split()
        if _HEX.match(joined := "".join(tokens)) and not any(len(t) % 2 for t in tokens):
            values, tokens = bytearray.fromhex(joined), []  # new code may be long
            known = [True] * len(values)
        for token in tokens:
            for i in range(0, len(token), 2):
                pair = token[i : i + 2]
                if not re.fullmatch(r"[0-9a-fA-F]{2}|\?\?", pair, re.ASCII):
                    raise SpecError(
                        f"{quoted(pair)} is not a byte",
                        path=path,
                        hint="write pairs of hexadecimal digits: b8 ed ?? 01",
                    )
                known.append(pair != "??")
                values.append(int(pair, 16) if known[-1] else 0)
        if not values:
            raise SpecError("there are no bytes in it", path=path)
        if len(values) > LENGTH_LIMIT:
            raise SpecError(f"{len(values)} bytes are more than {LENGTH_LIMIT}", path=path)
        return cls(bytes(values), tuple(known))

    @classmethod
    def of(cls, data: bytes) -> Pattern:
        """The pattern that only `data` matches."""
        return cls(data, (True,) * len(data))

    def __len__(self) -> int:
        return len(self.values)

    def __str__(self) -> str:
        return " ".join(f"{v:02x}" if k else "??" for v, k in zip(self.values, self.known, strict=True))

    def matches(self, data: bytes) -> bool:
        """Whether `data` has this length and every byte that counts."""
        return len(data) == len(self.values) and all(
            not k or v == d for v, k, d in zip(self.values, self.known, data, strict=True)
        )

    def part(self, start: int, length: int) -> Pattern:
        """A slice of it."""
        return Pattern(self.values[start : start + length], self.known[start : start + length])

    @property
    def concrete(self) -> bytes | None:
        """The bytes, if none of them is a wildcard."""
        return self.values if all(self.known) else None


@dataclass(frozen=True, slots=True)
class Edit:
    """One change.

    Attributes:
        address: link-time address of the first byte of `expected`; None if `symbol` says it.
        symbol: symbol of the executable, '' if `address` says it; `symbol_offset` bytes are added to it.
        expected: what is there.
        offset: where in `expected` the replacement begins.
        replacement: the new bytes.
    """

    address: int | None
    symbol: str
    symbol_offset: int
    expected: Pattern
    offset: int
    replacement: bytes

    @property
    def overwritten(self) -> Pattern:
        """What is expected of the bytes that the replacement takes the place of."""
        return self.expected.part(self.offset, len(self.replacement))

    @property
    def place(self) -> str:
        """Where `expected` begins, as the patch file has it."""
        if self.address is not None:
            return f"{self.address:#x}"
        return f"{self.symbol}+{self.symbol_offset:#x}" if self.symbol_offset else self.symbol


@dataclass(frozen=True, slots=True)
class Range:
    """Link-time address and length, in bytes, of a piece of code."""

    address: int
    length: int

    def __str__(self) -> str:
        return f"{self.address:#x}+{self.length:#x}"


@dataclass(frozen=True, slots=True)
class Livepatch:
    """What replaces functions of a kernel.

    Attributes:
        release: of the kernel, as uname(2) has it.
        object: the module that the functions are in.
        name: of the livepatch module.
        module: the livepatch module, as its file is.
    """

    release: str
    object: str
    name: str
    module: bytes


@dataclass(frozen=True, slots=True)
class Patch:
    """A parsed patch file. Where the file has none, `cve` and `code_sha256` are '', `room` and `livepatch` are None."""

    id: str
    title: str
    cve: str
    target: str
    build_ids: tuple[str, ...]
    edits: tuple[Edit, ...]
    clear: tuple[Range, ...] = ()
    code_sha256: str = ""
    room: Range | None = None
    livepatch: Livepatch | None = None

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions that a livepatch replaces."""
        return tuple(dict.fromkeys(e.symbol for e in self.edits)) if self.livepatch else ()


def parse(text: str) -> Patch:
    """Read a patch file and check everything that can be checked without a binary.

    Raises:
        SpecError: something in it is wrong; `path` names the field, as in `edits[0].expected`.
    """
    from vmkit.hotfix.verify import check_patch

    if len(text) > FILE_LIMIT:
        raise SpecError(f"the patch file is larger than {FILE_LIMIT >> 20} MiB")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # ValueError also for integers of thousands of digits
        reason = "nested too deeply" if isinstance(e, RecursionError) else " ".join(str(e).split())[:200]
        raise SpecError(f"not a TOML document: {reason}", hint="see vmkit hotfix make --help for a sound one") from e
    patch = _patch(read_document(document))
    return patch if patch.livepatch else check_patch(patch)


def load(path: Path) -> Patch:
    """Read a patch file from disk.

    Raises:
        NotFoundError: there is none.
        RefusedError: it cannot be read, is no regular file, or is larger than FILE_LIMIT.
        SpecError: it is not sound; see `parse`.
    """
    return parse(read(path))


def read(path: Path) -> str:
    """The text of a patch file. Raises as `load` does."""
    with open_regular(path, "patch file", limit=FILE_LIMIT) as f:
        data = f.read(FILE_LIMIT)
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise SpecError(f"{quoted(str(path))} is not UTF-8 text") from e


def render(patch: Patch) -> str:
    """The patch as the text of a patch file; `parse` gives the same patch back."""
    import tomli_w

    from vmkit.hotfix.kernel.form import written

    head: dict[str, Any] = {"id": patch.id, "title": patch.title}
    if patch.cve:
        head["cve"] = patch.cve
    head |= {"target": patch.target, "build_ids": list(patch.build_ids)}
    if patch.code_sha256:
        head["code_sha256"] = patch.code_sha256
    if patch.room:
        head["room"] = str(patch.room)
    if patch.clear:
        head["clear"] = [str(r) for r in patch.clear]
    head["edits"] = []
    if patch.livepatch:
        head["edits"] = [{"symbol": e.place, "expected": str(e.expected)} for e in patch.edits]
        head["livepatch"] = written(patch.livepatch)
        return tomli_w.dumps(head)
    for edit in patch.edits:
        head["edits"].append(
            {
                **({"symbol": edit.place} if edit.address is None else {"address": edit.place}),
                "expected": str(edit.expected),
                "offset": edit.offset,
                "replacement": edit.replacement.hex(" "),
            }
        )
    return tomli_w.dumps(head)


def _patch(raw: RawPatch) -> Patch:
    check_name(raw.id, path="id")
    if not raw.title.strip() or len(raw.title) > 200 or not raw.title.isprintable():
        raise SpecError("has to be one line of 1 to 200 characters", path="title")
    if raw.cve and not _CVE.match(raw.cve):
        raise SpecError(f"{quoted(raw.cve)} is not a CVE number", path="cve", hint="write it like CVE-2026-12345")
    if raw.target not in ("qemu", "kernel"):
        raise SpecError(
            f"{quoted(raw.target)} is not a known target", path="target", hint='write target = "qemu" or "kernel"'
        )
    if (raw.target == "kernel") is not (raw.livepatch is not None):
        raise SpecError('target = "kernel" and the table livepatch go together', path="target")
    if not 1 <= len(raw.build_ids) <= EDIT_LIMIT:
        raise SpecError(f"has to name 1 to {EDIT_LIMIT} builds", path="build_ids", hint="readelf -n FILE prints it")
    build_ids = []
    for i, text in enumerate(raw.build_ids):
        if not _BUILD_ID.match(text.lower()) or len(text) % 2:
            raise SpecError(
                f"{quoted(text)} is not a build id", path=f"build_ids[{i}]", hint="readelf -n FILE prints it"
            )
        if text.lower() in build_ids:
            raise SpecError(f"{quoted(text)} is there twice", path=f"build_ids[{i}]")
        build_ids.append(text.lower())
    if not 1 <= len(raw.edits) <= EDIT_LIMIT:
        raise SpecError(f"there are {len(raw.edits)}; a patch has 1 to {EDIT_LIMIT} edits", path="edits")
    if raw.livepatch is not None:
        from vmkit.hotfix.kernel.form import kernel_patch

        return kernel_patch(raw, tuple(build_ids), raw.livepatch)
    room = _room(raw.room) if raw.room else None
    edits = tuple(_edit(e, f"edits[{i}]", room) for i, e in enumerate(raw.edits))
    if raw.code_sha256 and not _SHA256.match(raw.code_sha256):
        raise SpecError("is not 64 hexadecimal digits", path="code_sha256")
    if len(raw.clear) > CLEAR_LIMIT:
        raise SpecError(f"has more than {CLEAR_LIMIT} ranges", path="clear")
    clear = tuple(_range(text, f"clear[{i}]") for i, text in enumerate(raw.clear))
    return Patch(raw.id, raw.title, raw.cve, raw.target, tuple(build_ids), edits, clear, raw.code_sha256, room)


def _range(text: str, path: str) -> Range:
    match = _RANGE.match(text)
    if not match:
        raise SpecError(f"{quoted(text)} is not a range", path=path, hint='write it like "0x6a1f00+0x85"')
    found = Range(int(match[2], 16), int(match[3], 16))
    if match[1] or not 0 < found.address < ADDRESS_LIMIT or not 0 < found.length <= CLEAR_LENGTH_LIMIT:
        raise SpecError(f"{quoted(text)} is no range of user addresses", path=path)
    return found


def _room(text: str) -> Range:
    match = _RANGE.match(text)
    if not match:
        raise SpecError(f"{quoted(text)} is not a range", path="room", hint='write it like "-0x1800000+0x2000"')
    found = Range(int(match[1] + match[2], 16), int(match[3], 16))
    if found.address % PAGE or found.length % PAGE or not 0 < found.length <= ROOM_LIMIT:
        raise SpecError(f"has to be 1 to {ROOM_LIMIT // PAGE} whole pages", path="room")
    if not -REACH < found.address < ADDRESS_LIMIT:
        raise SpecError("no branch reaches that far", path="room")
    return found


def _edit(raw: RawEdit, path: str, room: Range | None) -> Edit:
    if (raw.address is None) == (raw.symbol is None):
        raise SpecError("give either address or symbol", path=path)
    address, symbol, symbol_offset = None, "", 0
    if raw.symbol is not None:
        match = SYMBOL.match(raw.symbol)
        if not match:
            raise SpecError(
                f"{quoted(raw.symbol)} is not a symbol", path=f"{path}.symbol", hint="write name or name+0x1c"
            )
        symbol, symbol_offset = match[1], int(match[2] or "0", 0 if (match[2] or "").startswith("0x") else 10)
    else:
        address = _address(raw.address, f"{path}.address", room)
    replacement = Pattern.parse(raw.replacement, path=f"{path}.replacement").concrete
    if replacement is None:
        raise SpecError("a replacement has no wildcards", path=f"{path}.replacement")
    expected = Pattern.parse(raw.expected, path=f"{path}.expected")
    return Edit(address, symbol, symbol_offset, expected, raw.offset, replacement)


def _address(value: int | str | None, path: str, room: Range | None) -> int:
    if isinstance(value, str):
        match = _ADDRESS.match(value)
        if not match:
            raise SpecError(f"{quoted(value)} is not an address", path=path, hint='write it in hexadecimal: "0x6a1f30"')
        value = int(match[1] + match[2], 16)
    if value is not None and room is not None and 0 <= value - room.address < room.length:
        return value
    if value is None or not 0 < value < ADDRESS_LIMIT:
        raise SpecError("is no user address", path=path, hint=f"it lies between 1 and {ADDRESS_LIMIT - 1:#x}")
    return value
