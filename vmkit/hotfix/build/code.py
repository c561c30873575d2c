"""Machine code as values: instructions, what they refer to, and their form without addresses.

Two functions whose forms are equal do the same; where the code and data lie in each build does not show in them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final

from vmkit.hotfix.build.program import Named, Program

STRING_LIMIT: Final = 400
TABLE_LIMIT: Final = 1024

_TARGET = re.compile(r"0x[0-9a-f]+\Z")
_RIP = re.compile(r"\[rip(?: ([+-]) (0x[0-9a-f]+|\d+))?\]")
_ABSOLUTE = re.compile(r"(?<![\w])0x[0-9a-f]{5,16}")
_SIZES: Final = {"byte": 1, "word": 2, "dword": 4, "qword": 8, "xmmword": 16, "ymmword": 32, "tbyte": 10}
_ARRAY = re.compile(r"\[r[^\]]*\b0x[0-9a-f]{5,16}\]")
_INDEXED = re.compile(r"\[r\w+\*8 \+ (0x[0-9a-f]+)\]")
_COMPARED = re.compile(r", (0x[0-9a-f]+|\d+)\Z")
_FILLING = frozenset({"nop", "int3", "endbr64"})
_NUMBERED = re.compile(r"(\.(?:constprop|isra|part|lto_priv|cold))?\.\d+(?=\.|\Z)")


@dataclass(frozen=True, slots=True)
class Insn:
    """One instruction: where it is linked to, its bytes, and its text as the disassembler writes it."""

    address: int
    raw: bytes
    mnemonic: str
    operands: str

    @property
    def end(self) -> int:
        """Address of the next one."""
        return self.address + len(self.raw)

    @property
    def text(self) -> str:
        """As a listing shows it."""
        return f"{self.mnemonic} {self.operands}".rstrip()

    @property
    def fills(self) -> bool:
        """Whether it does nothing: padding, or ENDBR64."""
        return self.mnemonic in _FILLING or (self.mnemonic == "xchg" and self.operands == "ax, ax")

    @property
    def branch_target(self) -> int | None:
        """Where a direct jump or call leads."""
        if self.mnemonic[0] in "jclx" and _TARGET.match(self.operands):
            name = self.mnemonic.rpartition(" ")[2]
            if name[0] == "j" or name in ("call", "loop", "loope", "loopne", "xbegin"):
                return int(self.operands, 16)
        return None

    @property
    def data_target(self) -> int | None:
        """What a memory operand relative to the instruction pointer addresses."""
        match = _RIP.search(self.operands)
        if match is None:
            return None
        return self.end + int((match[1] or "") + (match[2] or "0"), 0)


@dataclass(frozen=True, slots=True)
class Ref:
    """Something outside of the function that an instruction names.

    Attributes:
        kind: 'code', 'data', or 'absolute' (an immediate of a program that is linked to fixed addresses).
        target: its address.
        width: bytes that are read or written there; 0 where only its address is taken.
    """

    kind: str
    target: int
    width: int = 0


@cache
def _machine(detailed: bool) -> Any:
    import capstone

    machine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    machine.detail = detailed
    machine.skipdata = not detailed
    return machine


def decode(data: bytes, address: int) -> list[Insn]:
    """All of it; bytes that are no instruction (data behind a `ud2`, say) come as '.byte'."""
    found = []
    for at, size, mnemonic, operands in _machine(False).disasm_lite(data, address):
        found.append(Insn(at, data[at - address : at - address + size], mnemonic, operands))
    return found


def field_at(insn: Insn, kind: str) -> tuple[int, int]:
    """Offset and size of the bytes of an instruction that hold the displacement, or the immediate.

    Args:
        insn: the instruction.
        kind: 'code' (a branch's), 'data' (of a memory operand) or 'absolute' (displacement or immediate, whichever is
            an address).

    Raises:
        ValueError: there are none.
    """
    one = next(_machine(True).disasm(insn.raw, insn.address, count=1), None)
    if one is None:
        raise ValueError(insn.text)
    encoding = one.encoding
    where = (encoding.disp_offset, encoding.disp_size) if kind == "data" else (encoding.imm_offset, encoding.imm_size)
    if kind == "absolute" and not where[1] >= 4:
        where = (encoding.disp_offset, encoding.disp_size)
    if not where[0]:
        raise ValueError(insn.text)
    return where


def base_name(name: str) -> str:
    """A symbol without the numbers that a compiler appends to clones and static locals."""
    return _NUMBERED.sub(r"\1", name)


class Body:
    """A function of a program, decoded.

    Attributes:
        program, function: whose it is.
        insns: its instructions, all of them.
    """

    def __init__(self, program: Program, function: Named) -> None:
        self.program = program
        self.function = function
        self.insns = decode(program.read(function.address, function.size), function.address)

    @property
    def raw(self) -> bytes:
        """Its bytes."""
        return b"".join(i.raw for i in self.insns)

    def ref(self, insn: Insn) -> Ref | None:
        """What an instruction names outside of this function; None if nothing."""
        function = self.function
        target = insn.branch_target
        if target is not None:
            return None if function.address <= target < function.end else Ref("code", target)
        target = insn.data_target
        if target is not None:
            return Ref("data", target, width_of(insn))
        if self.program.fixed and (match := _ABSOLUTE.search(insn.operands)):
            value = int(match[0], 16)
            if self.program.section_at(value) is not None:
                return Ref("absolute", value, width_of(insn))
        return None

    def refs(self) -> Iterator[tuple[Insn, Ref]]:
        """Each instruction that names something outside, with that."""
        for insn in self.insns:
            if (ref := self.ref(insn)) is not None:
                yield insn, ref

    def form(self) -> tuple[str, ...]:
        """What it does, an instruction an entry, without addresses and without filling; equal if it does the same."""
        labels: dict[int, int] = {}
        counted = 0
        for insn in self.insns:
            labels[insn.address] = counted
            counted += not insn.fills
        return tuple(self._form(i, labels) for i in self.insns if not i.fills)

    def _form(self, insn: Insn, labels: dict[int, int]) -> str:
        ref = self.ref(insn)
        if ref is None:
            target = insn.branch_target
            if target is None:
                return insn.text
            return f"{insn.mnemonic} @{labels.get(target, f'+{target - self.function.address:#x}')}"
        name = name_of(self.program, ref, lambda address: self._described(address, labels))
        if ref.kind == "code":
            return f"{insn.mnemonic} {name}"
        pattern = _RIP if ref.kind == "data" else _ABSOLUTE
        return f"{insn.mnemonic} {pattern.sub(lambda _: f'[{name}]', insn.operands)}"

    def _described(self, address: int, labels: dict[int, int]) -> str:
        """A jump table in words that hold in another build too."""
        entries = [
            f"@{labels.get(f.address + o, '?')}" if f == self.function else "elsewhere" for f, o in self.table(address)
        ]
        return f"table {' '.join(entries)}" if entries else ""

    @cached_property
    def _tables(self) -> dict[int, tuple[int, int]]:
        """Where jump tables may be: entries by the comparison before the use (0: not known), and bytes of an entry.

        Entries of 4 bytes are offsets from the table, as `lea` and `movsxd` use them; those of 8 bytes are addresses,
        in programs that are linked to fixed ones.
        """
        found: dict[int, tuple[int, int]] = {}
        for n, insn in enumerate(self.insns):
            target, size = (insn.data_target, 4) if insn.mnemonic == "lea" else (None, 4)
            if self.program.fixed and (match := _INDEXED.search(insn.operands)):
                target, size = int(match[1], 16), 8
            if target is None:
                continue
            count = 0
            for compare, jump in itertools.pairwise(self.insns[max(0, n - 12) : n]):
                compared = _COMPARED.search(compare.operands) if compare.mnemonic == "cmp" else None
                if compared and jump.mnemonic in ("ja", "jbe"):
                    count = int(compared[1], 0) + 1
            found[target] = count, size
        return found

    def table(self, address: int) -> tuple[tuple[Named, int], ...]:
        """The entries of a jump table of this function at an address: function and offset in it. () if none is there.

        Entries are in this function, or in a part of it that the compiler moved elsewhere (see `fragment_of`).
        """
        count, size = self._tables.get(address, (0, 4))
        found: list[tuple[Named, int]] = []
        data = self.program.read(address, size * min(count or TABLE_LIMIT, TABLE_LIMIT))
        for i in range(0, len(data) - size + 1, size):
            value = int.from_bytes(data[i : i + size], "little", signed=size == 4)
            target = value + (address if size == 4 else 0)
            holder = self.program.function_at(target)
            if holder is None or (holder != self.function and not fragment_of(self.program, holder, self.function)):
                break
            found.append((holder, target - holder.address))
        return tuple(found) if len(found) >= max(count, 3) or (found and len(found) == count) else ()

    def table_entry(self, address: int) -> int:
        """Bytes of an entry of the jump table at an address: 4 (an offset from it) or 8 (an address)."""
        return self._tables.get(address, (0, 4))[1]


def fragment_of(program: Program, part: Named, whole: Named) -> bool:
    """Whether `part` is code of `whole` that the compiler moved elsewhere: it leads into the middle of it."""
    if part.name.startswith(f"{whole.name}.cold"):
        return True
    insns = decode(program.read(part.address, part.size), part.address)
    return any(i.branch_target is not None and whole.address < i.branch_target < whole.end for i in insns)


def width_of(insn: Insn) -> int:
    """Bytes of its memory operand; 0 for `lea`, where none is, and for an element of an array."""
    if insn.mnemonic == "lea" or "[" not in insn.operands or _ARRAY.search(insn.operands):
        return 0
    return next((n for word, n in _SIZES.items() if re.search(rf"\b{word} ptr", insn.operands)), 0)


def name_of(program: Program, ref: Ref, table: Callable[[int], str] = lambda _: "") -> str:
    """What a reference names, in words that hold in another build too; '?' in it where that cannot be told."""
    address = ref.target
    if address in program.plt:
        return f"{program.plt[address]}@plt"
    if address in program.slots:
        return f"{program.slots[address]}@got"
    section = program.section_at(address)
    if section is None:
        return "?"
    if section.executable and (function := program.function_at(address)) is not None:
        offset = address - function.address
        return ("fn" if _unnamed(function) else base_name(function.name)) + (f"+{'?' if offset else ''}" * bool(offset))
    thing = program.object_at(address)
    if thing is not None and not section.executable:
        offset = address - thing.address
        return base_name(thing.name) + (f"+{offset:#x}" if offset else "")
    if section.name.startswith(".rodata") or not section.writable:
        if ref.width:
            return f"{section.name}:{program.read(address, ref.width).hex()}"
        if described := table(address):
            return described
        if (text := string_at(program, address)) is not None:
            return repr(text)
    return f"{section.name}?"


def _unnamed(function: Named) -> bool:
    return function.name == f"fn_{function.address:x}"


def string_at(program: Program, address: int) -> str | None:
    """A text that ends with a NUL, of printable ASCII and line ends; None if it is not one."""
    data = program.read(address, STRING_LIMIT)
    text, nul, _ = data.partition(b"\0")
    # Without symbols, an array of numbers could be taken for a short text.
    least = 4 if program.stripped else 1
    if not nul or len(text) < least or any(c not in b"\t\n\r\x1b" and not 32 <= c < 127 and c < 0xC0 for c in text):
        return None
    return text.decode(errors="replace")
