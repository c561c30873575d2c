"""Adding devices to a domain and taking them away, now and in its definition; and what is kept in its metadata."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import libvirt

from vmkit.errors import ConflictError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.errors import translate


def attach(domain: Domain, xml: str, *, live: bool, config: bool) -> None:
    """Add the device of an XML element.

    Args:
        domain: the domain.
        xml: <hostdev>, <interface>, ...
        live: to what runs now.
        config: to the definition, for the next start.

    Raises:
        ConflictError: no PCI Express port is free for it. EffectError: QEMU or the host says no.
    """
    with _said(f"attaching to {domain.name}"):
        domain.handle.attachDeviceFlags(xml, _flags(live, config))


def detach(domain: Domain, xml: str, *, live: bool, config: bool) -> None:
    """Remove the device of an XML element. From a running domain this only asks: the guest has to let go of it.

    Raises:
        NotFoundError: the domain has no such device.
    """
    with _said(f"detaching from {domain.name}"):
        domain.handle.detachDeviceFlags(xml, _flags(live, config))


def set_metadata(domain: Domain, element: str | None, *, prefix: str, namespace: str) -> None:
    """Keep an XML element in the domain's metadata, in what runs and in the definition; None removes it."""
    config = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.persistent else 0
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.state().active else 0
    with _said(f"metadata of {domain.name}"):
        domain.handle.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, element, prefix if element else None, namespace, config | live
        )


def _flags(live: bool, config: bool) -> int:
    return (libvirt.VIR_DOMAIN_AFFECT_LIVE if live else 0) | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if config else 0)


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """As errors.translated, and a bus without room is told apart."""
    try:
        yield
    except libvirt.libvirtError as e:
        error = translate(e, what)
        if "No more available PCI slots" in error.message:
            raise ConflictError(
                f"{what}: no PCI Express port is free for it",
                hint="shut the VM down and attach it then: libvirt adds a port at the next start",
            ) from e
        raise error from e
