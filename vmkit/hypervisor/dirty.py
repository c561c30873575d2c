"""How fast a running guest changes its memory, and how much of it is in use: asked of QEMU through libvirt."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import libvirt

from vmkit.errors import UnsupportedError, VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.errors import translated

MIB: Final = 2**20
GIB: Final = 2**30
SMALLEST_BLOCK: Final = 128 * MIB
"""Smaller blocks of memory are left out by QEMU's page sampling (MIN_RAMBLOCK_SIZE in migration/dirtyrate.h)."""
_SAMPLES: Final = 8192
_SAMPLES_PER_GIB: Final = (128, 16384)
"""What calc-dirty-rate takes (MIN_ and MAX_SAMPLE_PAGE_COUNT in migration/dirtyrate.h)."""
_LATE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What became dirty in one window.

    Attributes:
        seconds: length of the window.
        bytes: distinct pages that were changed in it, in bytes. A page that was written with what it held before may
            not be counted, so it is a lower bound.
        pages: how many pages were looked at; 0 where all were.
    """

    seconds: float
    bytes: int
    pages: int


@dataclass(frozen=True, slots=True)
class InUse:
    """Memory of a guest, bytes; None where nobody says.

    Attributes:
        resident: of the QEMU process: pages that were touched since it was started, and QEMU's own.
        unused: by the guest's own account (needs its balloon driver).
        available: what the guest's kernel has in all.
    """

    resident: int | None
    unused: int | None
    available: int | None


def memory_in_use(domain: Domain) -> InUse:
    """What is known of how much of its memory a running guest uses; all None where the driver does not say."""
    try:
        with translated("memory statistics"):
            stats = domain.handle.memoryStats()
    except VmkitError:
        return InUse(None, None, None)

    def size(key: str) -> int | None:
        return stats[key] * 1024 if key in stats else None

    return InUse(size("rss"), size("unused"), size("available"))


def sample(domain: Domain, seconds: float, memory: int, *, bitmap: bool) -> Sample:
    """Let QEMU watch for `seconds` which pages change. The guest runs on.

    QEMU's own command takes windows below a second and a number of pages (QEMU 8.2); where it does not, libvirt's call
    is used, in whole seconds and with 512 pages a GiB.

    Args:
        domain: it has to run.
        seconds: length of the window.
        memory: bytes of the guest, from which the number of pages to look at follows.
        bitmap: count every page by the hypervisor's own log. For KVM; it counts nothing under TCG (seen with 10.0).

    Raises:
        UnsupportedError: nothing is known: no such command, or the guest is too small to be sampled.
    """
    if not bitmap and memory < SMALLEST_BLOCK:
        raise UnsupportedError(f"QEMU samples no guest with less than {SMALLEST_BLOCK // MIB}M of memory")
    pages = min(max(_SAMPLES * GIB // max(1, memory), _SAMPLES_PER_GIB[0]), _SAMPLES_PER_GIB[1])
    try:
        return _by_qemu(domain, seconds, memory, pages, bitmap)
    except VmkitError:
        return _by_libvirt(domain, max(1, round(seconds)), memory, bitmap)


def _by_qemu(domain: Domain, seconds: float, memory: int, pages: int, bitmap: bool) -> Sample:
    milliseconds = max(1, round(seconds * 1000))
    arguments: dict[str, Any] = {"calc-time": milliseconds, "calc-time-unit": "millisecond"}
    arguments |= {"mode": "dirty-bitmap"} if bitmap else {"mode": "page-sampling", "sample-pages": pages}
    domain.monitor("calc-dirty-rate", arguments)
    end = time.monotonic() + seconds + _LATE_S
    time.sleep(seconds)
    while (answer := domain.monitor("query-dirty-rate", {"calc-time-unit": "millisecond"}))["status"] != "measured":
        if time.monotonic() > end:
            raise UnsupportedError("QEMU does not finish measuring")
        time.sleep(0.02)
    real = max(1, answer["calc-time"]) / 1000
    return Sample(real, int(answer["dirty-rate"] * MIB * real), 0 if bitmap else pages * memory // GIB)


def _by_libvirt(domain: Domain, seconds: int, memory: int, bitmap: bool) -> Sample:
    mode = libvirt.VIR_DOMAIN_DIRTYRATE_MODE_DIRTY_BITMAP if bitmap else 0
    with translated(f"dirty rate of {domain.name}"):
        domain.handle.startDirtyRateCalc(seconds, mode)
    time.sleep(seconds)
    end = time.monotonic() + _LATE_S
    while time.monotonic() < end:
        time.sleep(0.05)
        with translated(f"dirty rate of {domain.name}"):
            ((_, stats),) = domain.host.handle.domainListGetStats([domain.handle], libvirt.VIR_DOMAIN_STATS_DIRTYRATE)
        if stats.get("dirtyrate.calc_status") == libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED:
            rate = stats["dirtyrate.megabytes_per_second"]
            return Sample(float(seconds), rate * MIB * seconds, 0 if bitmap else memory // 2**21)
    raise UnsupportedError("libvirt does not finish measuring")
