"""Xen's Domain-0 is the host, and no VM: it is neither listed nor found, so nothing pauses or stops it by mistake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import libvirt
import pytest

from vmkit.errors import NotFoundError
from vmkit.hypervisor.host import Host


@dataclass
class Handle:
    """What a domain's handle says of itself."""

    number: int
    title: str

    def ID(self) -> int:  # noqa: N802 - libvirt's name
        return self.number

    def name(self) -> str:
        return self.title

    def UUIDString(self) -> str:  # noqa: N802 - libvirt's name
        return f"00000000-0000-0000-0000-{self.number:012d}"


@dataclass
class Connection:
    """A connection with some domains."""

    driver: str
    domains: list[Handle]

    def getType(self) -> str:  # noqa: N802 - libvirt's name
        return self.driver

    def listAllDomains(self, _flags: int) -> list[Handle]:  # noqa: N802 - libvirt's name
        return self.domains

    def lookupByName(self, name: str) -> Handle:  # noqa: N802 - libvirt's name
        return self._found(h for h in self.domains if h.title == name)

    def lookupByUUIDString(self, uuid: str) -> Handle:  # noqa: N802 - libvirt's name
        return self._found(h for h in self.domains if h.UUIDString() == uuid)

    def _found(self, found: Any) -> Handle:
        for handle in found:
            return handle
        raise libvirt.libvirtError("no such domain")


def host(driver: str) -> Host:
    return Host("xen:///system", Connection(driver, [Handle(0, "Domain-0"), Handle(3, "web1")]))


def test_domain_zero_is_no_vm() -> None:
    xen = host("Xen")
    assert [d.name for d in xen.domains()] == ["web1"]
    assert xen.domain("web1").name == "web1"
    assert xen.domain("00000000-0000-0000-0000-000000000003").name == "web1"
    for name in ("Domain-0", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(NotFoundError):
            xen.domain(name)


def test_other_drivers_have_no_such_domain() -> None:
    assert [d.name for d in host("QEMU").domains()] == ["Domain-0", "web1"]
