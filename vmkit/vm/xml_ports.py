"""PCI Express ports in a domain's XML: which are free, and keeping some free for devices that are added later. Pure.

On the board q35 a device can be added to a running guest only behind a pcie-root-port that has none (QEMU's
docs/pcie.txt). libvirt makes as many ports as there are devices at the start, and none to spare. A port costs a booting
guest more than the device behind it (0.1 s a port under TCG, Linux 6.1), so what never comes or goes has none.
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree as ET

_OLD_CARDS: Final = frozenset(["e1000", "rtl8139", "ne2k_pci", "pcnet"])
"""Cards of the older PCI: they share one bridge, which takes a port."""


_FIXED_SLOT: Final = "0x13"
"""Slot of the root complex for the devices that stay; libvirt takes its own from both ends: ports from 1, the board's
from 31."""


def express(root: ET.Element) -> bool:
    """Whether the domain's board has PCI Express ports."""
    kind = root.find("os/type")
    return kind is not None and "q35" in (kind.get("machine") or "")


def free_ports(root: ET.Element) -> int:
    """Ports without a device, as a domain that libvirt has given its addresses says. Never below 0."""
    return max(0, len(_ports(root)) - _users(root))


def settle_fixed(root: ET.Element) -> None:
    """Put the devices that stay as long as the domain straight on the root complex, as functions of one slot.

    They are the random numbers, the balloon and the controller of virtio serial ports, which is made if a channel needs
    one. The definition is a new one: none of its devices has an address.
    """
    devices = root.find("devices")
    if devices is None:
        return
    if devices.find("channel/target[@type='virtio']") is not None:
        ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    fixed = [d for d in devices if _stays(d)]
    for function, device in enumerate(fixed):
        address = ET.SubElement(device, "address", type="pci", domain="0x0000", bus="0x00", slot=_FIXED_SLOT)
        address.set("function", hex(function))
        if function == 0 and len(fixed) > 1:
            address.set("multifunction", "on")


def keep_free(root: ET.Element, spare: int) -> None:
    """Add ports to a definition until that many are free at the next start."""
    devices = root.find("devices")
    if devices is None or not spare:
        return
    wanted = _users(root) + spare - len(_ports(root))
    if wanted > 0 and root.find("devices/controller[@model='pcie-root']") is None:
        # libvirt numbers what has no index from 0, and takes nothing else there.
        ET.SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    for _ in range(wanted):
        ET.SubElement(devices, "controller", type="pci", model="pcie-root-port")


def _ports(root: ET.Element) -> list[ET.Element]:
    return root.findall("devices/controller[@model='pcie-root-port']")


def _users(root: ET.Element) -> int:
    """Devices that are behind a port, or will be when libvirt gives them their address."""
    buses = {int(p.get("index", "-1")) for p in _ports(root)}
    count = 0
    bridged = False
    serial = any(c.get("type") == "virtio-serial" for c in root.iterfind("devices/controller"))
    for device in root.find("devices") or ():
        address = device.find("address")
        if address is not None and address.get("type") == "pci":
            count += address.get("bus") is not None and int(address.get("bus", "0"), 0) in buses
            continue
        if _is_old_card(device):
            bridged = True
        elif device.tag == "channel" and not serial:
            serial, count = True, count + 1
        else:
            count += _wants_port(device)
    has_bridge = root.find("devices/controller[@model='pcie-to-pci-bridge']") is not None
    return count + (bridged and not has_bridge)


def _stays(device: ET.Element) -> bool:
    virtio = (device.get("model") or "").startswith("virtio")
    return (virtio and device.tag in ("rng", "memballoon")) or device.get("type") == "virtio-serial"


def _model(device: ET.Element) -> str:
    model = device.find("model")
    return (model.get("type") if model is not None else None) or ""


def _is_old_card(device: ET.Element) -> bool:
    return device.tag == "interface" and device.get("type") != "hostdev" and _model(device) in _OLD_CARDS


def _wants_port(device: ET.Element) -> bool:
    match device.tag:
        case "disk":
            target = device.find("target")
            return target is not None and target.get("bus") == "virtio"
        case "interface":
            return True
        case "hostdev":
            return device.get("type") == "pci"
        case "rng" | "memballoon":
            return (device.get("model") or "").startswith("virtio")
        case "controller":
            return device.get("type") in ("scsi", "virtio-serial") or device.get("model") == "pcie-to-pci-bridge"
    return False
