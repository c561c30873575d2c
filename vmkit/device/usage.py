"""Who uses a PCI function: a VM, the host, a process, an operation of vmkit, or nobody any more. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from vmkit.device.claim import Claim, Process
from vmkit.device.facts import VFIO, DeviceFacts, Function

Lives = Callable[[Process], bool | None]
"""Whether a process still runs; None where that cannot be told from here."""


class Kind(enum.Enum):
    """How a function is used."""

    FREE = "free"
    HOST = "host"
    VM = "vm"
    PROCESS = "process"
    PENDING = "pending"
    ORPHAN = "orphan"


@dataclass(frozen=True, slots=True)
class Usage:
    """Who uses a function: `text` says it in words, '' for nobody. `who` is the VM's name where there is one."""

    kind: Kind
    text: str = ""
    who: str | None = None


@dataclass(frozen=True, slots=True)
class Guest:
    """A domain, and the functions that it has now (`running`) or gets at its next start (`configured`)."""

    name: str
    uuid: str
    active: bool
    running: frozenset[str] = frozenset()
    configured: frozenset[str] = frozenset()


def addresses_in(xml: str) -> frozenset[str]:
    """The host's PCI functions that a domain's XML assigns to it (https://libvirt.org/formatdomain.html)."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    sources = [
        *root.iterfind("devices/hostdev[@type='pci']/source/address"),
        *root.iterfind("devices/interface[@type='hostdev']/source/address"),
        *root.iterfind("devices/disk[@type='nvme']/source/address"),
    ]
    return frozenset(a for e in sources if (a := address_of(e)))


def address_of(element: ET.Element) -> str | None:
    """`<address domain='0x0000' bus='0x01' slot='0x10' function='0x0'/>` as 0000:01:10.0."""
    try:
        domain, bus, slot, function = (int(element.get(k, "0"), 0) for k in ("domain", "bus", "slot", "function"))
    except ValueError:
        return None
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def usage_of(function: Function, facts: DeviceFacts, guests: Iterable[Guest], lives: Lives) -> Usage:
    """Who uses a function now."""
    guests = tuple(guests)
    for guest in guests:
        if guest.active and function.address in guest.running:
            return Usage(Kind.VM, guest.name, guest.name)
    claim = facts.claims.get(function.address)
    claimed = _claimed(claim, guests, lives) if claim else None
    if claimed and claimed.kind is Kind.PENDING:
        return claimed
    if function.driver == VFIO and (holders := facts.holders.get(function.group or "")):
        return Usage(Kind.PROCESS, ", ".join(f"{h.name} (pid {h.pid})" for h in holders))
    if claimed:
        return claimed
    if function.driver == VFIO:
        return Usage(Kind.ORPHAN, "orphan: bound to vfio-pci, and no VM has it")
    if function.needed:
        return Usage(Kind.HOST, f"host: {'; '.join(function.needed)}")
    if function.kind == "network" and function.pf and function.driver and not function.nets:
        return Usage(Kind.HOST, "host: its interface is in another network namespace")
    return Usage(Kind.FREE)


def _claimed(claim: Claim, guests: tuple[Guest, ...], lives: Lives) -> Usage:
    if not claim.lent:
        match lives(claim.by):
            case True:
                return Usage(Kind.PENDING, f"vmkit {claim.work} is at it (pid {claim.by.pid})", claim.vm)
            case None:
                text = f"vmkit {claim.work} on {claim.by.host} (pid {claim.by.pid}), since {claim.since}"
                return Usage(Kind.PENDING, text, claim.vm)
        return Usage(Kind.ORPHAN, f"orphan: vmkit {claim.work} was cut off", claim.vm)
    there = next((g for g in guests if g.uuid == claim.uuid), None)
    state = "is gone" if there is None else "runs without it" if there.active else "is shut off"
    return Usage(Kind.ORPHAN, f"orphan: {claim.vm} {state}", claim.vm)


def usages(facts: DeviceFacts, guests: Iterable[Guest], lives: Lives) -> Mapping[str, Usage]:
    """Who uses each function, by address."""
    guests = tuple(guests)
    return {a: usage_of(f, facts, guests, lives) for a, f in facts.functions.items()}
