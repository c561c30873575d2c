"""Changing a domain that exists: its size, its disks' size, its name, a NIC's network."""

from __future__ import annotations

import libvirt

from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.errors import translated
from vmkit.hypervisor.hotplug import _flags


def metadata(domain: Domain, namespace: str, *, inactive: bool) -> str | None:
    """The XML element under a namespace in the metadata of the definition, or of what runs; None if there is none."""
    from vmkit.errors import NotFoundError

    flag = libvirt.VIR_DOMAIN_AFFECT_CONFIG if inactive else libvirt.VIR_DOMAIN_AFFECT_LIVE
    try:
        with translated(f"metadata of {domain.name}"):
            return str(domain.handle.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, namespace, flag))
    except NotFoundError:
        return None


def set_vcpus(domain: Domain, count: int) -> None:
    """Have this many vCPUs in what runs. Fewer: the guest has to let go, for which libvirt waits 5 s.

    Raises:
        EffectError: the guest did not let go in time; it may do so later.
    """
    with translated(f"vCPUs of {domain.name}"):
        domain.handle.setVcpusFlags(count, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def capacity(domain: Domain, device: str) -> int:
    """Bytes that the guest sees of a disk."""
    with translated(f"size of {domain.name}'s disk {device}"):
        return int(domain.handle.blockInfo(device)[0])


def grow_disk(domain: Domain, device: str, size: int) -> None:
    """Make a disk of a running domain larger, in bytes; the guest is told."""
    with translated(f"growing {domain.name}'s disk {device}"):
        domain.handle.blockResize(device, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def grow_volume(domain: Domain, path: str, size: int) -> None:
    """Make the file of a disk that is not in use larger, in bytes."""
    with translated(f"growing {path}"):
        domain.host.handle.storageVolLookupByPath(path).resize(size)


def update_device(domain: Domain, xml: str, *, live: bool, config: bool) -> None:
    """Change a device in place, as far as the hypervisor can: the network of a NIC, for one."""
    with translated(f"changing a device of {domain.name}"):
        domain.handle.updateDeviceFlags(xml, _flags(live, config))


def rename(domain: Domain, name: str) -> None:
    """Give a domain that is shut off another name.

    Raises:
        ConflictError: it runs, or there is one of that name.
    """
    with translated(f"renaming {domain.name}"):
        domain.handle.rename(name, 0)
