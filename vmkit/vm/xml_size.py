"""vCPUs, memory and room to grow in a domain's XML: written for a new domain, changed in one that exists. Pure.

Format: https://libvirt.org/formatdomain.html, 'CPU Allocation', 'Memory Allocation', 'Guest NUMA Node'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.values import Bytes

SLOTS: Final = 16
"""Times that memory can be added before the next start."""
_UNITS: Final = {"b": 1, "bytes": 1, "KB": 1000, "k": 1024, "KiB": 1024, "MB": 10**6, "M": 2**20, "MiB": 2**20}
_MORE_UNITS: Final = {"GB": 10**9, "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40}


@dataclass(frozen=True, slots=True)
class Size:
    """vCPUs now and at most, bytes of memory now and at most; `max_memory` is None where none can be added."""

    vcpus: int
    max_vcpus: int
    memory: Bytes
    max_memory: Bytes | None


def set_size(root: ET.Element, size: Size) -> None:
    """Write the size into a domain, whatever it said before. Where its vCPUs may run is left as it is."""
    for tag in ("maxMemory", "currentMemory"):
        if (old := root.find(tag)) is not None:
            root.remove(old)
    vcpu = _first(root, "vcpu", root.find("os"))
    memory = _first(root, "memory", vcpu)
    memory.attrib.clear()
    memory.set("unit", "KiB")
    memory.text = str(size.memory.kib)
    if size.max_memory is not None:
        most = ET.Element("maxMemory", slots=str(SLOTS), unit="KiB")
        most.text = str(size.max_memory.kib)
        root.insert(list(root).index(memory), most)
    vcpu.text = str(size.max_vcpus)
    vcpu.attrib.pop("current", None)
    if size.max_vcpus != size.vcpus:
        vcpu.set("current", str(size.vcpus))
    if (each := root.find("vcpus")) is not None:  # which of them are there: libvirt's own list of the last start
        root.remove(each)
    _numa(root, size)


def read_size(root: ET.Element) -> Size:
    """The size that a domain's XML says. In what runs, memory that was added is in `memory`.

    <currentMemory> is the balloon's: what the guest gave back meanwhile is its own business.
    """
    vcpu, most = root.find("vcpu"), root.find("maxMemory")
    text = (vcpu.text if vcpu is not None else None) or "1"
    return Size(
        vcpus=int(vcpu.get("current", text)) if vcpu is not None else 1,
        max_vcpus=int(text),
        memory=bytes_of(root.find("memory")),
        max_memory=bytes_of(most) if most is not None else None,
    )


def bytes_of(element: ET.Element | None) -> Bytes:
    """The bytes of an element with a unit; 0 where there is none."""
    if element is None:
        return Bytes(0)
    unit = element.get("unit", "KiB")
    return Bytes(int((element.text or "0").strip()) * {**_UNITS, **_MORE_UNITS}.get(unit, 1024))


def _first(root: ET.Element, tag: str, before: ET.Element | None) -> ET.Element:
    """The element; made before another one where it is missing."""
    found = root.find(tag)
    if found is None:
        found = ET.Element(tag)
        root.insert(0 if before is None else list(root).index(before), found)
    return found


def _numa(root: ET.Element, size: Size) -> None:
    """The one NUMA node that a guest needs before memory can be added to it; gone where none can be."""
    cpu = root.find("cpu")
    cells = root.findall("cpu/numa/cell")
    if len(cells) > 1:
        return  # somebody's own layout
    if size.max_memory is None:
        if cpu is not None and (numa := cpu.find("numa")) is not None and cells:
            cpu.remove(numa)
        return
    if cpu is None:
        cpu = ET.SubElement(root, "cpu")
    if not cells:
        cells = [ET.SubElement(ET.SubElement(cpu, "numa"), "cell", id="0")]
    last = size.max_vcpus - 1
    cells[0].attrib.update({"cpus": f"0-{last}" if last else "0", "memory": str(size.memory.kib), "unit": "KiB"})
