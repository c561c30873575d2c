"""An ELF executable as values: sections, functions, objects, relocations. Read with pyelftools, once."""

from __future__ import annotations

import bisect
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from vmkit.errors import RefusedError, UnsupportedError
from vmkit.hotfix.build.frames import function_bounds
from vmkit.system.elf import FILE_LIMIT, Segment, damaged_is_refused, read_binary
from vmkit.system.files import open_regular

PAGE: Final = 4096

_WRITE, _ALLOC, _EXEC = 1, 2, 4
_BY_SYMBOL = ("R_X86_64_GLOB_DAT", "R_X86_64_JUMP_SLOT", "R_X86_64_64")


@dataclass(frozen=True, slots=True)
class Section:
    """A section that is loaded.

    Attributes:
        name: '.text', '.rodata', ...
        address, size: where it is linked to, and its bytes in memory.
        data: its bytes from the file; b'' where it has none (.bss).
        writable, executable: by its flags; what is written once, by the loader, counts as not writable.
    """

    name: str
    address: int
    size: int
    data: bytes
    writable: bool
    executable: bool

    @property
    def end(self) -> int:
        """One past its last byte."""
        return self.address + self.size


@dataclass(frozen=True, slots=True, order=True)
class Named:
    """A function or an object.

    Attributes:
        address, size: where it is linked to; bytes.
        name: its symbol; 'fn_ADDRESS' for a function that only .eh_frame knows.
        file: source file of a local symbol, '' for a global one or where it is not known.
    """

    address: int
    size: int
    name: str
    file: str = ""

    @property
    def end(self) -> int:
        """One past its last byte."""
        return self.address + self.size

    @property
    def key(self) -> tuple[str, str]:
        """What names it in another build too."""
        return self.file, self.name


@dataclass(frozen=True)
class Program:
    """One build.

    Attributes:
        path, build_id: of the file.
        fixed: it is linked to fixed addresses (ET_EXEC), so that an immediate can be an address.
        stripped: it has no .symtab: functions come from .eh_frame, and most have no name.
        segments, sections: what is loaded.
        functions, objects: by address, without those that share an address with an earlier one.
        slots: addresses that the loader fills with the address of a symbol (GOT), and that symbol.
        pointers: addresses of loaded data that hold the address of something, and what they hold.
        plt: entries of the procedure linkage table, and the symbol that each calls.
    """

    path: Path
    build_id: str
    fixed: bool
    stripped: bool
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    functions: tuple[Named, ...]
    objects: tuple[Named, ...]
    slots: dict[int, str] = field(default_factory=dict)
    pointers: dict[int, int] = field(default_factory=dict)
    plt: dict[int, str] = field(default_factory=dict)

    def section_at(self, address: int) -> Section | None:
        """The loaded section that holds an address."""
        return next((s for s in self.sections if s.address <= address < s.end), None)

    def function_at(self, address: int) -> Named | None:
        """The function whose code holds an address."""
        return _holder(self.functions, self._function_starts, address)

    def object_at(self, address: int) -> Named | None:
        """The object that holds an address."""
        return _holder(self.objects, self._object_starts, address)

    def read(self, address: int, length: int) -> bytes:
        """Bytes from the file, fewer where the section ends, zeros for .bss, b'' where nothing is loaded."""
        section = self.section_at(address)
        if section is None:
            return b""
        if not section.data:
            return bytes(min(length, section.end - address))
        return section.data[address - section.address : address - section.address + length]

    def room(self, function: Named) -> int:
        """Bytes from the start of a function to the next one or the end of the section, if only filling lies between.

        Else the function's own size.
        """
        section = self.section_at(function.address)
        if section is None:
            return function.size
        i = bisect.bisect_right(self._function_starts, function.address)
        end = min(self.functions[i].address, section.end) if i < len(self.functions) else section.end
        return end - function.address if end - function.end < 16 and end >= function.end else function.size

    def cave(self) -> tuple[int, int]:
        """Address and size of free bytes that are mapped executable: from the end of a code segment to its page's end.

        The kernel maps whole pages, so what follows the segment in the file is there too; it has to be zeros. The
        largest one; size 0 if there is none. It begins on a multiple of 16.
        """
        best = (0, 0)
        with open_regular(self.path, "binary", limit=FILE_LIMIT) as f:
            for segment in self.segments:
                start = (segment.address + segment.size + 15) & -16
                end = (segment.address + segment.size + PAGE - 1) & -PAGE
                if not segment.executable or end <= start:
                    continue
                data = os.pread(f.fileno(), end - start, segment.offset + start - segment.address)
                free = len(data) - len(data.lstrip(b"\0"))
                best = max(best, (start, free), key=lambda b: b[1])
        return best

    @cached_property
    def _function_starts(self) -> list[int]:
        return [f.address for f in self.functions]

    @cached_property
    def _object_starts(self) -> list[int]:
        return [o.address for o in self.objects]


