"""What a domain's XML says, as values: of any domain, whoever defined it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET

FORWARDING: Final = "vmkit-forward"
"""Beginning of the names of QEMU's network back ends that forward ports; libvirt has none of that kind."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a domain: `source` is its file, volume or block device; None for an empty drive."""

    device: str
    bus: str
    source: str | None
    format: str | None
    kind: str
    readonly: bool


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card of a domain: `network` is 'network:NAME', 'bridge:NAME', 'user', ...

    `forwards` are ports of the host that lead to it, as in 'tcp:127.0.0.1:2222:22' (vmkit.vm.forward).
    """

    mac: str | None
    model: str | None
    network: str
    tap: str | None
    forwards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Described:
    """The parts of a domain's XML that people ask for."""

    accelerator: str
    arch: str
    machine: str | None
    cpu: str
    kernel: str | None
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    qemu_args: tuple[str, ...]


def describe(xml: str) -> Described:
    """Read a domain's XML."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    kind = root.find("os/type")
    attributes = kind.attrib if kind is not None else {}
    domain_type = root.get("type", "")
    given = root.iterfind("{http://libvirt.org/schemas/domain/qemu/1.0}commandline/{*}arg")
    args, forwarding = _without_forwarding([a.get("value", "") for a in given])
    return Described(
        accelerator="tcg" if domain_type == "qemu" else domain_type,
        arch=attributes.get("arch", ""),
        machine=attributes.get("machine"),
        cpu=_cpu(root.find("cpu")),
        kernel=root.findtext("os/kernel"),
        disks=tuple(_disk(d) for d in root.iterfind("devices/disk")),
        nics=(*(_nic(n) for n in root.iterfind("devices/interface")), *forwarding),
        qemu_args=args,
    )


def paired(asked: Sequence[Mapping[str, Any]], nics: Sequence[Nic]) -> list[tuple[Mapping[str, Any], Nic]]:
    """The cards of a remembered spec with those of the domain, by their place; none where their numbers differ."""
    cards = [c for c in asked if c.get("network", "auto") != "none" and c.get("io") != "passthrough"]
    wished = sorted(cards, key=lambda c: bool(c.get("forward")))  # as `describe` has them
    return list(zip(wished, nics, strict=True)) if len(wished) == len(nics) else []


def _without_forwarding(args: list[str]) -> tuple[tuple[str, ...], tuple[Nic, ...]]:
    """Arguments for QEMU without those that make NICs with port forwards, and these NICs (vmkit.vm.xml_forward)."""
    from vmkit.vm import forward

    rest: list[str] = []
    nics: list[Nic] = []
    i = 0
    while i < len(args):
        if args[i] == "-netdev" and f"id={FORWARDING}" in (args[i + 1 : i + 2] or [""])[0] and i + 3 < len(args):
            model, *options = args[i + 3].split(",")
            mac = next((o.removeprefix("mac=") for o in options if o.startswith("mac=")), None)
            forwards = tuple(str(f) for f in forward.of_netdev(args[i + 1]))
            nics.append(Nic(mac, model.removesuffix("-net-pci"), "user", None, forwards))
            i += 4
            continue
        rest.append(args[i])
        i += 1
    return tuple(rest), tuple(nics)


def _cpu(cpu: ET.Element | None) -> str:
    if cpu is None:
        return "default"
    model = cpu.findtext("model")
    return model if model and cpu.get("mode", "custom") == "custom" else cpu.get("mode", "custom")


def _disk(disk: ET.Element) -> Disk:
    source, target, driver = disk.find("source"), disk.find("target"), disk.find("driver")
    where = None
    if source is not None:
        names = ("file", "dev", "volume", "name", "dir")
        where = next((v for n in names if (v := source.get(n))), None)
    return Disk(
        device=target.get("dev", "") if target is not None else "",
        bus=target.get("bus", "") if target is not None else "",
        source=where,
        format=driver.get("type") if driver is not None else None,
        kind=disk.get("device", "disk"),
        readonly=disk.find("readonly") is not None,
    )


def _nic(nic: ET.Element) -> Nic:
    source, model, mac, target = (nic.find(t) for t in ("source", "model", "mac", "target"))
    kind = nic.get("type", "")
    if source is not None and source.get("network"):  # also in what runs now, where libvirt has put the bridge
        kind = "network"
    name = source.get(kind) or source.get("dev") if source is not None else None
    return Nic(
        mac=mac.get("address") if mac is not None else None,
        model=model.get("type") if model is not None else None,
        network=f"{kind}:{name}" if name else kind,
        tap=target.get("dev") if target is not None else None,
    )
