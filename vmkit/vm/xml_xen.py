"""What a domain's XML says otherwise where Xen runs it. Pure.

Format: https://libvirt.org/drvxen.html. Whatever is QEMU's own goes: libxl refuses it, or does not know it.
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree as ET

from vmkit.vm.choices.xen import HVM, PV, PVH

_OS: Final = {PV: "xen", PVH: "xenpvh", HVM: "hvm"}
_GONE: Final = ("controller", "rng", "memballoon", "serial", "console")


def fit(root: ET.Element, machine: str) -> None:
    """Make a domain that was written for QEMU one for Xen, in one of its modes."""
    kind, devices, clock, features = (root.find(path) for path in ("os/type", "devices", "clock", "features"))
    if kind is not None:
        kind.text = _OS[machine]
    if clock is not None:
        for timer in list(clock):
            clock.remove(timer)
        clock.text = None
        if machine != PV:
            ET.SubElement(clock, "timer", name="tsc", mode="native")
    if features is not None and machine == PV:
        root.remove(features)
    if devices is None:
        return
    for device in list(devices):
        if device.tag in _GONE:
            devices.remove(device)
    for driver in devices.iterfind("disk/driver"):
        for name in set(driver.attrib) - {"name", "type"}:
            del driver.attrib[name]
    for target in devices.iterfind("disk/target[@bus='virtio']"):
        target.set("bus", "xen")
    _console(devices, firmware=root.find("os/kernel") is None)


def _console(devices: ET.Element, *, firmware: bool) -> None:
    """Xen's own console, which xenconsoled logs if it is told to; what boots by firmware has a serial port instead."""
    if firmware:
        ET.SubElement(ET.SubElement(devices, "serial", type="pty"), "target", port="0")
    console = ET.SubElement(devices, "console", type="pty")
    ET.SubElement(console, "target", type="serial" if firmware else "xen", port="0")
