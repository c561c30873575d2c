"""Which QEMU runs nested Xen hosts on this machine."""

from __future__ import annotations

from vmkit.lab.nested import emulator
from vmkit.lab.nested.hardware import Engine
from vmkit.lab.xen.options import XenOptions
from vmkit.progress import Reporter


def choose_engine(_options: XenOptions, _reporter: Reporter) -> tuple[Engine, str]:
    """What runs the hosts, and why.

    Raises:
        UnsupportedError: QEMU is not installed, or too old.
    """
    binary, version = emulator.find()
    return Engine(binary, version, "tcg"), "Xen hosts are emulated on every machine, so that Xen sees the same CPU"
