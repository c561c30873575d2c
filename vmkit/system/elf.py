"""What an ELF file says about itself: build id, segments, symbols. Read with pyelftools, only when it is asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vmkit.errors import NotFoundError, RefusedError, UnsupportedError
from vmkit.system.files import open_regular
from vmkit.values import quoted

FILE_LIMIT = 1 << 30
"""Largest binary that is read, in bytes; QEMU's own is under 40 MiB."""


PAGE = 4096


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD segment.

    Attributes:
        address: where it is linked to (p_vaddr).
        offset, size: where its bytes are in the file (p_offset, p_filesz).
        executable: whether it holds code.
    """

    address: int
    offset: int
    size: int
    executable: bool

    def holds(self, address: int, length: int) -> bool:
        """Whether the whole range lies in the part of it that comes from the file."""
        return self.address <= address and address + length <= self.address + self.size

    def tail_holds(self, address: int, length: int) -> bool:
        """Whether the whole range lies behind its bytes from the file, in the last page that they take a part of."""
        end = self.address + self.size
        return end <= address and address + length <= (end + PAGE - 1) & -PAGE


@dataclass(frozen=True, slots=True)
class Binary:
    """An ELF executable.

    Attributes:
        path: the file that was read.
        build_id: of its NT_GNU_BUILD_ID note, lower-case hexadecimal.
        build_id_address: link address of those bytes in a loaded segment; None if they are not loaded.
        machine: e_machine without its prefix: 'X86_64', 'AARCH64'.
        segments: its PT_LOAD segments.
    """

    path: Path
    build_id: str
    build_id_address: int | None
    machine: str
    segments: tuple[Segment, ...]

    def code_at(self, address: int, length: int) -> Segment | None:
        """The executable segment that holds the whole range; None if there is none."""
        return next((s for s in self.segments if s.executable and s.holds(address, length)), None)

    def tail_at(self, address: int, length: int) -> Segment | None:
        """The executable segment in whose last page, behind its own bytes, the whole range is mapped; else None."""
        return next((s for s in self.segments if s.executable and s.tail_holds(address, length)), None)

    def code(self) -> Iterator[tuple[Segment, bytes]]:
        """Each executable segment with its bytes from the file."""
        with _opened(self.path) as f:
            for segment in self.segments:
                if segment.executable:
                    yield segment, os.pread(f.fileno(), segment.size, segment.offset)

    def symbol(self, name: str) -> int:
        """Link address of a function or object, from .symtab or .dynsym.

        Raises:
            NotFoundError: no such symbol (the hint says so if the binary is stripped).
            RefusedError: several addresses have that name.
        """
        from elftools.elf.elffile import ELFFile
        from elftools.elf.sections import SymbolTableSection

        found: set[int] = set()
        stripped = True
        with _opened(self.path) as f, damaged_is_refused(self.path):
            for section in ELFFile(f).iter_sections():
                if not isinstance(section, SymbolTableSection):
                    continue
                stripped = stripped and section.name != ".symtab"
                for symbol in section.get_symbol_by_name(name) or ():
                    if symbol["st_shndx"] != "SHN_UNDEF":
                        found.add(int(symbol["st_value"]))
        if not found:
            hint = "the binary is stripped: give the address instead of the symbol" if stripped else None
            raise NotFoundError(f"no symbol {quoted(name)} in {self.path}", hint=hint)
        if len(found) > 1:
            where = ", ".join(f"{a:#x}" for a in sorted(found)[:8])
            raise RefusedError(
                f"{len(found)} symbols are named {quoted(name)} in {self.path}: {where}",
                hint="give the address instead of the symbol",
            )
        return found.pop()


def read_binary(path: Path) -> Binary:
    """Read the headers of an ELF executable. /proc/PID/exe does too, also where the file has been deleted.

    Raises:
        NotFoundError: there is no such file.
        RefusedError: it cannot be read, is not an ELF file, or carries no build id.
        UnsupportedError: it is not 64-bit little-endian.
    """
    from elftools.elf.elffile import ELFFile

    with _opened(path) as f, damaged_is_refused(path):
        elf = ELFFile(f)
        if elf.elfclass != 64 or not elf.little_endian:
            raise UnsupportedError(
                f"{path} is not a 64-bit little-endian ELF file",
                hint="see what it is: file; programs of x86-64 are taken",
            )
        segments = tuple(
            Segment(int(s["p_vaddr"]), int(s["p_offset"]), int(s["p_filesz"]), bool(s["p_flags"] & 1))
            for s in elf.iter_segments("PT_LOAD")
        )
        found = _build_id(elf, segments)
        machine = str(elf["e_machine"]).removeprefix("EM_")
    if found is None:
        raise RefusedError(f"{path} carries no build id", hint="link it with --build-id, as distributions do")
    return Binary(path, found[0], found[1], machine, segments)


def _build_id(elf: Any, segments: tuple[Segment, ...]) -> tuple[str, int | None] | None:
    """The build id, and the link address of its bytes where a segment loads them."""
    for part in elf.iter_segments("PT_NOTE"):
        for note in part.iter_notes():
            if note["n_type"] != "NT_GNU_BUILD_ID" or note["n_name"] != "GNU":
                continue
            # Elf64_Nhdr is three words; the name 'GNU\0' takes one more, and the bytes of the id follow.
            offset = int(note["n_offset"]) + 16
            loaded = next((s for s in segments if s.offset <= offset < s.offset + s.size), None)
            return str(note["n_desc"]).lower(), loaded.address + offset - loaded.offset if loaded else None
    return None


def _opened(path: Path) -> AbstractContextManager[BinaryIO]:
    return open_regular(path, "binary", limit=FILE_LIMIT)


@contextlib.contextmanager
def damaged_is_refused(path: Path) -> Iterator[None]:
    """A damaged file makes pyelftools raise errors of many kinds; all of them mean the same here."""
    import struct

    from elftools.common.exceptions import ELFError
    from elftools.construct.core import ConstructError

    try:
        yield
    except (
        ELFError,
        ConstructError,
        struct.error,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
    ) as e:
        text = " ".join(str(e).split())[:120]
        raise RefusedError(
            f"{quoted(str(path))} is not a sound ELF file",
            details=(text,) if text else (),
            hint="see what it is: file; it may be cut off",
        ) from e
