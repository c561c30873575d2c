"""How much memory this machine has left."""

from __future__ import annotations

from pathlib import Path

from vmkit.values import Bytes


def available_memory() -> Bytes:
    """What programs can still take without swapping (MemAvailable, proc_meminfo(5)); 0 if unknown."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return Bytes(int(line.split()[1]) * 1024)
    return Bytes(0)
