"""Having a stopped process make one system call: its memory is then as if it had made the call itself. x86-64.

A thread that stands within a system call of its own is given registers that lead to the instructions `syscall; ret`,
and a stack below what it uses, whose return address is the C library's way back from a signal handler (rt_sigreturn)
with all that the thread had in its registers. So the tracer may be killed at any moment: what was begun ends by itself,
and the thread goes on where it was. A tracer that lives puts the registers back itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vmkit.errors import EffectError, RefusedError
from vmkit.system.clock import Deadline
from vmkit.system.procmem import Mapping, ProcessMemory
from vmkit.system.ptrace import FLOATING, GENERAL, StoppedProcess, request

SECONDS: Final = 2.0
_CALL: Final = bytes.fromhex("0f05c3")
"""syscall; ret. The C library's getpid() is that, with a number before it."""
_RESTORE: Final = bytes.fromhex("48c7c00f0000000f05")
"""mov $15, %rax; syscall: the C library's restorer, by which unwinders know the frame of a signal handler."""

# <sys/ptrace.h>, and struct user_regs_struct of <sys/user.h> as numbers of words
_CONT, _SYSCALL, _INTERRUPT, _SETOPTIONS, _GETSIGMASK, _SETSIGMASK = 7, 24, 0x4207, 0x4200, 0x420A, 0x420B
_TRACESYSGOOD: Final = 1
_WORDS: Final = 27
_AX, _ORIG_AX, _IP, _CS, _FLAGS, _SP, _SS = 10, 15, 16, 17, 18, 19, 20
_ARGUMENTS: Final = (14, 13, 12, 7, 9, 8)
"""rdi, rsi, rdx, r10, r8, r9 (System V ABI for AMD64, A.2.1)."""
_SIGCONTEXT: Final = (9, 8, 7, 6, 3, 2, 1, 0, 14, 13, 4, 5, 12, _AX, 11, _SP, _IP, _FLAGS)
"""Order of the registers in struct sigcontext_64 (arch/x86/include/uapi/asm/sigcontext.h)."""
_RED_ZONE: Final = 128
_FLOATING_SIZE: Final = 512
_AGAIN: Final = (512, 513, 514)
"""ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND (include/linux/errno.h): the kernel would begin the call anew."""
_BLOCK: Final = 516
"""ERESTART_RESTARTBLOCK. After rt_sigreturn nothing knows any more how that call goes on."""
_KEEP: Final = 0x6
"""uc_flags: UC_SIGCONTEXT_SS and UC_STRICT_RESTORE_SS, as the kernel itself sets them for 64-bit code."""
_NO_STACK: Final = 0xFFFF
"""Flags that sigaltstack() refuses, so that rt_sigreturn leaves the alternative stack alone."""


class BusyError(RefusedError):
    """No thread stands in a system call at the moment; trying again helps."""


@dataclass(frozen=True, slots=True)
class Gadgets:
    """Addresses in a process: of `syscall; ret`, and of the way back from a signal handler."""

    call: int
    restore: int


def find_gadgets(memory: ProcessMemory, maps: Iterable[Mapping]) -> Gadgets | None:
    """Where the process has what a call needs, in code that is mapped from files; None: it has not (yet)."""
    call = restore = 0
    for m in sorted(maps, key=lambda m: "/libc" not in m.path):
        if m.permissions[:3] != "r-x" or not m.path.startswith("/"):
            continue
        data = memory.read(m.start, m.end - m.start)
        for_call, for_restore = data.find(_CALL), data.find(_RESTORE)
        call = call or (m.start + for_call if for_call >= 0 else 0)
        restore = restore or (m.start + for_restore if for_restore >= 0 else 0)
        if call and restore:
            return Gadgets(call, restore)
    return None


