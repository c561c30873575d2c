"""Domains of a host that start or end, as its libvirt says it."""

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

    with translated("listening to the life cycle of domains"):
        number = host.handle.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, told, None)
    try:
        yield
    finally:
        with contextlib.suppress(libvirt.libvirtError):  # the connection may be gone
            host.handle.domainEventDeregisterAny(number)
