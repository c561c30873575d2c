"""Return addresses of a thread, by the .eh_frame of the files that it runs. x86-64.

Where a frame has no such description, or one that is an expression (a signal frame), the walk ends and says so; who
needs certainty then takes every word of the stack for a return address.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vmkit.errors import VmkitError
from vmkit.hotfix.build.frames import Entry, entries
from vmkit.system.elf import FILE_LIMIT, damaged_is_refused
from vmkit.system.files import open_regular
from vmkit.system.procmem import Mapping, mapped_file, mappings
from vmkit.system.ptrace import Registers

DEPTH: Final = 512
_STACK_POINTER, _RETURN_ADDRESS = 7, 16

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Row:
    """How to go one frame up: the frame's address is `register` + `offset`; `saved` is where each register is from it.

    `ends` says that there is no frame above.
    """

    register: int
    offset: int
    saved: dict[int, int]
    ends: bool


def row_at(entry: Entry, offset: int) -> Row | None:
    """The row for the instruction `offset` bytes into a function; None if it is an expression, or unknown. Pure."""
    from elftools.dwarf.callframe import FDE, CallFrameInfo
    from elftools.dwarf.structs import DWARFStructs

    # Both records by themselves make a section: the own one refers to the common one by its distance.
    own = entry.own[:4] + (len(entry.common) + 4).to_bytes(4, "little") + entry.own[8:]
    data = entry.common + own + bytes(4)
    structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
    frames: Any = CallFrameInfo(io.BytesIO(data), len(data), 0, structs, for_eh_frame=True)
    described = next(e for e in frames.get_entries() if isinstance(e, FDE))
    first = described.header["initial_location"]
    rows = [r for r in described.get_decoded().table if r["pc"] - first <= offset]
    if not rows or rows[-1]["cfa"].reg is None:
        return None
    row = rows[-1]
    saved, ends = {}, False
    for number, rule in row.items():
        if number in ("pc", "cfa"):
            continue
        if rule.type == "OFFSET":
            saved[int(number)] = int(rule.arg)
        elif number == _RETURN_ADDRESS:
            if rule.type != "UNDEFINED":
                return None
            ends = True
        elif rule.type not in ("SAME_VALUE", "UNDEFINED"):
            return None
    if not ends and _RETURN_ADDRESS not in saved:
        return None
    return Row(int(row["cfa"].reg), int(row["cfa"].offset), saved, ends)


class Unwinder:
    """Walks stacks of one process. Making it reads the files that the process has mapped; walking reads none."""

    def __init__(self, pid: int) -> None:
        self._modules: list[tuple[Mapping, int, list[Entry]]] = []
        tables: dict[str, tuple[list[tuple[int, int, int]], list[Entry]] | None] = {}
        for m in mappings(pid):
            if "x" not in m.permissions or not m.path.startswith("/"):
                continue
            if m.path not in tables:
                tables[m.path] = _table(pid, m)
            table = tables[m.path]
            if table is None:
                continue
            bias = next(
                (m.start - m.offset + off - at for at, off, size in table[0] if off <= m.offset < off + size), None
            )
            if bias is None:
                bias = next((m.start + off - m.offset - at for at, off, _ in table[0]), 0)
            self._modules.append((m, bias, table[1]))

    def return_addresses(self, registers: Registers, read: Read) -> list[int] | None:
        """Where the frames of a stopped thread return to, innermost first; None if the walk did not reach the end."""
        found: list[int] = []
        values, pointer = dict(registers.numbered), registers.ip
        for depth in range(DEPTH):
            row = self._row(pointer - (depth > 0))
            if row is None:
                return None
            if row.ends:
                return found
            if row.register not in values:
                return None
            frame = (values[row.register] + row.offset) % (1 << 64)
            try:
                for number, offset in row.saved.items():
                    values[number] = int.from_bytes(read(frame + offset, 8), "little")
            except VmkitError:
                return None
            values[_STACK_POINTER] = frame
            pointer = values[_RETURN_ADDRESS]
            if pointer == 0:
                return found
            found.append(pointer)
        return None

    def _row(self, pointer: int) -> Row | None:
        for m, bias, table in self._modules:
            if m.start <= pointer < m.end:
                address = pointer - bias
                i = bisect.bisect_right(table, address, key=lambda e: e.start) - 1
                if i < 0 or address >= table[i].start + table[i].size:
                    return None
                return row_at(table[i], address - table[i].start)
        return None


def _table(pid: int, mapping: Mapping) -> tuple[list[tuple[int, int, int]], list[Entry]] | None:
    """Executable segments (link address, file offset, size) and the records of a mapped file; None if it has none."""
    from elftools.elf.elffile import ELFFile

    path = mapped_file(pid, mapping)
    try:
        with open_regular(path, "file", limit=FILE_LIMIT) as f, damaged_is_refused(path):
            elf = ELFFile(f)
            section = elf.get_section_by_name(".eh_frame")
            if section is None:
                return None
            code = [
                (int(s["p_vaddr"]), int(s["p_offset"]), int(s["p_filesz"]))
                for s in elf.iter_segments("PT_LOAD")
                if s["p_flags"] & 1
            ]
            found = sorted(entries(section.data(), int(section["sh_addr"])), key=lambda e: e.start)
    except VmkitError:
        return None
    return code, found
