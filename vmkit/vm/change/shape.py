"""What the XML of a VM says about the parts that can change while it runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from vmkit.values import Bytes
from vmkit.vm.families import FAMILIES
from vmkit.vm.spec_parts import Bus, DiskIo, DiskSpec, NicIo, NicSpec
from vmkit.vm.xml_ports import express, free_ports
from vmkit.vm.xml_size import Size, bytes_of, read_size

if TYPE_CHECKING:
    from vmkit.vm.spec import VmSpec

LETTERS: Final = {Bus.VIRTIO: "vd", Bus.SCSI: "sd", Bus.SATA: "sd", Bus.IDE: "hd"}

_NOTHING: Final = Bytes(0)


@dataclass(frozen=True, slots=True)
class DiskShape:
    """A disk: libvirt's name for it, its bus, its file or block device on the host, and its XML."""

    device: str
    bus: str
    source: str | None
    xml: str


@dataclass(frozen=True, slots=True)
class NicShape:
    """A NIC: MAC address, kind as libvirt has it ('network', 'bridge', 'user', 'hostdev'), and its XML."""

    mac: str
    kind: str
    xml: str


@dataclass(frozen=True, slots=True)
class Dimm:
    """Memory that was added: how much, and its XML."""

    size: Bytes
    xml: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What a domain's XML says.

    Attributes:
        size: vCPUs and memory.
        disks: hard disks in libvirt's order; CD-ROM drives are not among them.
        nics: in the order in which they were added.
        dimms: memory that was added while it runs.
        targets: names of all drives.
        removable: vCPUs that were added while it runs, and can go again.
        ports: PCI Express ports without a device; None where the bus takes devices as it is.
        kernel: it is booted directly, with a kernel command line.
        tied: its vCPUs are pinned or laid out over cores.
        emulated: QEMU translates its instructions (TCG).
    """

    size: Size
    disks: tuple[DiskShape, ...] = ()
    nics: tuple[NicShape, ...] = ()
    dimms: tuple[Dimm, ...] = ()
    targets: frozenset[str] = frozenset()
    removable: int = 0
    ports: int | None = None
    kernel: bool = False
    tied: bool = False
    emulated: bool = False


@dataclass(frozen=True, slots=True)
class Have:
    """A VM as it is.

    Attributes:
        name: of the VM.
        uri: of its host.
        spec: what its definition was made from.
        running: what the process that runs was made from; None if it is shut off.
        config, live: what the definition says, and what runs.
        sizes: bytes of each disk that the guest sees, by its name.
        volumes: disks that vmkit made for it.
        autostart: it starts with its host.
        image_disk: its image has a disk, which the first disk of a spec without disks overlays.
        auto_memory: bytes that `memory: auto` means for it.
        min_memory: bytes that its image needs.
    """

    name: str
    uri: str
    spec: VmSpec
    running: VmSpec | None
    config: Shape
    live: Shape | None
    sizes: Mapping[str, int] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    autostart: bool = False
    image_disk: bool = True
    auto_memory: Bytes = _NOTHING
    min_memory: Bytes = _NOTHING


def read(xml: str) -> Shape:
    """The shape of a domain."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    # What is read-only is cloud-init's seed, which is not of the spec's disks.
    drives = [d for d in root.iterfind("devices/disk") if d.get("device", "disk") == "disk"]
    disks = [_disk(d) for d in drives if d.find("readonly") is None]
    return Shape(
        size=read_size(root),
        disks=tuple(disks),
        nics=tuple(_nic(n) for n in root.iterfind("devices/interface")),
        dimms=tuple(
            Dimm(bytes_of(m.find("target/size")), ET.tostring(m, encoding="unicode"))
            for m in root.iterfind("devices/memory[@model='dimm']")
        ),
        targets=frozenset(t.get("dev", "") for t in root.iterfind("devices/disk/target")),
        removable=len(root.findall("vcpus/vcpu[@enabled='yes'][@hotpluggable='yes']")),
        ports=free_ports(root) if express(root) else None,
        kernel=root.find("os/kernel") is not None,
        tied=root.find("cpu/topology") is not None or root.find("cputune/vcpupin") is not None,
        emulated=root.get("type") == "qemu",
    )


