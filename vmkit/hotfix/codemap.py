"""The code of an executable with the bounds of its functions, for checks of what is written into it."""

from __future__ import annotations

import bisect
import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from vmkit.hotfix.build.frames import function_bounds
from vmkit.system.elf import FILE_LIMIT, Binary, damaged_is_refused
from vmkit.system.files import open_regular

_LONG: Final = re.compile(rb"[\xe8\xe9]|\x0f[\x80-\x8f]")
"""Opcodes that a displacement of four bytes follows: call, jmp, jcc."""
_DISPLACEMENT: Final = struct.Struct("<i").unpack_from
_SHORT: Final = frozenset({0xEB, *range(0x70, 0x80), *range(0xE0, 0xE4)})
"""Opcodes of x86-64 that a one-byte displacement follows: jmp, jcc, loop, jrcxz (Intel SDM vol. 2, appendix A)."""


@dataclass(frozen=True)
class CodeMap:
    """Executable segments (link address, bytes) and functions (link address, bytes), both by address."""

    segments: tuple[tuple[int, bytes], ...]
    functions: tuple[tuple[int, int], ...]

    def function_at(self, address: int) -> tuple[int, int] | None:
        """Start and end of the function that holds an address."""
        i = bisect.bisect_right(self._starts, address) - 1
        if i < 0 or address >= sum(self.functions[i]):
            return None
        return self.functions[i][0], sum(self.functions[i])

    def next_function(self, address: int) -> int:
        """Start of the first function above an address; the end of the code if there is none."""
        i = bisect.bisect_right(self._starts, address)
        return self.functions[i][0] if i < len(self.functions) else max(a + len(d) for a, d in self.segments)

    def read(self, address: int, length: int) -> bytes:
        """Bytes of the code; fewer where a segment ends."""
        for start, data in self.segments:
            if start <= address < start + len(data):
                return data[address - start : address - start + length]
        return b""

    def branches_into(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Source and target of direct branches and calls into [low, high), by their bytes.

        Bytes that look like such a branch and are none are found too; with 4-byte displacements that is one in
        millions, and short ones are looked for only where decoding says that an instruction begins.
        """
        for start, data in self.segments:
            for match in _LONG.finditer(data, 0, max(0, len(data) - 4)):
                end = match.end()
                target = start + end + 4 + _DISPLACEMENT(data, end)[0]
                if low <= target < high:
                    yield start + match.start(), target
            for source in range(max(start, low - 130), min(start + len(data) - 1, high + 130)):
                at = source - start
                if data[at] in _SHORT:
                    target = source + 2 + (data[at + 1] ^ 0x80) - 0x80
                    if low <= target < high and self._is_instruction(source):
                        yield source, target

    def _is_instruction(self, address: int) -> bool:
        from vmkit.hotfix.build.code import decode

        bounds = self.function_at(address)
        if bounds is None:
            return False
        return any(i.address == address for i in decode(self.read(bounds[0], bounds[1] - bounds[0]), bounds[0]))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all segments, one after the other; hexadecimal."""
        return hashlib.sha256(b"".join(d for _, d in self.segments)).hexdigest()

    @cached_property
    def _starts(self) -> list[int]:
        return [f for f, _ in self.functions]


def read_code(binary: Binary) -> CodeMap:
    """Read the code of an executable; functions are what .eh_frame and the symbols say.

    Raises:
        NotFoundError, RefusedError: it cannot be read.
    """
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    found: dict[int, int] = {}
    with open_regular(binary.path, "binary", limit=FILE_LIMIT) as f, damaged_is_refused(binary.path):
        elf = ELFFile(f)
        frames = elf.get_section_by_name(".eh_frame")
        if frames is not None and frames["sh_type"] != "SHT_NOBITS":
            found.update(function_bounds(frames.data(), int(frames["sh_addr"])))
        for section in elf.iter_sections():
            if isinstance(section, SymbolTableSection):
                for symbol in section.iter_symbols():
                    if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_size"]:
                        found.setdefault(int(symbol["st_value"]), int(symbol["st_size"]))
    segments = tuple((s.address, data) for s, data in binary.code())
    inside = {a: n for a, n in found.items() if any(s <= a and a + n <= s + len(d) for s, d in segments)}
    return CodeMap(segments, tuple(sorted(inside.items())))
