"""Holding all threads of another process still, with ptrace(2).

PTRACE_SEIZE and PTRACE_INTERRUPT are used rather than PTRACE_ATTACH: no signal is sent, so nothing in the process can
see it. If the tracer dies the kernel lets every thread go on by itself; a killed vmkit leaves no process stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vmkit.errors import DeadlineError, EffectError, NotFoundError, RefusedError, UnsupportedError
from vmkit.system.clock import Deadline
from vmkit.system.procmem import PTRACE_HINT, thread_state, tracer_of

# <sys/ptrace.h>, <elf.h>, <sys/wait.h>
_DETACH: Final = 17
_GETREGSET: Final = 0x4204
_SETREGSET: Final = 0x4205
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_EVENT_STOP: Final = 128
GENERAL: Final = 1
FLOATING: Final = 2
"""Sets of registers: NT_PRSTATUS and NT_PRFPREG."""
_WALL: Final = 0x40000000

_REGISTERS: Final = {
    "x86_64": (27 * 8, 16, 19, (10, 12, 11, 5, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0)),
    "aarch64": (34 * 8, 32, 31, tuple(range(32))),
}
"""Of struct user_regs_struct and struct user_pt_regs: size in bytes; which word is the instruction pointer, and which
the stack pointer; which word each register is, by its number in DWARF (System V ABI for AMD64, figure 3.36)."""


@dataclass(frozen=True, slots=True)
class Registers:
    """Of a stopped thread: instruction pointer, stack pointer, and general registers by their numbers in DWARF."""

    ip: int
    sp: int
    numbered: dict[int, int]


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class StoppedProcess:
    """A process none of whose threads runs. Made by `stopped`, and to be used by the thread that made it.

    Attributes:
        pid: the process.
        signals: each stopped thread, and the signal that it was about to receive (0: none); it gets it at the detach.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.signals: dict[int, int] = {}

    def registers(self) -> dict[int, Registers]:
        """The registers of each thread, by thread.

        Raises:
            EffectError: a thread was killed while it was held.
        """
        size, pointer, stack, numbered = _REGISTERS[platform.machine()]
        found = {}
        for tid in self.signals:
            words = struct.unpack(f"<{size // 8}Q", self.get(tid, GENERAL, size))
            values = {number: words[index] for number, index in enumerate(numbered)}
            found[tid] = Registers(words[pointer], words[stack], values)
        return found

    def get(self, tid: int, kind: int, size: int) -> bytes:
        """A set of registers of a thread as the kernel gives it. Raises EffectError if the thread was killed."""
        buffer = ctypes.create_string_buffer(size)
        vector = _Iovec(ctypes.addressof(buffer), size)
        if failed := request(_GETREGSET, tid, kind, ctypes.addressof(vector)):
            raise EffectError(f"cannot read the registers of thread {tid}: {os.strerror(failed)}")
        return buffer.raw

    def set(self, tid: int, kind: int, data: bytes) -> None:
        """Set what `get` gives. Raises EffectError if the thread was killed."""
        buffer = ctypes.create_string_buffer(data, len(data))
        vector = _Iovec(ctypes.addressof(buffer), len(data))
        if failed := request(_SETREGSET, tid, kind, ctypes.addressof(vector)):
            raise EffectError(f"cannot set the registers of thread {tid}: {os.strerror(failed)}")


