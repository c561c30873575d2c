"""Disks, network cards, assigned devices and the balloon in a domain's XML. Pure.

Format: https://libvirt.org/formatdomain.html, 'Devices'.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as ET

from vmkit.device.xml import source_address
from vmkit.vm.design import Design, DiskDesign, NicDesign, SeedDesign
from vmkit.vm.xml_limits import add, bandwidth, iotune


def disk(design: DiskDesign, path: str) -> ET.Element:
    """A disk; `path` is the file of its volume, and is not looked at for a block device."""
    block = design.source is not None
    element = ET.Element("disk", type="block" if block else "file", device="disk")
    driver = ET.SubElement(element, "driver", name="qemu", type="raw" if block else "qcow2")
    for name, value in (("cache", design.cache), ("io", design.io)):
        if value:
            driver.set(name, value)
    driver.set("discard", "unmap")
    if design.iothread:
        driver.set("iothread", str(design.iothread))
    if design.queues and design.bus.value == "virtio":
        driver.set("queues", str(design.queues))
    ET.SubElement(element, "source", {"dev": design.source or ""} if block else {"file": path})
    ET.SubElement(element, "target", dev=design.device, bus=design.bus.value)
    add(element, "iotune", iotune(design.limits))
    return element


def seed(design: SeedDesign, path: str) -> ET.Element:
    """The disk that cloud-init reads: a CD-ROM where it is on an emulated bus."""
    virtio = design.bus.value == "virtio"
    element = ET.Element("disk", type="file", device="disk" if virtio else "cdrom")
    ET.SubElement(element, "driver", name="qemu", type="raw")
    ET.SubElement(element, "source", file=path)
    ET.SubElement(element, "target", dev=design.device, bus=design.bus.value)
    ET.SubElement(element, "readonly")
    return element


def controllers(design: Design) -> list[ET.Element]:
    """The virtio-scsi controller, where a disk is on one."""
    on_scsi = [d for d in design.disks if d.bus.value == "scsi"]
    if not on_scsi:
        return []
    controller = ET.Element("controller", type="scsi", index="0", model="virtio-scsi")
    queues = max((d.queues or 1 for d in on_scsi), default=1)
    if queues > 1:
        ET.SubElement(controller, "driver", queues=str(queues))
    return [controller]


def nic(design: NicDesign, functions: Mapping[int, object]) -> ET.Element:
    """A network card. `functions` are the addresses of virtual functions, by number of the NIC.

    Raises:
        KeyError: the virtual function of this NIC is not among them.
    """
    if design.kind == "pci":
        return hostdev(design.source)
    element = ET.Element("interface", type="hostdev" if design.kind == "vf" else design.kind)
    if design.kind == "vf":
        element.set("managed", "yes")
    if design.mac:
        ET.SubElement(element, "mac", address=design.mac)
    if design.kind == "vf":
        address = source_address(str(functions[design.index]))
        ET.SubElement(ET.SubElement(element, "source"), "address", {"type": "pci", **address})
        if design.vlan:
            ET.SubElement(ET.SubElement(element, "vlan"), "tag", id=str(design.vlan))
    elif design.source:
        ET.SubElement(element, "source", {design.kind: design.source})
    if design.model:
        ET.SubElement(element, "model", type=design.model)
    _driver(element, design)
    if design.team == "persistent":
        ET.SubElement(element, "teaming", type="persistent")
        ET.SubElement(element, "alias", name=team_alias(design.index))
    elif design.team == "transient":
        ET.SubElement(element, "teaming", type="transient", persistent=team_alias(design.index))
    if design.kind != "vf":
        add(element, "bandwidth", bandwidth(design.limits))
    return element


def team_alias(index: int) -> str:
    """What the virtio NIC of a failover pair is called; libvirt keeps aliases that begin with 'ua-'."""
    return f"ua-standby{index}"


def _driver(element: ET.Element, design: NicDesign) -> None:
    if design.vhost is None and design.queues is None:
        return
    driver = ET.SubElement(element, "driver")
    if design.vhost is not None:
        driver.set("name", "vhost" if design.vhost else "qemu")
    if design.queues:
        driver.set("queues", str(design.queues))


def hostdev(address: str) -> ET.Element:
    """A PCI device of the host that the guest gets as it is; libvirt takes it from its driver and gives it back."""
    element = ET.Element("hostdev", mode="subsystem", type="pci", managed="yes")
    ET.SubElement(ET.SubElement(element, "source"), "address", source_address(address))
    return element


def display(kind: str) -> list[ET.Element]:
    """A screen by VNC or SPICE, on the host's own loopback address alone, with a card that every guest can draw on.

    The pointer is absolute, so that it stays under that of whoever looks; guests without virtio drivers use the PS/2
    mouse that libvirt adds.
    """
    graphics = ET.Element("graphics", type=kind, autoport="yes")
    ET.SubElement(graphics, "listen", type="address", address="127.0.0.1")
    video = ET.Element("video")
    ET.SubElement(video, "model", type="vga")
    return [ET.Element("input", type="tablet", bus="virtio"), graphics, video]


def balloon(design: Design) -> ET.Element:
    """The balloon device, or libvirt's word for none."""
    if not design.backing.balloon:
        return ET.Element("memballoon", model="none")
    # Since libvirt 6.9 and QEMU 5.1.
    return ET.Element("memballoon", model="virtio", freePageReporting="on")
