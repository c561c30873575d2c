"""A running process as something that can be patched."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Final, Self

from vmkit.errors import RefusedError
from vmkit.hotfix.verify import Write, inside
from vmkit.system.clock import Deadline
from vmkit.system.process import ProcessId
from vmkit.system.procmem import ProcessMemory
from vmkit.system.ptrace import stopped

STOP_SECONDS: Final = 2.0
"""Longest wait for the threads of one process to stand."""
AWAY_SECONDS: Final = 1.0
"""Longest wait for the threads to be elsewhere than in the bytes that change; the guests are paused meanwhile."""


class ProcessImage:
    """The memory of one process, and the means to hold it still. A context manager that opens the memory.

    What `still` makes sure of: no thread of the process runs, and no thread's next instruction is within the bytes.
    It does not look at return addresses on stacks, nor at coroutines that are suspended within the bytes: an edit that
    moves instructions behind a call is not safe with it, one that changes a constant or replaces instructions without
    a call among them is.

    Caches: the write goes to a page that the kernel copies for the process; the threads come back to it through a
    return from the kernel, which serialises an x86 CPU (Intel SDM vol. 3, 9.1.3), and on AArch64 the kernel itself
    flushes the instruction cache when a tracer writes (copy_to_user_page).
    """

    def __init__(self, process: ProcessId, label: str) -> None:
        self.process = process
        self.label = label
        self._memory = ProcessMemory(process)

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
        """Bytes of its memory; see ProcessMemory.read."""
        return self._memory.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        """Change its memory; see ProcessMemory.write."""
        self._memory.write(address, data)

    @contextlib.contextmanager
    def still(self, writes: Sequence[Write]) -> Iterator[None]:
        """Hold all threads while the block runs, none of them in the bytes of `writes`.

        A thread that stands in them is let run for some milliseconds, until AWAY_SECONDS have passed.

        Raises:
            RefusedError: a thread does not leave the bytes, or the process cannot be traced.
            NotFoundError: the process has ended.
            DeadlineError: a thread does not stop.
        """
        deadline = Deadline(AWAY_SECONDS)
        pause = 0.001
        while True:
            with stopped(self.process.pid, seconds=STOP_SECONDS) as held:
                within = inside(held.instruction_pointers(), writes)
                if not within:
                    yield
                    return
            if deadline.passed:
                tid, pointer = next(iter(within.items()))
                raise RefusedError(
                    f"thread {tid} of {self.label} stays at {pointer:#x}, in the bytes that change",
                    hint="try again when it does other work",
                )
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
