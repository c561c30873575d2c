"""Other processes as /proc shows them: who they are, what they have mapped, and their memory."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from vmkit.errors import EffectError, NotFoundError, RefusedError
from vmkit.system.process import ProcessId

PTRACE_HINT = (
    "run as root (CAP_SYS_PTRACE); in a container give it that capability; "
    "/proc/sys/kernel/yama/ptrace_scope has to be below 3"
)
_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TOUCHED: Final = re.compile(rb"[\x40-\xff]+")
"""Highest bytes of entries of /proc/PID/pagemap: bit 63 is for a page in memory, bit 62 for one that is swapped out
(Documentation/admin-guide/mm/pagemap.rst)."""


class Mapping(NamedTuple):
    """One line of /proc/PID/maps (proc_pid_maps(5)): addresses, file offset, permissions, path ('' if anonymous)."""

    start: int
    end: int
    offset: int
    permissions: str
    path: str


@dataclass(frozen=True, slots=True)
class Running:
    """A process found in /proc: its identity, the path of its executable as the kernel shows it, its arguments."""

    id: ProcessId
    exe: str
    argv: tuple[str, ...]

    @property
    def exe_file(self) -> Path:
        """A path that opens the very file that runs, even if it was deleted or lies in another mount namespace."""
        return Path(f"/proc/{self.id.pid}/exe")

    def argument(self, option: str) -> str:
        """The argument that follows an option, the first one of that name; '' if there is none."""
        position = self.argv.index(option) if option in self.argv else len(self.argv)
        return self.argv[position + 1] if position + 1 < len(self.argv) else ""


def running(wanted: Callable[[str], bool]) -> list[Running]:
    """Processes whose executable's base name is `wanted`. One look at /proc; those that end meanwhile are left out."""
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are enough, and there are many
        if not entry.isdigit():
            continue
        try:
            exe = str(Path(f"/proc/{entry}/exe").readlink())
            if not wanted(exe.removesuffix(" (deleted)").rpartition("/")[2]):
                continue
            raw = Path(f"/proc/{entry}/cmdline").read_bytes()
        except OSError:
            continue
        identity = ProcessId.of(int(entry))
        if identity is not None:
            found.append(Running(identity, exe, tuple(a.decode(errors="replace") for a in raw.split(b"\0")[:-1])))
    return sorted(found, key=lambda r: r.id.pid)


def executable_path(pid: int) -> str:
    """What the kernel calls the executable of a process; ends in ' (deleted)' if the file is gone.

    Raises:
        NotFoundError: no such process.
        RefusedError: not permitted.
    """
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError as e:
        raise _translated(pid, e, "look at the executable") from e


def mappings(pid: int) -> list[Mapping]:
    """What a process has mapped, by address.

    Raises:
        NotFoundError: no such process.
        RefusedError: not permitted.
    """
    return MappingTable(pid).now()