def read_program(path: Path) -> Program:
    """Read a build.

    Raises:
        NotFoundError, RefusedError: no file, or no sound ELF executable with a build id.
        UnsupportedError: not for x86-64.
    """
    from elftools.elf.elffile import ELFFile

    binary = read_binary(path)
    if binary.machine != "X86_64":
        raise UnsupportedError(f"{path} is for {binary.machine}; patches are made from builds for x86-64 only")
    with open_regular(path, "binary", limit=FILE_LIMIT) as f, damaged_is_refused(path):
        elf = ELFFile(f)
        sections = tuple(_section(s) for s in elf.iter_sections() if s["sh_flags"] & _ALLOC and s["sh_size"])
        functions, objects = _symbols(elf)
        slots, pointers = _relocations(elf)
        fixed = elf["e_type"] == "ET_EXEC"
        stripped = elf.get_section_by_name(".symtab") is None
    frames = next((s for s in sections if s.name == ".eh_frame"), None)
    code = [s for s in sections if s.executable and not s.name.startswith(".plt")]
    if frames is not None:
        known = {f.address for f in functions}
        for start, size in function_bounds(frames.data, frames.address):
            if start not in known and any(s.address <= start and start + size <= s.end for s in code):
                functions.append(Named(start, size, f"fn_{start:x}"))
    functions = [f for f in functions if any(s.address <= f.address and f.end <= s.end for s in code)]
    if not functions:
        raise RefusedError(
            f"no function of {path} can be told: it has neither symbols nor .eh_frame", hint="give the unstripped build"
        )
    return Program(
        *(path, binary.build_id, fixed, stripped, binary.segments, sections),
        *(_apart(functions), _apart(objects), slots, pointers, _plt(sections, slots)),
    )


def _section(section: Any) -> Section:
    flags = int(section["sh_flags"])
    data = b"" if section["sh_type"] == "SHT_NOBITS" else section.data()
    relro = section.name in (".data.rel.ro", ".got", ".init_array", ".fini_array", ".dynamic")
    return Section(
        *(str(section.name), int(section["sh_addr"]), int(section["sh_size"]), data),
        *(bool(flags & _WRITE) and not relro, bool(flags & _EXEC)),
    )


def _symbols(elf: Any) -> tuple[list[Named], list[Named]]:
    """Functions and objects that symbols name: of .symtab, else of .dynsym."""
    table = elf.get_section_by_name(".symtab") or elf.get_section_by_name(".dynsym")
    functions, objects = [], []
    file = ""
    for symbol in table.iter_symbols() if table is not None else ():
        kind = symbol["st_info"]["type"]
        if kind == "STT_FILE":
            file = str(symbol.name)
        elif isinstance(symbol["st_shndx"], int) and symbol["st_size"] and symbol.name:
            local = symbol["st_info"]["bind"] == "STB_LOCAL"
            found = Named(
                int(symbol["st_value"]), int(symbol["st_size"]), str(symbol.name).partition("@")[0], file * local
            )
            if kind in ("STT_FUNC", "STT_GNU_IFUNC"):
                functions.append(found)
            elif kind == "STT_OBJECT":
                objects.append(found)
    return functions, objects


def _relocations(elf: Any) -> tuple[dict[int, str], dict[int, int]]:
    from elftools.elf.enums import ENUM_RELOC_TYPE_x64
    from elftools.elf.relocation import RelocationSection

    names = {number: name for name, number in ENUM_RELOC_TYPE_x64.items() if isinstance(number, int)}
    slots: dict[int, str] = {}
    pointers: dict[int, int] = {}
    for section in elf.iter_sections():
        if not isinstance(section, RelocationSection) or not section.is_RELA() or not section["sh_flags"] & _ALLOC:
            continue
        table = elf.get_section(section["sh_link"])
        for entry in section.iter_relocations():
            kind, at = names.get(entry["r_info_type"]), int(entry["r_offset"])
            if kind in _BY_SYMBOL and entry["r_info_sym"]:
                symbol = table.get_symbol(entry["r_info_sym"])
                slots[at] = str(symbol.name).partition("@")[0] + (f"+{entry['r_addend']:#x}" * bool(entry["r_addend"]))
            elif kind == "R_X86_64_COPY":
                pass
            elif kind == "R_X86_64_RELATIVE":
                pointers[at] = int(entry["r_addend"])
    return slots, pointers


def _plt(sections: tuple[Section, ...], slots: dict[int, str]) -> dict[int, str]:
    """Entries that jump through a slot: `ff 25 disp32`, after an ENDBR64 and a BND prefix where they have them."""
    entries = {}
    for section in sections:
        if not section.name.startswith(".plt"):
            continue
        step = 8 if section.name == ".plt.got" and len(section.data) % 16 else 16
        for at in range(0, len(section.data), step):
            entry = section.data[at : at + step]
            i = entry.find(b"\xff\x25")
            if i < 0 or i + 6 > len(entry):
                continue
            slot = section.address + at + i + 6 + int.from_bytes(entry[i + 2 : i + 6], "little", signed=True)
            if slot in slots:
                entries[section.address + at] = slots[slot]
    return entries


def _apart(found: list[Named]) -> tuple[Named, ...]:
    """By address; of several names for one address the global and shortest one, so that both builds choose alike."""
    chosen: dict[int, Named] = {}
    for one in sorted(found, key=lambda n: (n.address, -n.size, bool(n.file), len(n.name), n.name)):
        chosen.setdefault(one.address, one)
    return tuple(chosen[a] for a in sorted(chosen))


def _holder(found: tuple[Named, ...], starts: list[int], address: int) -> Named | None:
    i = bisect.bisect_right(starts, address) - 1
    return found[i] if i >= 0 and address < found[i].end else None
