"""Which boot of this machine's kernel this is."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """A UUID that the kernel draws once a boot (random(4)); '' where /proc is not there."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
