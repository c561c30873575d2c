"""Memory for new code in a running process: anonymous pages, readable and executable, that the process maps itself.

They are at a fixed distance from its executable (see build.emit), where nothing else is, so new code is bound when the
patch is made. They are ours if the mapping has just these bounds; whether they are in use, their bytes say.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from typing import Final

from vmkit.errors import RefusedError, UnsupportedError
from vmkit.hotfix.verify import Span
from vmkit.system.clock import Deadline
from vmkit.system.procmem import Mapping, ProcessMemory
from vmkit.system.ptrace import StoppedProcess, stopped
from vmkit.system.remotecall import BusyError, Gadgets, call, find_gadgets

PATIENCE_SECONDS: Final = 5.0
"""Longest wait for the C library to be mapped in a process that has just begun, and for a thread in a system call."""
STOP_SECONDS: Final = 2.0
_MMAP, _MUNMAP = 9, 11  # asm/unistd_64.h
_READ_EXECUTE: Final = 0x1 | 0x4
_FLAGS: Final = 0x02 | 0x20 | 0x100000
"""MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE; a kernel before 4.17 takes the address for a wish."""
_LEAST: Final = 0x10000
"""What vm.mmap_min_addr usually keeps free."""


def is_there(room: Span, maps: Sequence[Mapping], label: str) -> bool:
    """Whether the process has the room.

    Raises:
        RefusedError: something else is there.
    """
    found = [m for m in maps if m.start < room.address + room.length and m.end > room.address]
    if not found:
        return False
    (m, *more) = found
    if more or (m.start, m.end - m.start, m.permissions, m.path) != (room.address, room.length, "r-xp", ""):
        raise RefusedError(
            f"{label} has something else at {m.start:#x}, where the new code has to go",
            hint="make the patch again with another id: its place comes from that",
        )
    return True


def make(room: Span, pid: int, memory: ProcessMemory, maps: Sequence[Mapping], label: str) -> None:
    """Have the process map the room. All its threads stand for a moment.

    Raises:
        RefusedError: it cannot be had; nothing changed.
        EffectError, DeadlineError: the process could not be steered.
    """
    if platform.machine() != "x86_64":
        raise UnsupportedError(f"making room for new code is not supported on {platform.machine()}")
    if room.address < _LEAST:
        raise RefusedError(f"{label} has no addresses below its executable, where the new code has to go")
    gadgets = _gadgets(memory, maps, label)
    arguments = (room.address, room.length, _READ_EXECUTE, _FLAGS, -1, 0)
    try:
        at = _call(pid, memory, gadgets, _MMAP, *arguments)
        if at != room.address:
            _call(pid, memory, gadgets, _MUNMAP, at, room.length)
            raise RefusedError(f"{label} has something else at {room.address:#x}, where the new code has to go")
    except OSError as e:
        raise RefusedError(
            f"{label} gets no executable memory at {room.address:#x}: {e.strerror}",
            hint="SELinux: execmem; seccomp: mmap; vmkit show NAME tells how it is confined",
        ) from e


def remove(room: Span, held: StoppedProcess, memory: ProcessMemory, maps: Sequence[Mapping], label: str) -> None:
    """Have the process, which is held, give the room back.

    Raises:
        RefusedError: it cannot, now; the room stays.
        EffectError: the process could not be steered.
    """
    try:
        call(held, memory, _gadgets(memory, maps, label), _MUNMAP, room.address, room.length)
    except OSError as e:
        raise RefusedError(f"{label} does not give {room.address:#x} back: {e.strerror}") from e


def _gadgets(memory: ProcessMemory, maps: Sequence[Mapping], label: str) -> Gadgets:
    found = find_gadgets(memory, maps)
    if found is None:
        raise BusyError(
            f"{label} has no C library that can make a system call for it, so it gets no memory for new code"
        )
    return found


def _call(pid: int, memory: ProcessMemory, gadgets: Gadgets, number: int, *arguments: int) -> int:
    deadline = Deadline(PATIENCE_SECONDS)
    while True:
        try:
            with stopped(pid, seconds=STOP_SECONDS) as held:
                return call(held, memory, gadgets, number, *arguments)
        except BusyError:
            if deadline.passed:
                raise
        time.sleep(0.005)
