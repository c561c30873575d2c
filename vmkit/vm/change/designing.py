"""What has to be designed for a change: new disks and NICs as a new VM would have them, and its limits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import msgspec

from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter
from vmkit.system.templates import template
from vmkit.vm import xml
from vmkit.vm.change.model import Delta, RemoveDisk, RemoveNic
from vmkit.vm.change.shape import Have, disks_of, effective_disks, nics_of
from vmkit.vm.limits import Change as LimitChange
from vmkit.vm.metadata import Remembered
from vmkit.vm.spec import VmSpec

if TYPE_CHECKING:
    from vmkit.image.manifest import Image
    from vmkit.vm.design import Design


def design_of(host: Host, spec: VmSpec, reporter: Reporter) -> tuple[Design, dict[str, Image]]:
    """As a new VM would be designed; that this one takes memory and a name already does not count."""
    from vmkit.image.api import Images
    from vmkit.image.qcow2 import virtual_size
    from vmkit.vm.choices.decide import decide
    from vmkit.vm.facts import gather

    store = Images()
    names = {spec.image, *(d.image for d in spec.disks)} - {None, ""}
    images = {name: store.get(name) for name in sorted(n for n in names if n)}
    sizes = {name: virtual_size(image.disk.path) for name, image in images.items() if image.disk}
    facts = gather(host, spec, reporter)
    facts = replace(facts, domains=facts.domains - {spec.name}, memory_free=None)
    return decide(spec, facts, images, sizes)[0], images


def whole(design: Design) -> str:
    """What vmkit would define; paths do not matter, since only what differs between two of them is looked at."""
    places = xml.Placement(
        kernel="kernel" if design.cmdline is not None else None,
        initrd="initrd" if design.cmdline is not None else None,
        hostdevs={n.index: "0000:00:00.0" for n in design.nics},
    )
    memory = Remembered({}, None, (), None)
    return xml.domain_xml(template("domain.xml").read_text(), replace(design, seed=None), places, memory, "0")


def limit_change(have: Have, delta: Delta) -> LimitChange:
    """The limits of the new spec, for those disks and NICs that are there before and after."""
    spec = delta.spec
    vm = {f: getattr(spec.limits, f) for f in spec.limits.__struct_fields__}
    old = effective_disks(have.spec, image_disk=have.image_disk)
    gone = {a.device for c in delta.changes if isinstance(a := c.act, RemoveDisk)}
    shapes = [s for s in disks_of(have.spec, old, have.config) if s is None or s.device not in gone]
    new = effective_disks(spec, image_disk=have.image_disk)
    disks = {s.device: _values(d.limits) for s, d in zip(shapes, new, strict=False) if s is not None and s.device}
    lost = {a.mac for c in delta.changes if isinstance(a := c.act, RemoveNic)}
    cards = [s for s in nics_of(have.spec.nics, have.config) if s is None or s.mac not in lost]
    numbers = {n.mac: i for i, n in enumerate(have.config.nics)}
    nics = {numbers[s.mac]: _values(n.limits) for s, n in zip(cards, spec.nics, strict=False) if s is not None}
    return LimitChange(vm=vm, disks=disks, nics=nics)


def _values(limits: msgspec.Struct) -> dict[str, Any]:
    return {f: getattr(limits, f) for f in limits.__struct_fields__}


def dimm(size: int) -> str:
    """A piece of memory that is added, of `size` bytes."""
    element = ET.Element("memory", model="dimm")
    target = ET.SubElement(element, "target")
    ET.SubElement(target, "size", unit="KiB").text = str(size // 1024)
    ET.SubElement(target, "node").text = "0"
    return ET.tostring(element, encoding="unicode")


def text_of(element: ET.Element) -> str:
    """The text of an element."""
    return ET.tostring(element, encoding="unicode")
