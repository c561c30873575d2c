"""Limits in a domain's XML: the elements that say them, reading them back, and changing them in place. Pure.

Format: https://libvirt.org/formatdomain.html, 'CPU Tuning', 'Memory Tuning', 'Block I/O Tuning', 'Quality of service'.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.values import Bytes
from vmkit.vm.limits import (
    DISK_FIELDS,
    PERIOD,
    Limits,
    OfDisk,
    OfNic,
    from_kilobytes,
    kilobytes,
    quota_of,
    settings,
)
from vmkit.vm.metadata import NAMESPACE
from vmkit.vm.spec_parts import DiskLimits, LimitsSpec, NicLimits

ET.register_namespace("vmkit", NAMESPACE)
ET.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")
_NO_CAP: Final = 9007199254740991
"""KiB that libvirt shows where there is no cap (VIR_DOMAIN_MEMORY_PARAM_UNLIMITED)."""


def cputune(limits: LimitsSpec) -> list[ET.Element]:
    """Children of <cputune>; none where nothing is limited. The quota holds for the process with all its threads."""
    found = []
    if limits.cpu_shares is not None:
        found.append(_text("shares", limits.cpu_shares))
    if limits.cpu_quota is not None:
        found += [_text("global_period", PERIOD), _text("global_quota", quota_of(limits.cpu_quota))]
    return found


def memtune(limits: LimitsSpec) -> list[ET.Element]:
    """Children of <memtune>."""
    return [] if limits.memory is None else [_text("hard_limit", limits.memory.kib, unit="KiB")]


def blkiotune(limits: LimitsSpec) -> list[ET.Element]:
    """Children of <blkiotune>."""
    return [] if limits.io_weight is None else [_text("weight", limits.io_weight)]


def iotune(limits: DiskLimits) -> list[ET.Element]:
    """Children of a disk's <iotune>."""
    return [_text(f, int(v)) for f in DISK_FIELDS if (v := getattr(limits, f)) is not None]


def bandwidth(limits: NicLimits) -> list[ET.Element]:
    """Children of an interface's <bandwidth>. libvirt counts in kilobytes of 1000 bytes."""
    rates = (("inbound", limits.inbound), ("outbound", limits.outbound))
    return [ET.Element(name, average=str(kilobytes(rate))) for name, rate in rates if rate is not None]


def add(parent: ET.Element, tag: str, children: Iterable[ET.Element]) -> None:
    """Put children into the element `tag` of `parent`, which is made if there is something to put in."""
    listed = list(children)
    if listed:
        element = parent.find(tag)
        (ET.SubElement(parent, tag) if element is None else element).extend(listed)


def add_to_domain(root: ET.Element, limits: LimitsSpec) -> None:
    """Put the limits of the whole VM into a new domain's XML."""
    add(root, "cputune", cputune(limits))
    add(root, "memtune", memtune(limits))
    add(root, "blkiotune", blkiotune(limits))


def read(xml: str) -> Limits:
    """The limits that the XML of any domain says. Those of other kinds (per vCPU, bursts) are not among them."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    period, quota = _number(root, "cputune/global_period"), _number(root, "cputune/global_quota")
    cap = _kib(root.find("memtune/hard_limit"))
    return Limits(
        LimitsSpec(
            cpu_shares=_number(root, "cputune/shares"),
            cpu_quota=round(quota / (period or PERIOD), 3) if quota and quota > 0 else None,
            memory=None if cap is None or cap >= _NO_CAP else Bytes(cap * 1024),
            io_weight=_number(root, "blkiotune/weight") or None,
        ),
        tuple(OfDisk(d, _disk(e)) for e in root.iterfind("devices/disk") if (d := _device(e))),
        tuple(_nic(i, e) for i, e in enumerate(root.iterfind("devices/interface"))),
    )


def write(xml: str, before: Limits, after: Limits) -> str:
    """The same domain's XML with other limits. Parts that do not differ are left as they are."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    if before.vm != after.vm:
        for tag, names in (
            ("cputune", ("shares", "global_period", "global_quota")),
            ("memtune", ("hard_limit",)),
            ("blkiotune", ("weight",)),
        ):
            _clear(root, tag, names)
        add_to_domain(root, after.vm)
    elements = {d: e for e in root.iterfind("devices/disk") if (d := _device(e))}
    cards = {_mac(e): e for e in root.iterfind("devices/interface")}
    for setting in settings(before, after):
        match setting.new:
            case OfDisk(device, limits):
                _clear(elements[device], "iotune", DISK_FIELDS)
                add(elements[device], "iotune", iotune(limits))
            case OfNic(mac=mac, limits=rates):
                _clear(cards[mac], "bandwidth", ("inbound", "outbound"))
                add(cards[mac], "bandwidth", bandwidth(rates))
    return ET.tostring(root, encoding="unicode")


def _text(tag: str, value: object, **attributes: str) -> ET.Element:
    element = ET.Element(tag, attributes)
    element.text = str(value)
    return element


def _clear(parent: ET.Element, tag: str, names: Iterable[str]) -> None:
    element = parent.find(tag)
    if element is None:
        return
    for child in [c for c in element if c.tag in names]:
        element.remove(child)
    if not len(element):
        parent.remove(element)


def _number(parent: ET.Element, path: str) -> int | None:
    text = (parent.findtext(path) or "").strip()
    try:
        return int(text)
    except ValueError:
        return None


def _kib(element: ET.Element | None) -> int | None:
    """In libvirt's own XML sizes are in KiB whatever unit they came in."""
    text = (element.text or "").strip() if element is not None else ""
    return int(text) if text.isascii() and text.isdecimal() else None


def _device(disk: ET.Element) -> str | None:
    target = disk.find("target")
    return target.get("dev") if target is not None else None


def _mac(nic: ET.Element) -> str | None:
    mac = nic.find("mac")
    return mac.get("address") if mac is not None else None


def _disk(disk: ET.Element) -> DiskLimits:
    values = {f: _number(disk, f"iotune/{f}") or None for f in DISK_FIELDS}
    return DiskLimits(**{f: Bytes(v) if v and "bytes" in f else v for f, v in values.items()})  # type: ignore[arg-type]


def _nic(index: int, nic: ET.Element) -> OfNic:
    def rate(name: str) -> Bytes | None:
        element = nic.find(f"bandwidth/{name}")
        text = element.get("average", "") if element is not None else ""
        return from_kilobytes(int(text)) if text.isascii() and text.isdecimal() and int(text) else None

    source = nic.find("source")
    kind = nic.get("type", "")
    if source is not None and source.get("network") and kind == "bridge":
        kind = "network"  # as it was asked for; what runs has the bridge beside it
    return OfNic(
        index,
        _mac(nic),
        kind,
        NicLimits(inbound=rate("inbound"), outbound=rate("outbound")),
    )
