"""Telling how far the copying of disks is, which libvirt does before it sends memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkit.progress import Advanced, Finished, Reporter, Started
from vmkit.values import Bytes

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import JobStats

STEP: Final = "disks"


@dataclass(slots=True)
class DiskWatch:
    """What is known of it. No clock of its own, so that a test can show it statistics one by one.

    Attributes:
        devices: targets of the disks that are copied; empty for none.
        elapsed: seconds since the transfer began.
        reporter: hears how far it is.
        seconds: how long it took, or takes so far.
        sent: bytes that went across, with what the guest wrote meanwhile.
    """

    devices: tuple[str, ...]
    elapsed: Callable[[], float]
    reporter: Reporter
    seconds: float = 0.0
    sent: int = 0
    _begun: bool = False
    _ended: bool = False

    def clock(self) -> float:
        """Seconds since memory has been sent."""
        return self.elapsed() - self.seconds

    def see(self, stats: JobStats) -> bool:
        """Take in one look at the job; returns whether it moved, so that a deadline of the memory begins anew."""
        if not self.devices:
            return False
        done, total = int(stats.raw.get("disk_processed", 0)), int(stats.raw.get("disk_total", 0))
        moved = done > self.sent
        self.sent = max(self.sent, done)
        if self._ended:
            return False
        self.seconds = self.elapsed()
        if stats.total:  # memory goes across: disks are in step, and stay so until the switch-over
            self._ended = True
            if self._begun:
                self.reporter(Finished(STEP, self.seconds, f"{Bytes(self.sent)} copied"))
            return True
        if not self._begun:
            self._begun = True
            self.reporter(Started(STEP, ", ".join(self.devices)))
        if total:
            text = f"{Bytes(done)} of {Bytes(total)} copied"
            if rate := stats.raw.get("disk_bps", 0):
                text += f", {Bytes(rate)}/s"
            self.reporter(Advanced(STEP, done, total, text))
        return moved
