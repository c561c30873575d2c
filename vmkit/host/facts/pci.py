"""IOMMU and PCI: which devices can be given to guests, alone or only together; SR-IOV."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vmkit.host.tree import Tree, hexadecimal, natural, pairs

_ADDRESS = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]\Z")
_ROOT: Final = "/sys/bus/pci/devices/"
_GROUPS: Final = "/sys/kernel/iommu_groups/"
_MOST: Final = 0xFFFF
"""TotalVFs has 16 bits (PCI Express specification, SR-IOV capability)."""
_IR: Final = 1 << 3
"""Interrupt remapping support (Intel VT-d specification, 11.4.3, ECAP_REG bit 3)."""
CLASSES: Final = {
    0x01: "storage", 0x02: "network", 0x03: "display", 0x04: "multimedia", 0x05: "memory", 0x06: "bridge",
    0x07: "serial", 0x08: "system", 0x0B: "processor", 0x0C: "bus", 0x0D: "wireless", 0x10: "crypto",
    0x11: "signal", 0x12: "accelerator",
}  # fmt: skip
"""PCI base classes (PCI Code and ID Assignment Specification)."""
WANTED: Final = frozenset(["storage", "network", "display", "crypto", "accelerator"])
"""Kinds of devices that people give to guests."""


@dataclass(frozen=True, slots=True)
class PciDevice:
    """A PCI function.

    Attributes:
        address: as in '0000:01:00.0'.
        id: vendor and device, as in '8086:10c9'.
        kind: its class in one word: 'network', 'storage', 'bridge', ...; 'other'.
        driver: what drives it on the host; None if nothing does.
    """

    address: str
    id: str
    kind: str
    driver: str | None


@dataclass(frozen=True, slots=True)
class IommuGroup:
    """What the IOMMU cannot tell apart.

    Attributes:
        number: the kernel's.
        devices: addresses of the PCI functions in it, bridges among them.
        isolated: at most one of them is not a bridge, so that it can be given away alone.
    """

    number: str
    devices: tuple[str, ...]
    isolated: bool


@dataclass(frozen=True, slots=True)
class VirtualFunction:
    """An SR-IOV virtual function: its address, and its driver on the host (None: nothing drives it)."""

    address: str
    driver: str | None


@dataclass(frozen=True, slots=True)
class PhysicalFunction:
    """A device with SR-IOV.

    Attributes:
        address: of the function that makes the others.
        kind: as for PciDevice.
        driver: on the host.
        interfaces: its network interfaces.
        total: how many virtual functions it can have.
        enabled: how many it has.
        functions: those that it has.
    """

    address: str
    kind: str
    driver: str | None
    interfaces: tuple[str, ...]
    total: int
    enabled: int
    functions: tuple[VirtualFunction, ...]


@dataclass(frozen=True, slots=True)
class PciFacts:
    """IOMMU, its groups, and SR-IOV.

    Attributes:
        firmware_table: what the firmware says about an IOMMU: 'DMAR' (VT-d), 'IVRS' (AMD-Vi), 'IORT' (Arm), '' for
            none; None if the tables cannot be listed.
        units: IOMMUs that the kernel drives.
        groups: what it made of the devices. None at all: no device can be assigned.
        interrupt_remapping: whether interrupts are remapped; None if unknown.
        unsafe_interrupts: whether VFIO was told to do without.
        devices: every PCI function.
        physical_functions: devices with SR-IOV.
    """

    firmware_table: str | None
    units: tuple[str, ...]
    groups: tuple[IommuGroup, ...]
    interrupt_remapping: bool | None
    unsafe_interrupts: bool | None
    devices: tuple[PciDevice, ...]
    physical_functions: tuple[PhysicalFunction, ...]

    def device(self, address: str) -> PciDevice | None:
        """The device of this address."""
        return next((d for d in self.devices if d.address == address), None)


def read(tree: Tree) -> PciFacts:
    """The PCI and IOMMU facts of a captured host."""
    devices = tuple(_device(tree, a) for a in tree.names(_ROOT.rstrip("/")) if _ADDRESS.match(a))
    by_address = {d.address: d for d in devices}
    units = tree.names("/sys/class/iommu")
    return PciFacts(
        firmware_table=_table(tree),
        units=units,
        groups=_groups(tree, by_address),
        interrupt_remapping=_remapping(tree, units),
        unsafe_interrupts=tree.switch("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"),
        devices=devices,
        physical_functions=tuple(f for d in devices if (f := _physical(tree, d, by_address))),
    )


def _device(tree: Tree, address: str) -> PciDevice:
    event = pairs(tree.text(f"{_ROOT}{address}/uevent"), "=")
    code = hexadecimal(event.get("PCI_CLASS"))
    kind = CLASSES.get(code >> 16, "other") if code is not None else "other"
    return PciDevice(address, event.get("PCI_ID", "").lower(), kind, event.get("DRIVER") or None)


def _table(tree: Tree) -> str | None:
    folder = "/sys/firmware/acpi/tables"
    for name in ("DMAR", "IVRS", "IORT"):
        if name in tree.names(folder):
            return name
    return "" if tree.listed(folder, "DMAR") is False else None


def _groups(tree: Tree, devices: dict[str, PciDevice]) -> tuple[IommuGroup, ...]:
    found = []
    for folder in sorted((f for f in tree.folders if f.startswith(_GROUPS) and f.endswith("/devices")), key=natural):
        members = tuple(a for a in tree.names(folder) if _ADDRESS.match(a))
        ends = [a for a in members if a not in devices or devices[a].kind != "bridge"]
        if members:
            found.append(IommuGroup(folder.split("/")[4], members, len(ends) <= 1))
    return tuple(found)


def _remapping(tree: Tree, units: tuple[str, ...]) -> bool | None:
    """A chip whose name begins with IR- in /proc/interrupts is remapped; the unit's register says if it could be."""
    if "IR-" in tree.text("@interrupts"):
        return True
    if "@interrupts" in tree.files and tree.complete and (tree.line("@machine") or "") == "x86_64":
        return False
    values = [hexadecimal(tree.line(f"/sys/class/iommu/{u}/intel-iommu/ecap")) for u in units]
    return False if values and all(v is not None and not v & _IR for v in values) else None


def _physical(tree: Tree, device: PciDevice, devices: dict[str, PciDevice]) -> PhysicalFunction | None:
    base = f"{_ROOT}{device.address}/"
    total = tree.number(base + "sriov_totalvfs")
    if not total or total > _MOST:
        return None
    functions = []
    for path in tree.below(base + "virtfn", "/uevent"):
        event = pairs(tree.text(path), "=")
        address = event.get("PCI_SLOT_NAME", "")
        if _ADDRESS.match(address):
            known = devices.get(address)
            functions.append(VirtualFunction(address, known.driver if known else event.get("DRIVER") or None))
    return PhysicalFunction(
        address=device.address,
        kind=device.kind,
        driver=device.driver,
        interfaces=tree.names(base + "net"),
        total=total,
        enabled=tree.number(base + "sriov_numvfs") or 0,
        functions=tuple(functions),
    )
