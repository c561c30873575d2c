"""PCI Express ports in a domain's XML: which are free, and keeping some free for devices that are added later. Pure.

On the board q35 a device can be added to a running guest only behind a pcie-root-port that has none (QEMU's
docs/pcie.txt). libvirt makes as many ports as there are devices at the start, and none to spare.
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree as ET

_OLD_CARDS: Final = frozenset(["e1000", "rtl8139", "ne2k_pci", "pcnet"])
"""Cards of the older PCI: they share one bridge, which takes a port."""


def express(root: ET.Element) -> bool:
    """Whether the domain's board has PCI Express ports."""
    kind = root.find("os/type")
    return kind is not None and "q35" in (kind.get("machine") or "")


def free_ports(root: ET.Element) -> int:
    """Ports without a device, as a domain that libvirt has given its addresses says. Never below 0."""
    return max(0, len(_ports(root)) - _users(root))


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