class MappingTable:
    """What a process has mapped. Whoever has no time asks once before it matters: what has not changed is kept."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._text = b""
        self._parsed: list[Mapping] = []

    def now(self) -> list[Mapping]:
        """The mappings by address. Raises as `mappings` does."""
        try:
            text = Path(f"/proc/{self._pid}/maps").read_bytes()
        except OSError as e:
            raise _translated(self._pid, e, "read the memory map") from e
        if text != self._text:
            found = map(_MAP.match, text.decode(errors="replace").splitlines())
            self._parsed = [Mapping(int(m[1], 16), int(m[2], 16), int(m[4], 16), m[3], m[5]) for m in found if m]
            self._text = text
        return self._parsed


def mapped_file(pid: int, mapping: Mapping) -> Path:
    """A path that opens the file of a mapping, in whichever mount namespace it lies.

    It is the very file, even if it was deleted or replaced, where map_files can be used (CAP_SYS_ADMIN); else the one
    that has its name now.
    """
    exact = Path(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}")
    try:
        os.close(os.open(exact, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return Path(f"/proc/{pid}/root{mapping.path}")
    return exact


def tracer_of(pid: int, tid: int | None = None) -> int:
    """Process that traces a thread already (a debugger, another vmkit); 0 if none does or the thread is gone."""
    return int(_status(pid, tid).get("TracerPid", "0"))


def thread_state(pid: int, tid: int) -> str:
    """One letter as in proc_pid_stat(5): 'R', 'S', 'D', 'Z', 't', ...; '' if the thread is gone."""
    return _status(pid, tid).get("State", "")[:1]


def _status(pid: int, tid: int | None) -> dict[str, str]:
    path = Path(f"/proc/{pid}/task/{tid or pid}/status")
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


class ProcessMemory:
    """The memory of one process through /proc/PID/mem. A context manager.

    Writes go through the page protection as a debugger's do (FOLL_FORCE): the text of a program is a private mapping,
    so the kernel first gives the process its own copy of the page. Neither the file nor another process changes, and
    the copy lives as long as the process.
    """

    def __init__(self, process: ProcessId) -> None:
        self.process = process
        self._fd = -1
        self._pages = -1

    def __enter__(self) -> Self:
        """Open it.

        Raises:
            NotFoundError: the process has ended.
            RefusedError: not permitted.
        """
        pid = self.process.pid
        try:
            self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        except OSError as e:
            raise _translated(pid, e, "open the memory") from e
        # The descriptor is bound to the address space, so looking once that it is the right one is enough.
        if not self.process.alive():
            self.__exit__(None, None, None)
            raise NotFoundError(f"process {pid} has ended")
        with contextlib.suppress(OSError):  # a kernel without it: `touched` then does without
            self._pages = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for fd in (self._fd, self._pages):
            if fd >= 0:
                os.close(fd)
        self._fd = self._pages = -1

    def read(self, address: int, length: int) -> bytes:
        """Exactly `length` bytes.

        Raises:
            RefusedError: part of the range is not mapped, or the process has ended.
        """
        pid = self.process.pid
        try:
            data = os.pread(self._fd, length, address)
        except (OSError, OverflowError) as e:
            raise RefusedError(f"cannot read {length} bytes at {address:#x} of process {pid}: {e}") from e
        if len(data) != length:
            state = "is not mapped" if self.process.alive() else "cannot be read: the process has ended"
            raise RefusedError(f"{address + len(data):#x} of process {pid} {state}")
        return data

    def touched(self, start: int, end: int) -> list[tuple[int, int]]:
        """Those parts of an anonymous mapping that hold anything, to whole pages: the rest was never written to.

        All of it where the kernel does not say. Reading a page that was never written to makes the kernel map one, so
        large mappings are to be read by this.
        """
        first = start // _PAGE
        count = -(-end // _PAGE) - first
        try:
            flags = os.pread(self._pages, count * 8, first * 8)[7::8]
        except OSError:
            return [(start, end)]
        if len(flags) != count:
            return [(start, end)]
        runs = ((first + m.start(), first + m.end()) for m in _TOUCHED.finditer(flags))
        return [(max(start, a * _PAGE), min(end, b * _PAGE)) for a, b in runs]

    def write(self, address: int, data: bytes) -> None:
        """Write all of `data`.

        Raises:
            EffectError: it could not be written; `left` says how much was.
        """
        pid = self.process.pid
        try:
            done = os.pwrite(self._fd, data, address)
        except (OSError, OverflowError) as e:
            raise EffectError(
                f"cannot write {len(data)} bytes at {address:#x} of process {pid}: {e}", left="nothing was written"
            ) from e
        if done != len(data):
            raise EffectError(
                f"cannot write {len(data)} bytes at {address:#x} of process {pid}", left=f"{done} bytes were written"
            )


def _translated(pid: int, error: OSError, what: str) -> RefusedError:
    if error.errno in (errno.ENOENT, errno.ESRCH):
        return NotFoundError(f"process {pid} has ended")
    if error.errno in (errno.EACCES, errno.EPERM):
        return RefusedError(f"not permitted to {what} of process {pid}", hint=PTRACE_HINT)
    return RefusedError(f"cannot {what} of process {pid}: {error.strerror}")