def call(held: StoppedProcess, memory: ProcessMemory, gadgets: Gadgets, number: int, *arguments: int) -> int:
    """Make the call in one of the threads. Afterwards they all stand as before.

    Args:
        held: the process.
        memory: of the same.
        gadgets: see `find_gadgets`.
        number: of the call (asm/unistd_64.h).
        arguments: up to six.

    Returns:
        What the call returned, of 0 and above.

    Raises:
        BusyError: no thread is in a system call, so none can be borrowed.
        OSError: the call failed.
        EffectError: the thread cannot be steered.
    """
    tid, words = _choose(held)
    mask = bytearray(8)
    _ask(_GETSIGMASK, tid, 8, mask)
    stack = _frame(memory, gadgets, words, bytes(mask), held.get(tid, FLOATING, _FLOATING_SIZE))
    borrowed = list(words)
    for index, value in zip(_ARGUMENTS, arguments, strict=False):
        borrowed[index] = value % (1 << 64)
    borrowed[_AX], borrowed[_ORIG_AX] = number, (1 << 64) - 1  # the interrupted call is not begun anew by the kernel
    borrowed[_IP], borrowed[_SP] = gadgets.call, stack
    original = struct.pack(f"<{_WORDS}Q", *words)
    # From the first of these lines to the last the thread finds its way back by itself, if this process is killed.
    held.set(tid, GENERAL, struct.pack(f"<{_WORDS}Q", *borrowed))
    try:
        _ask(_SETSIGMASK, tid, 8, bytearray(b"\xff" * 8))
        _ask(_SETOPTIONS, tid, 0, _TRACESYSGOOD)
        for _ in ("entry", "exit"):
            _resume(held, tid, _SYSCALL, signal.SIGTRAP | 0x80)
        result = struct.unpack_from("<q", held.get(tid, GENERAL, _WORDS * 8), _AX * 8)[0]
        # From where it stands now the kernel would not begin an interrupted call anew: have it stop where it does.
        _ask(_INTERRUPT, tid, 0, 0)
        _resume(held, tid, _CONT, None)
    finally:
        with contextlib.suppress(EffectError):
            _ask(_SETSIGMASK, tid, 8, mask)
        held.set(tid, GENERAL, original)
    if -4096 < result < 0:
        raise OSError(-result, os.strerror(-result))
    return int(result)


def _choose(held: StoppedProcess) -> tuple[int, list[int]]:
    """A thread that stands in a system call, and its registers: there nothing is half done in user space."""
    for tid in sorted(t for t, number in held.signals.items() if number == 0):
        words = list(struct.unpack(f"<{_WORDS}Q", held.get(tid, GENERAL, _WORDS * 8)))
        in_call = words[_ORIG_AX] < 1 << 63
        if in_call and words[_IP] and words[_SP] and words[_CS] == 0x33:
            return tid, words
    raise BusyError(f"no thread of process {held.pid} is in a system call", hint="try again")


def _frame(memory: ProcessMemory, gadgets: Gadgets, words: list[int], mask: bytes, floating: bytes) -> int:
    """Write a stack that leads back; its address. Nothing of it is in use by the thread."""
    ax, ip = words[_AX], words[_IP]
    if (failed := (1 << 64) - ax) in _AGAIN:
        ax, ip = words[_ORIG_AX], ip - 2
    elif failed == _BLOCK:
        ax = (1 << 64) - errno.EINTR
    back = list(words)
    back[_AX], back[_IP] = ax, ip
    at_floating = (words[_SP] - _RED_ZONE - _FLOATING_SIZE) & -64
    context = struct.pack("<18Q", *(back[i] for i in _SIGCONTEXT))
    context += struct.pack("<4H", words[_CS], 0, 0, words[_SS])
    context += struct.pack("<5Q", 0, 0, 0, 0, at_floating) + bytes(64)
    # Without the marks of a larger area the kernel takes the 512 bytes of FXSAVE (fpu__restore_sig).
    plain = floating[:464] + bytes(48)
    ucontext = struct.pack("<QQQIIQ", _KEEP, 0, 0, _NO_STACK, 0, 0) + context + mask
    start = (at_floating - 8 - len(ucontext)) & -16
    memory.write(at_floating, plain)
    memory.write(start, struct.pack("<Q", gadgets.restore) + ucontext)
    return start


def _resume(held: StoppedProcess, tid: int, how: int, wanted: int | None) -> None:
    """Let the thread run until it stands for the reason that is wanted (None: the stop that was asked for)."""
    deadline = Deadline(SECONDS)
    _ask(how, tid, 0, 0)
    while True:
        done, status = os.waitpid(tid, os.WNOHANG | 0x40000000)
        if done == 0:
            if deadline.passed:
                raise EffectError(f"thread {tid} of process {held.pid} does not come back from a system call")
            time.sleep(0.00002)
            continue
        if not os.WIFSTOPPED(status):
            raise EffectError(f"thread {tid} of process {held.pid} ended while it made a system call")
        got, event = os.WSTOPSIG(status), status >> 16
        if (wanted is None and event) or (wanted is not None and got == wanted):
            return
        if not event and got in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP):
            raise EffectError(f"thread {tid} of process {held.pid} cannot make a system call: signal {got}")
        if not event:  # SIGSTOP: nothing else comes through
            held.signals[tid] = got
        _ask(how, tid, 0, 0)


def _ask(what: int, tid: int, address: int, data: int | bytearray) -> None:
    if failed := request(what, tid, address, data):
        raise EffectError(f"cannot steer thread {tid}: {os.strerror(failed)}")
