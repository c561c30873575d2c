"""The elements of a domain's XML that assign functions to it (https://libvirt.org/formatdomain.html). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from vmkit.device.usage import address_of


@dataclass(frozen=True, slots=True)
class Assigned:
    """An assigned function of a domain: its address on the host, the MAC address if it is an <interface>, its XML."""

    address: str
    mac: str | None
    xml: str


def hostdev(address: str) -> str:
    """A function that the guest gets as it is. `managed`: libvirt takes it from its driver and gives it back."""
    element = ET.Element("hostdev", mode="subsystem", type="pci", managed="yes")
    ET.SubElement(ET.SubElement(element, "source"), "address", source_address(address))
    return ET.tostring(element, encoding="unicode")


def interface(address: str, mac: str, vlan: int | None) -> str:
    """A virtual function of a network card, whose MAC address and VLAN libvirt sets once more."""
    element = ET.Element("interface", type="hostdev", managed="yes")
    ET.SubElement(element, "mac", address=mac)
    ET.SubElement(ET.SubElement(element, "source"), "address", {"type": "pci", **source_address(address)})
    if vlan:
        ET.SubElement(ET.SubElement(element, "vlan"), "tag", id=str(vlan))
    return ET.tostring(element, encoding="unicode")


def source_address(address: str) -> dict[str, str]:
    """0000:01:10.0 as libvirt's attributes."""
    domain, bus, rest = address.split(":")
    slot, _, function = rest.partition(".")
    return {"domain": f"0x{domain}", "bus": f"0x{bus}", "slot": f"0x{slot}", "function": f"0x{function}"}


def assigned(xml: str) -> tuple[Assigned, ...]:
    """The functions that a domain's XML assigns to it."""
    devices = ET.fromstring(xml).find("devices")  # noqa: S314 - libvirt's own answer
    found = []
    for element in devices if devices is not None else ():
        if (element.tag, element.get("type")) not in (("hostdev", "pci"), ("interface", "hostdev")):
            continue
        source, mac = element.find("source/address"), element.find("mac")
        if source is not None and (address := address_of(source)):
            text = ET.tostring(element, encoding="unicode")
            found.append(Assigned(address, mac.get("address") if mac is not None else None, text))
    return tuple(found)


def moved(xml: str, moves: Mapping[str, str]) -> str:
    """A domain's XML with its virtual functions (by MAC address) at other addresses of the host."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    for element in root.iterfind("devices/interface[@type='hostdev']"):
        source, mac = element.find("source/address"), element.find("mac")
        if source is not None and mac is not None and (to := moves.get(mac.get("address", ""))):
            for key, value in source_address(to).items():
                source.set(key, value)
    return ET.tostring(root, encoding="unicode")