def effective_disks(spec: VmSpec, *, image_disk: bool) -> tuple[DiskSpec, ...]:
    """The disks of a spec, with the one that it need not name."""
    return spec.disks or ((DiskSpec(),) if spec.image and image_disk else ())


def backing_of(spec: VmSpec, disk: DiskSpec, index: int, *, image_disk: bool) -> str | None:
    """The image that a disk overlays; None for a disk that holds nothing but the user's data."""
    if disk.io is DiskIo.PASSTHROUGH:
        return None
    if disk.image is not None:
        return disk.image or None
    return spec.image if index == 0 and image_disk else None


def disks_of(spec: VmSpec, disks: Sequence[DiskSpec], shape: Shape) -> list[DiskShape | None]:
    """Which disk of a domain each disk of its spec is; None for one that is not there.

    A spec that vmkit remembers has its disks in the order of their names.
    """
    left = list(shape.disks)
    found: list[DiskShape | None] = []
    for disk in disks:
        prefix = LETTERS[bus_of(spec, disk, shape)]
        match = next(
            (d for d in left if (d.source == disk.source if disk.source else d.device.startswith(prefix))), None
        )
        if match is not None:
            left.remove(match)
        found.append(match)
    return found


def bus_of(spec: VmSpec, disk: DiskSpec, shape: Shape) -> Bus:
    """How a disk of a spec is attached."""
    road = disk.io if disk.io is not DiskIo.AUTO else FAMILIES[spec.family].disk
    if disk.bus is not None:
        return disk.bus
    if road is not DiskIo.EMULATED:
        return Bus.VIRTIO
    return Bus.IDE if shape.ports is None else Bus.SATA


def nics_of(nics: Sequence[NicSpec], shape: Shape) -> list[NicShape | None]:
    """Which NIC of a domain each NIC of its spec is; None for one that is not a network card of libvirt's."""
    left = list(shape.nics)
    found: list[NicShape | None] = []
    for nic in nics:
        if nic.network == "none" or nic.io is NicIo.PASSTHROUGH or nic.forward:
            found.append(None)
            continue
        match = next((n for n in left if nic.mac and n.mac == nic.mac.lower()), left[0] if left else None)
        found.append(match)
        if match is not None:
            left = [n for n in left if n is not match and not (nic.failover and n.mac == match.mac)]
    return found


def next_device(prefix: str, taken: frozenset[str]) -> str:
    """The name after the last one that is taken: a disk that comes later is later in the order, too."""
    numbers = [_number(t.removeprefix(prefix)) for t in taken if t.startswith(prefix)]
    return prefix + _letters(max(numbers, default=-1) + 1)


def _number(letters: str) -> int:
    value = 0
    for letter in letters:
        value = value * 26 + ord(letter) - 96
    return value - 1


def _letters(n: int) -> str:
    text = ""
    n += 1
    while n:
        n, digit = divmod(n - 1, 26)
        text = chr(97 + digit) + text
    return text


def _disk(disk: ET.Element) -> DiskShape:
    source, target = disk.find("source"), disk.find("target")
    where = (source.get("file") or source.get("dev")) if source is not None else None
    return DiskShape(
        device=target.get("dev", "") if target is not None else "",
        bus=target.get("bus", "") if target is not None else "",
        source=where,
        xml=ET.tostring(disk, encoding="unicode"),
    )


def _nic(nic: ET.Element) -> NicShape:
    mac, source = nic.find("mac"), nic.find("source")
    kind = nic.get("type", "")
    if source is not None and source.get("network"):
        kind = "network"  # also in what runs, where libvirt has put the bridge beside it
    return NicShape(mac.get("address", "") if mac is not None else "", kind, ET.tostring(nic, encoding="unicode"))
