"""The definition of a VM with changes made to it. Pure: what nobody asked to change stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.vm.change.model import (
    AddDisk,
    AddNic,
    Change,
    MoveNic,
    RebuildDisk,
    Redesign,
    RemoveDisk,
    RemoveNic,
    ReplaceNic,
    SetSize,
)
from vmkit.vm.choices.growth import spare_ports
from vmkit.vm.metadata import NAMESPACE
from vmkit.vm.xml import QEMU_NAMESPACE
from vmkit.vm.xml_ports import keep_free
from vmkit.vm.xml_size import read_size, set_size

_TOP: Final = ("cpu", "numatune", "memoryBacking", "features", "clock", "iothreads", f"{{{QEMU_NAMESPACE}}}commandline")
SCSI_CONTROLLER: Final = "<controller type='scsi' index='0' model='virtio-scsi'/>"
_SCREEN: Final = ("input", "graphics", "video")
_PINS: Final = ("vcpupin", "emulatorpin", "iothreadpin")


@dataclass(frozen=True, slots=True)
class Parts:
    """New elements, and what the whole definition would be if it were made anew.

    Attributes:
        disks: XML of disks, by their number in the spec.
        nics: XML of NICs, by their number in the spec.
        before, after: whole definitions as vmkit would make them from the old and the new spec; None where nothing
            outside of disks and NICs changes.
        devices, macs: names of the disks and MAC addresses of the NICs of the definition, in the order of `before`.
    """

    disks: Mapping[int, str] = field(default_factory=dict)
    nics: Mapping[int, str] = field(default_factory=dict)
    before: str | None = None
    after: str | None = None
    devices: Sequence[str | None] = ()
    macs: Sequence[str | None] = ()


def edited(xml: str, changes: Iterable[Change], parts: Parts, remembered: str) -> str:
    """The definition after the changes.

    Args:
        xml: the definition.
        changes: what is done.
        parts: new elements.
        remembered: content of vmkit's own element in the metadata.
    """
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    acts = [c.act for c in changes if c.act is not None]
    size = read_size(root)
    if any(isinstance(a, Redesign) for a in acts) and parts.before and parts.after:
        _merge(root, ET.fromstring(parts.before), ET.fromstring(parts.after), parts)  # noqa: S314 - our own
        set_size(root, size)
    devices = root.find("devices")
    assert devices is not None  # noqa: S101 - libvirt gives every domain one
    for act in acts:
        match act:
            case SetSize():
                set_size(root, act.size)
            case AddDisk():
                devices.append(ET.fromstring(parts.disks[act.index]))  # noqa: S314 - our own
            case RemoveDisk():
                _remove(devices, _disk(devices, act.device))
            case RebuildDisk():
                _rebuild(_disk(devices, act.device), ET.fromstring(parts.disks[act.index]))  # noqa: S314 - our own
            case AddNic():
                devices.append(ET.fromstring(parts.nics[act.index]))  # noqa: S314 - our own
            case RemoveNic():
                _remove(devices, _nic(devices, act.mac))
            case MoveNic():
                _rewire(_nic(devices, act.mac), parts.nics[act.index])
            case ReplaceNic():
                old = _nic(devices, act.mac)
                at = list(devices).index(old) if old is not None else len(devices)
                _remove(devices, old)
                devices.insert(at, ET.fromstring(parts.nics[act.index]))  # noqa: S314 - our own
            case _:
                pass
    if wants_controller(root):
        devices.append(ET.fromstring(SCSI_CONTROLLER))  # noqa: S314 - our own
    if any(isinstance(a, AddDisk | AddNic) for a in acts):
        kind = root.find("os/type")
        keep_free(root, spare_ports(root.get("type", ""), kind.get("machine") if kind is not None else None))
    _remember(root, remembered)
    return ET.tostring(root, encoding="unicode")


def wants_controller(root: ET.Element) -> bool:
    """Whether a disk is on SCSI without a controller: libvirt's own choice would be one that nothing here drives."""
    on_scsi = any(_bus(d) == "scsi" for d in root.iterfind("devices/disk"))
    return on_scsi and root.find("devices/controller[@type='scsi']") is None


def rewired(nic: str, wanted: str) -> str:
    """The XML of a NIC, plugged into the network of another one."""
    element = ET.fromstring(nic)  # noqa: S314 - libvirt's own answer
    _rewire(element, wanted)
    return ET.tostring(element, encoding="unicode")


def pluggable(xml: str) -> str:
    """The XML of a device that ran, fit for being plugged in again: in its slot, without what was of that time."""
    element = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    for child in [c for c in element if c.tag in ("alias", "backingStore")]:
        element.remove(child)
    target = element.find("target")
    if element.tag == "interface" and target is not None:
        element.remove(target)
    if (source := element.find("source")) is not None:
        for name in ("index", "portid"):
            source.attrib.pop(name, None)
        if element.tag == "interface" and source.get("network"):
            source.attrib.pop("bridge", None)
    return ET.tostring(element, encoding="unicode")


