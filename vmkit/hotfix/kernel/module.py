"""What the file of a kernel module says: its names, its build, and which bytes of a function stay as they are in it.

The kernel changes the code of a module when it loads it, and later: it binds it to addresses (relocations), puts in
instructions that suit the CPU (.altinstructions, .retpoline_sites, .return_sites, .call_sites, .smp_locks), takes away
landing pads that nothing jumps to (.ibt_endbr_seal), and switches calls and jumps (__mcount_loc for ftrace,
__jump_table, .static_call_sites). The module says where, in these sections. Anything goes there, and all the rest has
to be in memory too. arch/x86/kernel/alternative.c and the headers of each say what their entries are.
"""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from vmkit.errors import NotFoundError, RefusedError, UnsupportedError
from vmkit.hotfix.manifest import LENGTH_LIMIT, Edit, Pattern
from vmkit.system.files import open_regular
from vmkit.values import quoted

FILE_LIMIT: Final = 64 << 20
"""Largest module, bytes: kvm.ko of Debian 13 has 3 MiB, the largest ones (amdgpu) 40."""

_ENTRY: Final = {
    ".retpoline_sites": 4,
    ".return_sites": 4,
    ".call_sites": 4,
    ".ibt_endbr_seal": 4,
    ".smp_locks": 4,
    "__mcount_loc": 8,
    "__jump_table": 16,
    ".static_call_sites": 8,
    ".altinstructions": 14,
    ".parainstructions": 16,
}
"""Section -> bytes of an entry, which begins with where the code is. struct jump_entry, static_call_site, alt_instr
(6.3 and newer; before that 12 or 13, told by the size of the section) and paravirt_patch_site (before 6.8)."""
_ALT_LENGTH: Final = {14: 12, 13: 11, 12: 10}
"""Bytes of an alt_instr -> where its instrlen is."""
_WIDTH: Final = {1: 8, 2: 4, 4: 4, 10: 4, 11: 4, 24: 8}
"""R_X86_64_64, PC32, PLT32, 32, 32S, PC64: how many bytes each changes (x86-64 psABI, table 4.9)."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function in the file of a module: its section (index), where it begins in it, and its bytes."""

    name: str
    section: int
    start: int
    code: bytes


