"""The files that a domain's XML names: pure."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree as ET

from vmkit.vm.metadata import NAMESPACE, Remembered, remembered_in


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file that the VM needs at the same path on both hosts.

    Attributes:
        role: 'disk', 'cdrom', 'floppy', 'image' (what a disk stands on), 'kernel', 'initrd', 'firmware', 'nvram', or
            'log' (of a serial port).
        cache: cache mode of a disk; '' for QEMU's default.
        network: it lies on a storage that both reach by network (rbd, iscsi, nbd ...); `path` is then its name there.
        device: target of a disk: 'vda'.
        format: of a disk or image, as libvirt names it.
        backing: path of the image right below; '' for none.
        own: vmkit made it for this VM alone.
    """

    path: str
    role: str
    readonly: bool = False
    shareable: bool = False
    cache: str = ""
    network: bool = False
    device: str = ""
    format: str = ""
    backing: str = ""
    own: bool = False

    @property
    def written(self) -> bool:
        """Whether the guest writes to it."""
        return self.role == "disk" and not self.readonly


def files_of(root: ET.Element) -> tuple[GuestFile, ...]:
    """All that the VM needs at the same path on both hosts. Reads the XML of a domain that runs.

    The images below a disk are in it only there.
    """
    own = _own(root)
    found = [
        GuestFile(text, role)
        for tag, role in (("kernel", "kernel"), ("initrd", "initrd"), ("dtb", "kernel"))
        if (text := root.findtext(f"os/{tag}"))
    ]
    loader = root.find("os/loader")
    if loader is not None and loader.text:
        found.append(GuestFile(loader.text, "firmware", readonly=True))
    if nvram := root.findtext("os/nvram"):
        found.append(GuestFile(nvram, "nvram"))
    for disk in root.iterfind("devices/disk"):
        found += _disk(disk, own)
    for log in root.iterfind("devices/serial/log"):
        if path := log.get("file"):
            found.append(GuestFile(path, "log", own=path.rpartition("/")[2] in own))
    return tuple(dict.fromkeys(found))


def _own(root: ET.Element) -> frozenset[str]:
    """Names of the volumes that vmkit made for this VM."""
    element = next((e for e in root.iterfind("metadata/*") if e.tag.startswith(f"{{{NAMESPACE}}}")), None)
    memory: Remembered | None = None
    if element is not None:
        memory = remembered_in(ET.tostring(element, encoding="unicode"))
    if memory is None:
        return frozenset()
    return frozenset((*memory.volumes, *([memory.console_log] if memory.console_log else [])))


def _disk(disk: ET.Element, own: frozenset[str]) -> list[GuestFile]:
    """A disk, and the images below it, from the top."""
    source = disk.find("source")
    if source is None:
        return []
    driver, target = disk.find("driver"), disk.find("target")
    path = source.get("file") or source.get("dev") or source.get("dir")
    remote = disk.get("type") in ("network", "volume", "nvme", "vhostuser") and path is None
    top = GuestFile(
        path or source.get("name") or source.get("volume") or disk.get("type") or "disk",
        disk.get("device", "disk"),
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
        cache="" if driver is None else driver.get("cache", ""),
        network=remote,
        device="" if target is None else target.get("dev", ""),
        format="" if driver is None else driver.get("type", ""),
        backing=_below(disk),
        own=path is not None and path.rpartition("/")[2] in own,
    )
    found, layer = [top], disk.find("backingStore")
    while layer is not None:
        inner, kind = layer.find("source"), layer.find("format")
        if inner is not None and (image := inner.get("file")):
            form = "" if kind is None else kind.get("type", "")
            found.append(GuestFile(image, "image", readonly=True, format=form, backing=_below(layer)))
        layer = layer.find("backingStore")
    return found


def _below(layer: ET.Element) -> str:
    source = layer.find("backingStore/source")
    return "" if source is None else source.get("file", "")