def renamed(xml: str, old: str, new: str, console_log: str | None, remembered: str) -> str:
    """The definition for another name, but for the name itself: guest's host name, console log, metadata."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    cmdline = root.find("os/cmdline")
    if cmdline is not None and cmdline.text:
        words = [f"vmkit.name={new}" if w == f"vmkit.name={old}" else w for w in cmdline.text.split(" ")]
        cmdline.text = " ".join(words)
    if console_log:
        for log in [*root.iterfind("devices/serial/log"), *root.iterfind("devices/console/log")]:
            log.set("file", console_log)
    _remember(root, remembered)
    return ET.tostring(root, encoding="unicode")


def _remember(root: ET.Element, text: str) -> None:
    element = root.find(f"metadata/{{{NAMESPACE}}}vm")
    if element is not None:
        element.text = text


def _merge(root: ET.Element, before: ET.Element, after: ET.Element, parts: Parts) -> None:
    """Take over what differs between two definitions that vmkit makes; the rest of the real one stays."""
    if before.get("type") != after.get("type"):
        root.set("type", after.get("type", ""))
    for tag in _TOP:
        if _differ(before.find(tag), after.find(tag)):
            _replace(root, root.find(tag), after.find(tag))
    for name in ("placement", "cpuset"):
        old, new = (r.find("vcpu").get(name) if r.find("vcpu") is not None else None for r in (before, after))  # type: ignore[union-attr]
        vcpu = root.find("vcpu")
        if old != new and vcpu is not None:
            vcpu.attrib.pop(name, None)
            if new is not None:
                vcpu.set(name, new)
    _merge_pins(root, before, after)
    old_line, new_line = before.findtext("os/cmdline"), after.findtext("os/cmdline")
    line = root.find("os/cmdline")
    if old_line != new_line and line is not None:
        line.text = new_line
    devices = root.find("devices")
    if devices is None:
        return
    if _differ(before.find("devices/memballoon"), after.find("devices/memballoon")):
        _replace(devices, devices.find("memballoon"), after.find("devices/memballoon"))
    _merge_screen(devices, before, after)
    disks = zip(before.iterfind("devices/disk[@device='disk']"), after.iterfind("devices/disk[@device='disk']"))  # noqa: B905
    for (a, b), device in zip(disks, parts.devices, strict=False):
        real = _disk(devices, device) if device else None
        if real is not None and (_differ(a.find("driver"), b.find("driver")) or _bus(a) != _bus(b)):
            _rebuild(real, b)
    nics = zip(before.iterfind("devices/interface"), after.iterfind("devices/interface"))  # noqa: B905
    for (a, b), mac in zip(nics, parts.macs, strict=False):
        real = _nic(devices, mac) if mac else None
        if real is None:
            continue
        changed = [t for t in ("driver", "model") if _differ(a.find(t), b.find(t))]
        for tag in changed:
            _replace(real, real.find(tag), b.find(tag))
        if "model" in changed and (address := real.find("address")) is not None:
            real.remove(address)


def _merge_screen(devices: ET.Element, before: ET.Element, after: ET.Element) -> None:
    old, new = ([c for c in r.find("devices") or () if c.tag in _SCREEN] for r in (before, after))
    if [_canonical(c) for c in old] == [_canonical(c) for c in new]:
        return
    for child in [c for c in devices if c.tag in _SCREEN or (c.tag == "audio" and not new)]:
        devices.remove(child)
    devices.extend(deepcopy(c) for c in new)


def _merge_pins(root: ET.Element, before: ET.Element, after: ET.Element) -> None:
    old, new = ([c for c in r.find("cputune") or () if c.tag in _PINS] for r in (before, after))
    if [_canonical(c) for c in old] == [_canonical(c) for c in new]:
        return
    tune = root.find("cputune")
    if tune is None:
        tune = ET.SubElement(root, "cputune")
    for child in [c for c in tune if c.tag in _PINS]:
        tune.remove(child)
    tune.extend(deepcopy(c) for c in new)
    if not len(tune):
        root.remove(tune)


def _rebuild(disk: ET.Element | None, wanted: ET.Element) -> None:
    """Another driver, another bus: the file stays, the address is found anew where the bus is another."""
    if disk is None:
        return
    if _bus(disk) != _bus(wanted):
        for tag in ("target", "address"):
            _replace(disk, disk.find(tag), wanted.find(tag))
    driver, new = disk.find("driver"), wanted.find("driver")
    if driver is not None and new is not None:
        for name in ("cache", "io", "iothread", "queues"):
            driver.attrib.pop(name, None)
            if (value := new.get(name)) is not None:
                driver.set(name, value)


def _rewire(nic: ET.Element | None, wanted: str) -> None:
    if nic is None:
        return
    new = ET.fromstring(wanted)  # noqa: S314 - our own
    nic.set("type", new.get("type", ""))
    _replace(nic, nic.find("source"), new.find("source"))


def _replace(parent: ET.Element, old: ET.Element | None, new: ET.Element | None) -> None:
    at = list(parent).index(old) if old is not None else len(parent)
    _remove(parent, old)
    if new is not None:
        parent.insert(at, deepcopy(new))


def _remove(parent: ET.Element, child: ET.Element | None) -> None:
    if child is not None:
        parent.remove(child)


def _disk(devices: ET.Element, device: str) -> ET.Element | None:
    return next((d for d in devices.iterfind("disk") if _target(d) == device), None)


def _nic(devices: ET.Element, mac: str) -> ET.Element | None:
    found = ((n, n.find("mac")) for n in devices.iterfind("interface"))
    return next((n for n, m in found if m is not None and m.get("address") == mac), None)


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def _bus(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("bus", "") if target is not None else ""


def _differ(a: ET.Element | None, b: ET.Element | None) -> bool:
    return _canonical(a) != _canonical(b)


def _canonical(element: ET.Element | None) -> str:
    return "" if element is None else ET.canonicalize(ET.tostring(element, encoding="unicode"), strip_text=True)
