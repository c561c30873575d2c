"""The network XML of a design. Pure. Format: https://libvirt.org/formatnetwork.html."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from vmkit.network.design import NetworkDesign
from vmkit.network.facts import NAMESPACE, Reserved

# Not the prefix of vm/xml.py: ElementTree keeps one namespace for a prefix.
ET.register_namespace("vmkitnet", NAMESPACE)


def network_xml(design: NetworkDesign, spec: Mapping[str, Any], uuid: str) -> str:
    """The XML of a network.

    Args:
        design: what was decided.
        spec: what was asked for; goes into <metadata>, where libvirt keeps it since 2.1.
        uuid: identity of the network.
    """
    root = ET.Element("network")
    ET.SubElement(root, "name").text = design.name
    ET.SubElement(root, "uuid").text = uuid
    _remember(root, spec)
    if design.forward:
        ET.SubElement(root, "forward", mode=design.forward)
    if design.forward == "bridge":
        ET.SubElement(root, "bridge", name=design.bridge or "")
        return _text(root)
    # Without spanning tree a port forwards at once, and nothing waits for it.
    ET.SubElement(root, "bridge", {**({"name": design.bridge} if design.bridge else {}), "stp": "off", "delay": "0"})
    if design.domain:
        # localOnly: what is not known here is not asked of the servers outside.
        ET.SubElement(root, "domain", name=design.domain, localOnly="yes")
    if design.subnet is None:
        return _text(root)
    if named := [r for r in design.reserved if r.name]:
        dns = ET.SubElement(root, "dns")
        dns.extend(name_element(r) for r in named)
    ip = ET.SubElement(root, "ip", address=design.gateway, prefix=str(design.subnet.prefixlen))
    if design.dhcp:
        dhcp = ET.SubElement(ip, "dhcp")
        ET.SubElement(dhcp, "range", start=design.dhcp[0], end=design.dhcp[1])
        dhcp.extend(host_element(r) for r in design.reserved)
    return _text(root)


def with_spec(xml: str, spec: Mapping[str, Any]) -> str:
    """The XML of a network with another spec in its metadata."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    metadata = root.find("metadata")
    if metadata is not None:
        for old in metadata.findall(f"{{{NAMESPACE}}}network"):
            metadata.remove(old)
    _remember(root, spec)
    return ET.tostring(root, encoding="unicode")


def host_element(reserved: Reserved) -> ET.Element:
    """A <host> of <dhcp>."""
    name = {"name": reserved.name} if reserved.name else {}
    return ET.Element("host", {"mac": reserved.mac, **name, "ip": reserved.address})


def name_element(reserved: Reserved) -> ET.Element:
    """A <host> of <dns>: dnsmasq resolves the name of a reservation by itself only once it was asked for."""
    element = ET.Element("host", ip=reserved.address)
    ET.SubElement(element, "hostname").text = reserved.name
    return element


def _remember(root: ET.Element, spec: Mapping[str, Any]) -> None:
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.Element("metadata")
        root.insert(2, metadata)
    ET.SubElement(metadata, f"{{{NAMESPACE}}}network").text = json.dumps(spec, sort_keys=True)


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode")
