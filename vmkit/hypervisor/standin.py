"""A module `libvirt` for hosts that have libvirt without its Python binding."""

from __future__ import annotations

import libvirt


def source() -> str:
    """Its text. The functions are those of vmkit.system.libvirt_c, the constants those of the binding here."""
    numbers = {k: v for k, v in vars(libvirt).items() if k.startswith("VIR_") and isinstance(v, int)}
    lines = [f"{name} = {value}" for name, value in sorted(numbers.items())]
    return "\n".join(["from vmkit.system.libvirt_c import *", *lines, ""])
