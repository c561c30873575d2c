"""Who runs a guest, and how far it is, without asking libvirt or QEMU: from the kernel's books, and by UDP."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from vmkit.system.udp import UdpPeer

TICK_S = 0.1
AWAKE_NS = 1_000_000
"""A guest that counts a hundred times a second takes more than this in a tick; one that stands still takes nothing."""
BEGUN_NS = 20_000_000
"""What a vCPU takes before it runs anything, at most; 0.8 to 1.5 ms were seen, and 6 ms on a busy machine."""


def processes_in(init: int, command: str, word: str = "") -> list[int]:
    """Processes of the host whose first process is `init`, by their name and a word they were started with."""
    found = []
    with contextlib.suppress(OSError):
        own = Path(f"/proc/{init}/ns/pid").readlink()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "comm").read_text().strip() != command[:15] or (entry / "ns/pid").readlink() != own:
                    continue
                if word.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def qemu_of(init: int, name: str) -> int | None:
    """The process of a VM in a host, which carries its name; None if it has none."""
    return next(iter(processes_in(init, "qemu-system-x86_64", f"guest={name},")), None)


def vcpu_time(pid: int) -> int:
    """Nanoseconds that the vCPUs of a QEMU have run (/proc/PID/task/TID/schedstat); 0 for a process that has ended."""
    total = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                if (task / "comm").read_text().startswith("CPU "):
                    total += int((task / "schedstat").read_text().split()[0])
    return total


@dataclass(slots=True)
class Witness:
    """Looks on while a VM moves from one host to another. A context manager.

    Attributes:
        name, address: of the VM.
        source, target: first processes of the two hosts.
        ran: ticks in which the VM's vCPUs ran: time, whether at the target, for how many ns since its QEMU began.
        counters: what the guest answered, in the order of the questions.
    """

    name: str
    address: str
    source: int
    target: int
    ran: list[tuple[float, bool, int]] = field(default_factory=list)
    counters: list[int] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for work in (self._watch, self._ask):
            thread = threading.Thread(target=work, daemon=True, name="witness")
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        known: dict[bool, int | None] = {False: None, True: None}
        before: dict[int, int] = {}
        looked = 0.0
        while not self._stop.wait(TICK_S):
            now = time.monotonic()
            if now - looked > 0.5:
                known = {False: qemu_of(self.source, self.name), True: qemu_of(self.target, self.name)}
                looked = now
            for there, pid in known.items():
                if pid is None:
                    continue
                used = vcpu_time(pid)
                if pid in before and used - before[pid] > AWAKE_NS and used > BEGUN_NS:
                    self.ran.append((time.monotonic(), there, used))
                before[pid] = max(used, before.get(pid, 0))

    def _ask(self) -> None:
        with UdpPeer(self.address, 7007) as peer:
            while not self._stop.wait(TICK_S):
                if answer := peer.ask(b"?", timeout=0.3, again=0.3):
                    self.counters.append(int(answer))

    def holder(self, before: float) -> bool | None:
        """Whether it was the target that ran the guest last before this time; None if nobody was seen to."""
        return next((there for t, there, _ in reversed(self.ran) if t <= before), None)

    def wrongs(self) -> list[str]:
        """What must never be: the source ran again after the target had, or the guest went back."""
        found = []
        begun = [(t, used) for t, there, used in self.ran if there]
        late = [(t, used) for t, there, used in self.ran if not there and begun and t > begun[0][0] + TICK_S]
        if late:
            found.append(f"the source ran in {len(late)} ticks after the target had begun: {begun[:5]}, {late[:5]}")
        back = [(a, b) for a, b in zip(self.counters, self.counters[1:], strict=False) if b < a]
        if back:
            found.append(f"the guest went back: {back}")
        return found
