"""A running process as something that can be patched."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Final, Self

from vmkit.errors import RefusedError
from vmkit.hotfix.stacks import CALL_LENGTH, Stack, loose_stacks, return_sites, stack_of, words_in
from vmkit.hotfix.targets import room as rooms
from vmkit.hotfix.unwind import Unwinder
from vmkit.hotfix.verify import Span, inside
from vmkit.system.clock import Deadline
from vmkit.system.process import ProcessId
from vmkit.system.procmem import Mapping, MappingTable, ProcessMemory
from vmkit.system.ptrace import Registers, StoppedProcess, Stopping
from vmkit.system.remotecall import BusyError

STOP_SECONDS: Final = 2.0
"""Longest wait for the threads of one process to stand."""
AWAY_SECONDS: Final = 1.0
"""Longest wait for the threads to be elsewhere than in the bytes that change; the guests are paused meanwhile."""


class ProcessImage:
    """The memory of one process, and the means to hold it still. A context manager that opens the memory.

    What `still` makes sure of: no thread of the process runs, no thread's next instruction is within the spans, and
    no thread will return to them. Each word of a thread's stack that is an address in the spans counts as a return
    address, unless the walk by .eh_frame reaches the end of the stack and does not meet it. Stacks that no thread is on
    (see stacks.loose_stacks: those of QEMU's suspended coroutines, and of the thread that runs one) cannot be walked:
    on them every such word that a call can have left there counts. Where a coroutine goes on itself is not looked at:
    that is in qemu_coroutine_switch, saved by sigsetjmp in a form that glibc keeps secret (PTR_MANGLE).

    Caches: the write goes to a page that the kernel copies for the process; the threads come back to it through a
    return from the kernel, which serialises an x86 CPU (Intel SDM vol. 3, 9.1.3), and on AArch64 the kernel itself
    flushes the instruction cache when a tracer writes (copy_to_user_page).
    """

    def __init__(self, process: ProcessId, label: str, room: Span | None = None) -> None:
        self.process = process
        self.label = label
        self.room = room
        self._memory = ProcessMemory(process)
        self._mappings = MappingTable(process.pid)
        self._stacks: tuple[list[Mapping], list[Stack]] = ([], [])
        self._sites: dict[Span, Collection[int]] = {}
        self._stopping = Stopping(process.pid)

    def __enter__(self) -> Self:
        self._memory.__enter__()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._memory.__exit__(None, None, None)

    @property
    def gone(self) -> bool:
        """Whether it has ended; then there is nothing left to put right."""
        return not self.process.alive()

    def read(self, address: int, length: int) -> bytes:
        """Bytes of its memory; see ProcessMemory.read. A room for new code that is not there yet holds zeros."""
        try:
            return self._memory.read(address, length)
        except RefusedError:
            room = self.room
            if room is None or address not in room or address + length > room.address + room.length or self.has_room():
                raise
            return bytes(length)

    def has_room(self) -> bool:
        """Whether the room for new code is there. Raises RefusedError if something else is in its place."""
        return self.room is not None and rooms.is_there(self.room, self._mappings.now(), self.label)

    def write(self, address: int, data: bytes) -> None:
        """Change its memory; see ProcessMemory.write."""
        self._memory.write(address, data)

    def prepare(self, spans: Sequence[Span]) -> None:
        """Have at hand what `still` needs for these spans, so that guests do not stand for it."""
        self._loose(self._mappings.now())
        self._return_sites(spans)

    def make_room(self) -> None:
        """Have the room for new code, if the patch needs one.

        Raises:
            RefusedError: it cannot be had; nothing changed.
            EffectError, DeadlineError: the process could not be steered.
        """
        deadline = Deadline(rooms.PATIENCE_SECONDS)
        while self.room is not None and not self.has_room():
            try:
                rooms.make(self.room, self.process.pid, self._memory, self._mappings.now(), self.label)
            except BusyError:  # a process that has just begun
                if deadline.passed:
                    raise
                time.sleep(0.02)

    def tidy(self) -> None:
        """Give a room back that holds nothing, once no thread has an address in it.

        Raises:
            VmkitError: that cannot be done now; the room stays, and does no harm.
        """
        room = self.room
        if room is None or self.gone or not self.has_room():
            return
        deadline = Deadline(AWAY_SECONDS)
        while not any(self.read(room.address, room.length)):
            try:
                with self.still([room]) as held:
                    rooms.remove(room, held, self._memory, self._mappings.now(), self.label)
                return
            except BusyError:
                if deadline.passed:
                    raise
            time.sleep(0.005)

    def halt(self) -> None:
        """Ask its threads to stand, so that `still` finds them so; see Stopping.ask. `let_go` takes it back."""
        self._stopping.ask()

    def let_go(self) -> None:
        """Let all its threads go on."""
        self._stopping.let_go()

    def _loose(self, maps: list[Mapping]) -> list[Stack]:
        if self._stacks[0] is not maps:
            self._stacks = (maps, loose_stacks(maps))
        return self._stacks[1]

    def _return_sites(self, spans: Sequence[Span]) -> list[Span]:
        """Those of the spans that a call may return to."""
        for s in spans:
            if s not in self._sites:
                before = 0 if s == self.room else CALL_LENGTH
                code = bytes(CALL_LENGTH - before) + self.read(s.address - before, s.length + before)
                self._sites[s] = return_sites(code, s, platform.machine())
        return [s for s in spans if self._sites[s]]

    @contextlib.contextmanager
    def still(self, spans: Sequence[Span], seconds: float = AWAY_SECONDS) -> Iterator[StoppedProcess]:
        """Hold all threads while the block runs, none of them in the spans or on its way back to them.

        If one is, all are let run for some milliseconds, until so many seconds have passed.

        Raises:
            RefusedError: a thread does not leave the spans, or the process cannot be traced.
            NotFoundError: the process has ended.
            DeadlineError: a thread does not stop.
        """
        deadline = Deadline(seconds)
        pause = 0.001
        unwinder: Unwinder | None = None
        while True:
            try:
                held = self._stopping.stand(STOP_SECONDS)
                trouble, on_stack = self._occupied(held.registers(), spans, unwinder)
                if not trouble:
                    yield held
                    return
            finally:
                self.let_go()
            if deadline.passed:
                raise RefusedError(
                    f"{trouble}, in code that changes",
                    hint="try again when it does other work; a patch made with --out-of-line needs fewer bytes clear",
                )
            if on_stack and unwinder is None and platform.machine() == "x86_64":
                unwinder = Unwinder(self.process.pid)  # reads files, so not while the threads are held
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    def _occupied(
        self, threads: dict[int, Registers], spans: Sequence[Span], unwinder: Unwinder | None
    ) -> tuple[str, bool]:
        """What is in the way, in words ('' if nothing), and whether only a stack says so."""
        within = inside({tid: r.ip for tid, r in threads.items()}, spans)
        if within:
            tid, pointer = next(iter(within.items()))
            return f"thread {tid} of {self.label} stays at {pointer:#x}", False
        maps = self._mappings.now()
        # A thread that the kernel made for itself (vhost, io_uring) runs in the kernel alone: Linux gives it neither an
        # instruction nor a stack of the process (copy_thread in arch/x86/kernel/process.c).
        threads = {tid: r for tid, r in threads.items() if r.ip or r.sp}
        for tid, registers in threads.items():
            area = stack_of(maps, registers.sp)
            if area is None:
                return f"thread {tid} of {self.label} has its stack at {registers.sp:#x}, where nothing is mapped", True
            word = next(self._words(*area, spans), None)
            if word is None:
                continue
            known = unwinder.return_addresses(registers, self.read) if unwinder else None
            if known is None or any(a in s for a in known for s in spans):
                return f"thread {tid} of {self.label} will return to {word:#x}", True
        pointers = [r.sp for r in threads.values()]
        for start, end, top in self._loose(maps) if (back := self._return_sites(spans)) else ():
            if any(start <= p < top for p in pointers):
                continue
            word = next((w for w in self._words(start, end, back) if any(w in self._sites[s] for s in back)), None)
            if word is not None:
                return f"a coroutine or an ended thread of {self.label} has {word:#x} on its stack", True
        return "", False

    def _words(self, start: int, end: int, spans: Sequence[Span]) -> Iterator[int]:
        """Words of a stack that are addresses in one of the spans."""
        for first, last in self._memory.touched(start, end):
            yield from words_in(self.read(first, last - first), spans)
