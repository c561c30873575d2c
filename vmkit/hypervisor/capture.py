"""The memory and the disks of a running domain at one moment, and domains that go on from there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import libvirt

from vmkit.errors import DeadlineError, VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.errors import translated

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host


def capture(domain: Domain, memory: str, overlays: Mapping[str, str]) -> None:
    """Save memory and freeze disks at one moment, while the domain goes on.

    The memory is written while the guest runs; the guest stands still for the last round only. Afterwards it writes to
    the overlays, and the files that its disks were on before stay as they were at that moment, until `merge`.

    Args:
        domain: a running domain.
        memory: path of the file on the host that takes the memory, in the form of virsh save.
        overlays: path of the new qcow2 file of each disk that is written to, by target ('vda').

    Raises:
        ConflictError: another operation holds the domain.
        EffectError: it failed; nothing has changed.
    """
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "memory", snapshot="external", file=memory)
    disks = ET.SubElement(root, "disks")
    for target in _targets(domain):
        if target not in overlays:
            ET.SubElement(disks, "disk", name=target, snapshot="no")
            continue
        disk = ET.SubElement(disks, "disk", name=target, snapshot="external")
        ET.SubElement(disk, "driver", type="qcow2")
        ET.SubElement(disk, "source", file=overlays[target])
    flags = (
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    )
    with translated(f"saving the memory of {domain.name}"):
        domain.handle.snapshotCreateXML(ET.tostring(root, encoding="unicode"), flags)


def merge(domain: Domain, target: str, *, seconds: float = 600.0) -> None:
    """Write what is in the overlay of a disk into the file below it, and have the domain use that one again.

    The overlay's file stays. A merge that was begun and cut off is finished.

    Raises:
        EffectError: it failed; the domain uses the overlay.
        DeadlineError: not within `seconds`; the domain uses the overlay.
    """
    what = f"merging the disk {target} of {domain.name}"
    end = time.monotonic() + seconds
    with translated(what):
        if not domain.handle.blockJobInfo(target, 0):
            # Shallow: one layer down. Without it everything would go into the image at the bottom, which others use.
            flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
            domain.handle.blockCommit(target, None, None, 0, flags)
    while True:
        with translated(what):
            info = domain.handle.blockJobInfo(target, 0)
        if not info:
            return
        if info["end"] and info["cur"] == info["end"]:
            try:
                with translated(what):
                    domain.handle.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
                return
            except VmkitError as e:  # "not yet ready for pivot"
                if "ready" not in e.message:
                    raise
        if time.monotonic() > end:
            with contextlib.suppress(libvirt.libvirtError):
                domain.handle.blockJobAbort(target, 0)
            raise DeadlineError(
                f"{what}: not within {seconds:g} s; the VM keeps the overlay",
                hint=f"later: virsh blockcommit {domain.name} {target} --shallow --active --pivot --wait",
            )
        time.sleep(0.02)


def restore_paused(host: Host, path: str) -> None:
    """Start the domain of a file that virsh save, or `capture`, has written; its vCPUs stand still.

    Raises:
        EffectError: QEMU or libvirt refuses it; nothing runs.
    """
    flags = libvirt.VIR_DOMAIN_SAVE_PAUSED
    with translated("restoring a saved memory"):
        host.handle.restoreFlags(path, None, flags)


def set_links(domain: Domain, *, up: bool, config: bool = False) -> None:
    """Plug the cables of all network cards in, or pull them; with `config` also in the definition."""
    where = (libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_XML_SECURE)
    which = [where, (libvirt.VIR_DOMAIN_AFFECT_CONFIG, libvirt.VIR_DOMAIN_XML_INACTIVE)] if config else [where]
    for affect, look in which:
        with translated(f"network cards of {domain.name}"):
            root = ET.fromstring(domain.handle.XMLDesc(look))  # noqa: S314 - libvirt's own answer
            for card in root.iterfind("devices/interface"):
                for link in card.findall("link"):
                    card.remove(link)
                ET.SubElement(card, "link", state="up" if up else "down")
                domain.handle.updateDeviceFlags(ET.tostring(card, encoding="unicode"), affect)


def _targets(domain: Domain) -> list[str]:
    root = ET.fromstring(domain.xml())  # noqa: S314 - libvirt's own answer
    return [t for disk in root.iterfind("devices/disk") if (t := _target(disk))]


def _target(disk: ET.Element) -> str | None:
    target = disk.find("target")
    return None if target is None else target.get("dev")
