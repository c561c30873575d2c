"""Domains of a host that start, reboot or end, as its libvirt says it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import libvirt

from vmkit.hypervisor.errors import translated
from vmkit.hypervisor.host import Host


@contextlib.contextmanager
def lifecycle(host: Host, changed: Callable[[str], None]) -> Iterator[None]:
    """Call `changed` with the uuid of each domain that starts, goes on or ends, while the block runs.

    It is called in libvirt's event thread, and must not call libvirt itself. A domain that migrates in starts when its
    process is there, before its guest runs. The host has to be opened with `events=True`.

    Raises:
        VmkitError: the host has no such events.
    """

    def told(_connection: Any, domain: Any, _event: int, _detail: int, _opaque: Any) -> None:
        changed(domain.UUIDString())

    with _listening(host, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, told):
        yield


@contextlib.contextmanager
def reboots(host: Host, uuid: str, happened: Callable[[], None]) -> Iterator[None]:
    """Call `happened`, in libvirt's event thread, whenever the machine of a domain is reset while the block runs.

    A guest that reboots resets its machine, after it has stopped all that ran in it. On Xen the domain ends instead and
    another one is started in its place. The host has to be opened with `events=True`.

    Raises:
        VmkitError: the host has no such events.
    """

    def told(_connection: Any, domain: Any, _opaque: Any) -> None:
        if domain.UUIDString() == uuid:
            happened()

    def started(connection: Any, domain: Any, event: int, _detail: int, opaque: Any) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
            told(connection, domain, opaque)

    if host.driver == "Xen":
        listening = _listening(host, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, started)
    else:
        listening = _listening(host, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, told)
    with listening:
        yield


@contextlib.contextmanager
def _listening(host: Host, event: int, told: Callable[..., None]) -> Iterator[None]:
    with translated("listening to the life cycle of domains"):
        number = host.handle.domainEventRegisterAny(None, event, told, None)
    try:
        yield
    finally:
        with contextlib.suppress(libvirt.libvirtError):  # the connection may be gone
            host.handle.domainEventDeregisterAny(number)
