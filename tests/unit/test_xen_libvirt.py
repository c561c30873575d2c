"""In what libvirt's driver for Xen is unlike the others: Domain-0, domains that are rebooted, flags of the console."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import libvirt
import pytest

from vmkit.errors import ConflictError, NotFoundError
from vmkit.hypervisor.domain import DomainState
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.lifecycle import reboots

# ruff: noqa: N802 - methods have libvirt's names


class Busy(libvirt.libvirtError):  # type: ignore[misc]  # libvirt has no types
    """Something else changes the domain, for longer than libxl waits."""

    def get_error_code(self) -> int:
        return int(libvirt.VIR_ERR_OPERATION_TIMEOUT)


@dataclass
class Handle:
    """What a domain's handle says of itself. `states` are told one after the other; a change goes to the next one."""

    number: int
    title: str
    states: list[int] = field(default_factory=lambda: [libvirt.VIR_DOMAIN_RUNNING])
    opened: list[int] = field(default_factory=list)
    busy: int = 0

    def ID(self) -> int:
        return self.number

    def name(self) -> str:
        return self.title

    def UUIDString(self) -> str:
        return f"00000000-0000-0000-0000-{self.number:012d}"

    def state(self) -> list[int]:
        return [self.states[0], 0]

    def autostart(self) -> int:
        return 0

    def setAutostart(self, _on: int) -> None:
        if self.busy:
            self.busy -= 1
            raise Busy("cannot acquire state change lock")
        self.states.pop(0)

    def openConsole(self, _device: None, _stream: object, flags: int) -> None:
        self.opened.append(flags)


@dataclass
class Connection:
    """A connection with some domains."""

    driver: str
    domains: list[Handle]
    listening: dict[int, Callable[..., None]] = field(default_factory=dict)

    def getType(self) -> str:
        return self.driver

    def listAllDomains(self, _flags: int) -> list[Handle]:
        return self.domains

    def lookupByName(self, name: str) -> Handle:
        return self._one(h for h in self.domains if h.title == name)

    def lookupByUUIDString(self, uuid: str) -> Handle:
        return self._one(h for h in self.domains if h.UUIDString() == uuid)

    def newStream(self, _flags: int) -> object:
        return object()

    def domainEventRegisterAny(self, _domain: None, event: int, told: Callable[..., None], _opaque: None) -> int:
        self.listening[event] = told
        return event

    def domainEventDeregisterAny(self, number: int) -> None:
        del self.listening[number]

    def _one(self, found: Iterable[Handle]) -> Handle:
        for handle in found:
            return handle
        raise libvirt.libvirtError("no such domain")


def host(driver: str, **web1: Any) -> Host:
    uri = {"Xen": "xen+ssh://root@h1/system", "QEMU": "qemu:///system"}[driver]
    return Host(uri, Connection(driver, [Handle(0, "Domain-0"), Handle(3, "web1", **web1)]))


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


@pytest.mark.parametrize(("driver", "state"), [("Xen", DomainState.RUNNING), ("QEMU", DomainState.SHUTOFF)])
def test_a_domain_on_xen_that_is_rebooted_is_waited_for(driver: str, state: DomainState) -> None:
    states = [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_RUNNING]
    assert host(driver, states=states, busy=2).domain("web1").state() is state


def test_the_wait_for_libxl_has_an_end() -> None:
    states = [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_RUNNING]
    with pytest.raises(ConflictError):
        host("Xen", states=states, busy=1000).domain("web1").state()


@pytest.mark.parametrize(("driver", "flags"), [("Xen", 0), ("QEMU", libvirt.VIR_DOMAIN_CONSOLE_SAFE)])
def test_the_console_is_opened_by_flags_that_the_driver_knows(driver: str, flags: int) -> None:
    opened: list[int] = []
    domain = host(driver, opened=opened).domain("web1")
    domain.open_console()
    domain.open_console(force=True)
    assert opened == [flags, libvirt.VIR_DOMAIN_CONSOLE_FORCE]


def test_a_reboot_on_xen_is_seen_by_the_start_that_ends_it() -> None:
    xen = host("Xen")
    handle = xen.domain("web1").handle
    seen: list[bool] = []
    with reboots(xen, handle.UUIDString(), lambda: seen.append(True)):
        told = xen.handle.listening[libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE]
        told(xen.handle, handle, libvirt.VIR_DOMAIN_EVENT_STOPPED, 0, None)
        told(xen.handle, xen.handle.domains[0], libvirt.VIR_DOMAIN_EVENT_STARTED, 0, None)
        assert seen == []
        told(xen.handle, handle, libvirt.VIR_DOMAIN_EVENT_STARTED, 0, None)
    assert seen == [True]
    assert xen.handle.listening == {}