class ModuleFile:
    """The file of a kernel module, in memory.

    Args:
        data: the ELF file.
        label: names it in messages.

    Raises:
        RefusedError: it is no kernel module.
    """

    def __init__(self, data: bytes, label: str) -> None:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile

        self.label = label
        self.data = data
        try:
            self._elf = ELFFile(io.BytesIO(data))
            self._sections = list(self._elf.iter_sections())
        except (ELFError, ValueError, KeyError, OSError) as e:
            raise RefusedError(f"{label} is no ELF file that can be read") from e
        if self._elf["e_type"] != "ET_REL" or not self.info.get("vermagic"):
            raise RefusedError(f"{label} is no kernel module")
        if self._elf["e_machine"] != "EM_X86_64":
            raise UnsupportedError(f"{label} is for {self._elf['e_machine']}: kernels of x86-64 only can be patched")

    @cached_property
    def info(self) -> dict[str, str]:
        """Its .modinfo: 'name', 'vermagic', 'depends', ..."""
        found: dict[str, str] = {}
        for line in self._bytes(".modinfo").split(b"\0"):
            key, mark, value = line.decode(errors="replace").partition("=")
            if mark:
                found.setdefault(key, value)
        return found

    @property
    def name(self) -> str:
        """Of the module."""
        return self.info.get("name", "")

    @property
    def release(self) -> str:
        """Of the kernel that it is for."""
        return self.info["vermagic"].split()[0]

    @property
    def build_id(self) -> str:
        """Lower-case hexadecimal.

        Raises:
            RefusedError: it has none.
        """
        found = note_build_id(self._bytes(".note.gnu.build-id"))
        if not found:
            raise RefusedError(f"{self.label} has no build id, so it cannot be told when it runs")
        return found

    def function(self, name: str) -> Function:
        """A function of this name.

        Raises:
            NotFoundError: there is none.
            RefusedError: there are several, it is not code that can be patched, or it is inlined and has no code.
        """
        found = [
            s
            for s in self._symbols
            if s.name == name and s["st_info"]["type"] == "STT_FUNC" and isinstance(s["st_shndx"], int)
        ]
        if not found:
            raise NotFoundError(
                f"{self.label} has no function {quoted(name)}",
                hint="it may be inlined into its callers: name those; nm lists what there is",
            )
        if len(found) > 1:
            raise RefusedError(f"{self.label} has {len(found)} functions {quoted(name)}: which one cannot be told")
        section, start, size = found[0]["st_shndx"], found[0]["st_value"], found[0]["st_size"]
        if not size:
            raise RefusedError(f"{self.label} does not say how long {name} is")
        return Function(name, section, start, self._sections[section].data()[start : start + size])

    def edits(self, function: Function) -> tuple[Edit, ...]:
        """What memory holds where the function is, in pieces of LENGTH_LIMIT bytes, as edits of a patch.

        Raises:
            RefusedError: nothing can say when it runs, since it is not traced.
        """
        known = [True] * len(function.code)
        traced = False
        for at, length, kind in self._changing(function):
            traced = traced or kind == "__mcount_loc"
            known[at : at + length] = [False] * len(known[at : at + length])
        if not traced:
            raise RefusedError(
                f"{function.name} cannot be replaced: ftrace does not reach it", hint="its callers may be: name those"
            )
        values = bytes(b if k else 0 for b, k in zip(function.code, known, strict=True))
        whole = Pattern(values, tuple(known))
        return tuple(
            Edit(None, function.name, at, part, 0, b"")
            for at in range(0, len(known), LENGTH_LIMIT)
            if any((part := whole.part(at, LENGTH_LIMIT)).known)
        )

    def _changing(self, function: Function) -> Iterator[tuple[int, int, str]]:
        """Offset in the function and length of what the kernel may change, and the section that says so."""
        from elftools.elf.relocation import RelocationSection

        end = function.start + len(function.code)
        for section in self._sections:
            if not isinstance(section, RelocationSection):
                continue
            if section["sh_info"] == function.section:
                for relocation in section.iter_relocations():
                    at = relocation["r_offset"]
                    if function.start <= at < end:
                        yield at - function.start, _WIDTH.get(relocation["r_info_type"], 8), "relocation"
                continue
            table = self._sections[section["sh_info"]]
            if table.name in _ENTRY:
                yield from self._sites(function, section, table)

    def _sites(self, function: Function, section: Any, table: Any) -> Iterator[tuple[int, int, str]]:
        data = table.data()
        entry = _ENTRY[table.name]
        if table.name == ".altinstructions":
            entry = _alt_entry(section, len(data))
        length_of = self._lengths(function)
        for relocation in section.iter_relocations():
            place, symbol = relocation["r_offset"], self._symbols[relocation["r_info_sym"]]
            if place % entry or symbol["st_shndx"] != function.section:
                continue
            at = symbol["st_value"] + relocation["r_addend"] - function.start
            if not 0 <= at < len(function.code):
                continue
            length = data[place + _ALT_LENGTH[entry]] if table.name == ".altinstructions" else length_of(at)
            yield at, length, table.name

    def _lengths(self, function: Function) -> Callable[[int], int]:
        """Gives the length of the instruction at an offset in a function."""
        import capstone

        decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

        def length(at: int) -> int:
            found = next(decoder.disasm_lite(function.code[at : at + 15], 0, 1), None)
            return found[1] if found else 15

        return length

    @cached_property
    def _symbols(self) -> list[Any]:
        from elftools.elf.sections import SymbolTableSection

        table = self._elf.get_section_by_name(".symtab")
        return list(table.iter_symbols()) if isinstance(table, SymbolTableSection) else []

    def _bytes(self, name: str) -> bytes:
        section = next((s for s in self._sections if s.name == name), None)
        return section.data() if section is not None else b""


def read_module(path: Path) -> ModuleFile:
    """A module from disk: .ko, .ko.xz or .ko.gz.

    Raises:
        NotFoundError: there is none.
        RefusedError, UnsupportedError: it cannot be read, or is no kernel module of x86-64.
    """
    with open_regular(path, "kernel module", limit=FILE_LIMIT) as f:
        data = f.read(FILE_LIMIT)
    try:
        if path.suffix == ".xz":
            data = lzma.LZMADecompressor(memlimit=256 << 20).decompress(data, FILE_LIMIT)
        elif path.suffix == ".gz":
            data = zlib.decompressobj(31).decompress(data, FILE_LIMIT)
        elif path.suffix == ".zst":
            raise UnsupportedError(f"{path} is packed by zstd", hint=f"unpack it and name the file: zstd -d {path}")
    except (lzma.LZMAError, zlib.error) as e:
        raise RefusedError(f"{path} cannot be unpacked: {e}") from e
    return ModuleFile(data, str(path))


def note_build_id(data: bytes) -> str:
    """The build id in the notes of an ELF file, as the kernel shows them too; '' if there is none."""
    at = 0
    while at + 12 <= len(data):
        name, size, kind = (int.from_bytes(data[at + i : at + i + 4], "little") for i in (0, 4, 8))
        start = at + 12 + (name + 3) // 4 * 4
        if kind == 3 and data[at + 12 : at + 12 + name] == b"GNU\0":
            return data[start : start + size].hex()
        at = start + (size + 3) // 4 * 4
    return ""


def _alt_entry(section: Any, size: int) -> int:
    """Bytes of an entry of .altinstructions, which has two relocations: for the code and for what replaces it."""
    entries = section.num_relocations() // 2
    found = size // entries if entries else 0
    if size and (found not in _ALT_LENGTH or found * entries != size):
        raise UnsupportedError(f"entries of .altinstructions of {found} bytes are not known")
    return found or 14
