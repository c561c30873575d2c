"""The domain XML of a design. Pure; one small function for each concern of the document.

Format: https://libvirt.org/formatdomain.html. The order of elements follows libvirt's own output, as its RelaxNG schema
does not care.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.vm import xml_devices, xml_forward, xml_host, xml_limits, xml_xen
from vmkit.vm.choices.placement import ranges
from vmkit.vm.design import Design
from vmkit.vm.metadata import NAMESPACE, Remembered, to_text
from vmkit.vm.xml_ports import express, keep_free, settle_fixed
from vmkit.vm.xml_size import Size, set_size

QEMU_NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
AGENT_CHANNEL: Final = "org.qemu.guest_agent.0"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the parts of a design lie on the host, known once they are there.

    Attributes:
        kernel, initrd: paths, for guests that are booted directly.
        volumes: path of each volume by its name.
        console_log: path of the file that the console is written to.
        hostdevs: PCI address of the virtual function of each NIC on one, by the NIC's number in the spec.
    """

    kernel: str | None = None
    initrd: str | None = None
    volumes: Mapping[str, str] = field(default_factory=dict)
    console_log: str | None = None
    hostdevs: Mapping[int, object] = field(default_factory=dict)


ET.register_namespace("vmkit", NAMESPACE)
ET.register_namespace("qemu", QEMU_NAMESPACE)


def domain_xml(base: str, design: Design, placement: Placement, remembered: Remembered, uuid: str) -> str:
    """The domain XML of a design.

    Args:
        base: content of templates/domain.xml.
        design: what was decided.
        placement: where its parts lie.
        remembered: goes into <metadata>.
        uuid: identity of the domain.
    """
    root = ET.fromstring(base)  # noqa: S314 - our own template
    root.set("type", design.domain_type)
    devices = root.find("devices")
    assert devices is not None  # noqa: S101 - our own template has them
    if design.domain_type == "test":
        for child in list(root):
            if child.tag not in ("devices", "on_poweroff", "on_reboot", "on_crash"):
                root.remove(child)
        for child in list(devices):
            devices.remove(child)
    for i, element in enumerate(
        [*_identity(design, uuid), _metadata(remembered), *_vcpus(design), _os(design, placement)]
    ):
        root.insert(i, element)
    if design.domain_type != "test":
        xml_host.add_helpers(root, design.helpers)
        devices.append(xml_devices.balloon(design))
    root.extend(xml_host.host_elements(design))
    set_size(root, Size(design.vcpus, design.max_vcpus or design.vcpus, design.memory, design.max_memory))
    xml_limits.add_to_domain(root, design.limits)
    devices.extend(xml_devices.disk(d, placement.volumes.get(d.volume, "")) for d in design.disks)
    if design.seed:
        devices.append(xml_devices.seed(design.seed, placement.volumes[design.seed.volume]))
    devices.extend(xml_devices.controllers(design))
    devices.extend([xml_devices.nic(n, placement.hostdevs) for n in design.nics if not n.forward])
    devices.extend(xml_devices.hostdev(address) for address in design.devices)
    devices.extend(_serial(placement.console_log))
    if design.display and design.domain_type != "test":
        devices.extend(xml_devices.display(design.display))
    if design.agent:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "target", type="virtio", name=AGENT_CHANNEL)
    if express(root):
        settle_fixed(root)
    keep_free(root, design.spare_ports)
    if arguments := [*xml_forward.arguments(design), *design.qemu_args]:
        commandline = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}commandline")
        for arg in arguments:
            ET.SubElement(commandline, f"{{{QEMU_NAMESPACE}}}arg", value=arg)
    if design.domain_type == "xen" and design.machine:
        xml_xen.fit(root, design.machine)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode")


def _text(tag: str, text: object, **attributes: str) -> ET.Element:
    element = ET.Element(tag, attributes)
    element.text = str(text)
    return element


def _identity(design: Design, uuid: str) -> list[ET.Element]:
    elements = [_text("name", design.name), _text("uuid", uuid)]
    if design.domain_type in ("kvm", "qemu") and design.arch in ("x86_64", "i686"):
        # Tells the guest's kernel (Windows, Linux with CONFIG_VMGENID) that it was copied or reverted, so that random
        # numbers do not repeat. libvirt draws the number, and another one at each start from a saved memory.
        elements.append(ET.Element("genid"))
    return elements


def _metadata(remembered: Remembered) -> ET.Element:
    metadata = ET.Element("metadata")
    ET.SubElement(metadata, f"{{{NAMESPACE}}}vm").text = to_text(remembered)
    return metadata


def _vcpus(design: Design) -> list[ET.Element]:
    """How many there are is written by set_size, when <cpu> is there."""
    vcpu = ET.Element("vcpu")
    if design.cpuset:
        vcpu.set("placement", "static")
        vcpu.set("cpuset", ranges(frozenset(design.cpuset)))
    return [vcpu]


def _os(design: Design, placement: Placement) -> ET.Element:
    os = ET.Element("os")
    kind = ET.SubElement(os, "type", arch=design.arch)
    kind.text = "hvm"
    if design.machine:
        kind.set("machine", design.machine)
    if placement.kernel:
        ET.SubElement(os, "kernel").text = placement.kernel
        if placement.initrd:
            ET.SubElement(os, "initrd").text = placement.initrd
        if design.cmdline:
            ET.SubElement(os, "cmdline").text = design.cmdline
    else:
        ET.SubElement(os, "boot", dev="hd")
    return os


def _serial(console_log: str | None) -> list[ET.Element]:
    serial = ET.Element("serial", type="pty")
    if console_log:
        # Appended to, since the target of a migration opens it anew; vmkit removes it when it starts the VM.
        ET.SubElement(serial, "log", file=console_log, append="on")
    ET.SubElement(serial, "target", port="0")
    console = ET.Element("console", type="pty")
    ET.SubElement(console, "target", type="serial", port="0")
    return [serial, console]
