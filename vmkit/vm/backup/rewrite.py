"""The definition in a backup, changed to fit where the VM is made anew. Pure.

Format: https://libvirt.org/formatdomain.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

from vmkit.vm.metadata import NAMESPACE, remembered_in, to_text


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What is different.

    Attributes:
        name, old: of the VM now and in the backup.
        uuid: of the VM now.
        same: whether it takes the place of the one in the backup, and so keeps its MAC addresses.
        disks: path of each disk, by device; all are qcow2 files without a backing file.
        side: path now of each file beside the disks, by its path then.
        volumes: those that vmkit made for it.
        console_log: path of its console log, where it has one.
    """

    name: str
    old: str
    uuid: str
    same: bool
    disks: Mapping[str, str]
    side: Mapping[str, str]
    volumes: tuple[str, ...]
    console_log: str


def rewritten(xml: str, change: Rewrite) -> str:
    """The definition of the VM that is made anew."""
    root = ET.fromstring(xml)  # noqa: S314 - what libvirt gave out
    root.attrib.pop("id", None)
    _set(root, "name", change.name)
    _set(root, "uuid", change.uuid)
    for tag in ("kernel", "initrd", "nvram"):
        element = root.find(f"os/{tag}")
        if element is not None and element.text:
            element.text = change.side.get(element.text, element.text)
            if tag == "nvram":
                element.attrib.pop("template", None)
    for disk in root.iterfind("devices/disk"):
        _disk(disk, change)
    if not change.same:
        _own_identity(root, change)
    log = root.find("devices/serial/log")
    if log is not None:
        log.set("file", change.console_log)
        for console in root.iterfind("devices/console/log"):
            console.set("file", change.console_log)
    element = root.find(f"metadata/{{{NAMESPACE}}}vm")
    if element is not None:
        _remember(element, change, logged=log is not None)
    return ET.tostring(root, encoding="unicode")


def _disk(disk: ET.Element, change: Rewrite) -> None:
    target, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
    for store in disk.findall("backingStore"):
        disk.remove(store)
    device = target.get("dev", "") if target is not None else ""
    if device in change.disks:
        disk.set("type", "file")
        if source is None:
            source = ET.SubElement(disk, "source")
        source.attrib.clear()
        for child in list(source):
            source.remove(child)
        source.set("file", change.disks[device])
        if driver is not None:
            driver.set("type", "qcow2")
    elif source is not None and source.get("file") in change.side:
        source.set("file", change.side[source.get("file", "")])
        source.attrib.pop("index", None)


def _own_identity(root: ET.Element, change: Rewrite) -> None:
    """Nothing that two machines on one network may not share: libvirt gives new MAC addresses and ports."""
    for nic in root.iterfind("devices/interface"):
        for mac in nic.findall("mac"):
            nic.remove(mac)
    for generation in root.findall("genid"):
        root.remove(generation)
    cmdline = root.find("os/cmdline")
    if cmdline is not None and cmdline.text:
        words = cmdline.text.split(" ")
        cmdline.text = " ".join(f"vmkit.name={change.name}" if w == f"vmkit.name={change.old}" else w for w in words)


def _remember(element: ET.Element, change: Rewrite, *, logged: bool) -> None:
    """What vmkit keeps about the VM, as far as the backup has it."""
    memory = remembered_in(ET.tostring(element, encoding="unicode"))
    if memory is None:
        return
    log = PurePosixPath(change.console_log).name if logged else None
    spec = {**memory.spec, "name": change.name}
    element.text = to_text(replace(memory, spec=spec, volumes=change.volumes, console_log=log))


def _set(root: ET.Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is None:
        element = ET.Element(tag)
        root.insert(0, element)
    element.text = text
