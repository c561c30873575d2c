"""Which QEMU runs nested Xen hosts on this machine."""

from __future__ import annotations

from vmkit.lab.nested import emulator, older
from vmkit.lab.nested.hardware import Engine
from vmkit.lab.xen.options import XenOptions
from vmkit.progress import Reporter


def choose_engine(_options: XenOptions, reporter: Reporter) -> tuple[Engine, str]:
    """What runs the hosts, and why.

    Raises:
        UnsupportedError: QEMU is not installed, or too old.
        RefusedError: an older QEMU has to be fetched, and that needs root or space.
        EffectError: that failed.
    """
    binary, version = emulator.find()
    reason = "Xen hosts are emulated on every machine, so that Xen sees the same CPU"
    if version[:2] == older.VERSION:
        return Engine(binary, version, "tcg"), reason
    # On QEMU 10.0.2 a guest of Xen's on nested paging ends at its first instruction; on 7.2 it runs (both measured).
    return older.engine(
        "nested paging of Xen's guests", reporter
    ), f"{reason}; PVH and HVM guests run on QEMU 7.2 alone"