class Stopping:
    """Threads of a process that were asked to stop. For whoever stops many processes: all are asked, then waited for.

    To be used by the thread that made it. `let_go` has to be called in the end; after it, it can be used again.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._held = StoppedProcess(pid)
        self._waiting: set[int] = set()
        self._seen: set[int] = set()

    def ask(self) -> bool:
        """Ask each thread that was not asked yet to stop; False if there was none. Waits for nothing.

        Raises:
            RefusedError: not permitted, or another process traces it (the message names it).
            UnsupportedError: registers of this CPU architecture are not known here.
        """
        if platform.machine() not in _REGISTERS:
            raise UnsupportedError(f"stopping processes is not supported on {platform.machine()}")
        new = _threads(self.pid) - self._seen
        self._seen |= new
        for tid in new:
            if _seize(self.pid, tid):
                self._waiting.add(tid)
        return bool(new)

    def stand(self, seconds: float) -> StoppedProcess:
        """Wait until every thread stands, those among them that were not asked yet.

        Raises:
            NotFoundError: no such process.
            DeadlineError: a thread did not stop within so many seconds.
            RefusedError, UnsupportedError: see `ask`.
        """
        deadline = Deadline(seconds)
        # A thread that still runs can start others, so look again until there is none that is new.
        self.ask()
        while True:
            _wait(self._held, self._waiting, deadline)
            if not self.ask():
                break
        if not self._held.signals:
            raise NotFoundError(f"process {self.pid} has ended")
        return self._held

    def let_go(self) -> None:
        """Let all threads go on, whether they stand already or not."""
        held, waiting = self._held, self._waiting
        self._held, self._waiting, self._seen = StoppedProcess(self.pid), set(), set()
        _let_go(held, waiting)


@contextlib.contextmanager
def stopped(pid: int, *, seconds: float = 2.0) -> Iterator[StoppedProcess]:
    """Hold every thread of a process while the block runs; they always go on after it.

    Args:
        pid: the process.
        seconds: how long to wait until all threads stand. A thread in an uninterruptible sleep of the kernel does not.

    Raises: as Stopping.stand.
    """
    stopping = Stopping(pid)
    try:
        yield stopping.stand(seconds)
    finally:
        stopping.let_go()


def _threads(pid: int) -> set[int]:
    """Numbers of all threads, those that have ended and wait for the others (zombies) among them."""
    try:
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}  # noqa: PTH208 - the guests are paused meanwhile
    except OSError:
        return set()


def _seize(pid: int, tid: int) -> bool:
    """Attach to a thread and ask it to stop; False if it has ended."""
    failed = request(_SEIZE, tid)
    if failed == errno.ESRCH or (failed and thread_state(pid, tid) in ("Z", "X", "")):
        return False
    if failed == errno.EPERM:
        tracer = tracer_of(pid, tid)
        if tracer:
            raise RefusedError(
                f"process {pid} is being traced by process {tracer} already",
                hint=f"end the debugger first: ps -p {tracer}",
            )
        raise RefusedError(f"not permitted to stop process {pid}", hint=PTRACE_HINT)
    if failed:
        raise RefusedError(f"cannot attach to thread {tid} of process {pid}: {os.strerror(failed)}")
    return request(_INTERRUPT, tid) == 0


def _wait(held: StoppedProcess, waiting: set[int], deadline: Deadline) -> None:
    """Until each of `waiting` stands (it moves to `held`) or has ended."""
    pause = 0.00002
    while waiting:
        for tid in list(waiting):
            try:
                done, status = os.waitpid(tid, os.WNOHANG | _WALL)
            except ChildProcessError:  # it has ended, and someone else was told
                waiting.discard(tid)
                continue
            if done == 0:
                continue
            waiting.discard(tid)
            if os.WIFSTOPPED(status):
                # Either the stop that was asked for, or the moment before a signal is delivered: keep that signal.
                held.signals[tid] = 0 if status >> 16 == _EVENT_STOP else os.WSTOPSIG(status)
        if waiting:
            if deadline.passed:
                raise DeadlineError(
                    f"{len(waiting)} threads of process {held.pid} did not stop within {deadline.seconds:g} s",
                    hint=f"see where they hang: cat /proc/{held.pid}/task/{min(waiting)}/stack",
                )
            time.sleep(pause)
            pause = min(pause * 2, 0.001)


def _let_go(held: StoppedProcess, waiting: set[int]) -> None:
    """Detach from all threads. One that never stopped cannot be detached; the kernel does it when this process ends."""
    if waiting:
        with contextlib.suppress(DeadlineError):
            _wait(held, waiting, Deadline(0.2))
    killed = [tid for tid, number in held.signals.items() if request(_DETACH, tid, 0, number)]
    # A thread that was killed while it was held is ours to reap; until then its process cannot end for its own parent.
    deadline = Deadline(0.5)
    while killed:
        killed = [tid for tid in killed if not _reaped(tid)]
        if deadline.passed:
            break
        if killed:
            time.sleep(0.001)


def _reaped(tid: int) -> bool:
    try:
        return os.waitpid(tid, os.WNOHANG | _WALL)[0] == tid
    except ChildProcessError:
        return True


def request(what: int, tid: int, address: int = 0, data: int | bytearray = 0) -> int:
    """ptrace(2), with a number or a buffer as the last argument: 0, or the errno."""
    ctypes.set_errno(0)
    if isinstance(data, bytearray):
        data = ctypes.addressof(ctypes.c_char.from_buffer(data))
    return ctypes.get_errno() if _libc.ptrace(what, tid, address, data) == -1 else 0
