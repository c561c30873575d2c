"""The XML of volumes. Pure."""

from __future__ import annotations

from xml.etree import ElementTree as ET


def volume_xml(name: str, size: int, backing: str | None) -> str:
    """XML of a qcow2 volume of `size` bytes, on top of the qcow2 file `backing` if one is given."""
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity", unit="bytes").text = str(int(size))  # Bytes would say "1G"
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", type="qcow2")
    permissions = ET.SubElement(target, "permissions")
    ET.SubElement(permissions, "mode").text = "0600"
    if backing:
        store = ET.SubElement(root, "backingStore")
        ET.SubElement(store, "path").text = backing
        ET.SubElement(store, "format", type="qcow2")
    return ET.tostring(root, encoding="unicode")


def raw_xml(name: str, size: int) -> str:
    """XML of a raw volume of `size` bytes that nobody but root reads."""
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity", unit="bytes").text = str(size)
    ET.SubElement(root, "allocation", unit="bytes").text = "0"
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", type="raw")
    ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = "0600"
    return ET.tostring(root, encoding="unicode")
