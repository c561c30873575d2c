"""The IP addresses of a VM: what DHCP server, guest agent, the host's ARP table and reservations say, merged."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmkit.errors import VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.network import heard_of, networks
from vmkit.network import facts as network_facts
from vmkit.vm.describe import Nic, describe, paired
from vmkit.vm.metadata import NAMESPACE, remembered_in

AGENT_PATIENCE = 2
"""Seconds that the guest agent has for an answer: a guest that hangs must not hold up whoever asks."""


class Source(enum.Enum):
    """Who says that a VM has an address. In the order in which they are believed."""

    AGENT = "agent"
    LEASE = "lease"
    ARP = "arp"
    RESERVATION = "reservation"
    SPEC = "spec"


@dataclass(frozen=True, slots=True)
class Claim:
    """What one source says: this NIC has this address."""

    source: Source
    mac: str
    ip: str


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a VM.

    Attributes:
        ip: without a prefix.
        mac: of the NIC.
        network: what the NIC is on: 'network:NAME', 'bridge:NAME', 'user'; '' for an interface that the guest made
            itself.
        sources: who says so.
        doubtful: the guest agent tells other addresses of that NIC: a lease or an ARP entry that is out of date.
    """

    ip: str
    mac: str
    network: str
    sources: tuple[Source, ...]
    doubtful: bool = False

    @property
    def reachable(self) -> bool:
        """Whether the host can send to it. An address on a user network is one of the guest's own world."""
        return self.network not in ("user", "")


@dataclass(frozen=True, slots=True)
class Found:
    """Every address of a VM, the best first; and for each source that knows none, why."""

    addresses: tuple[Address, ...]
    silent: Mapping[Source, str]

    @property
    def best(self) -> Address | None:
        """The one to use; None where none is known."""
        return next((a for a in self.addresses if not a.doubtful and a.network), None)

    @property
    def good(self) -> tuple[str, ...]:
        """Those of the VM's NICs that are not out of date."""
        return tuple(a.ip for a in self.addresses if a.network and not a.doubtful)


def merge(claims: Iterable[Claim], nics: Sequence[Nic], *, agent: bool) -> tuple[Address, ...]:
    """One entry for each address, the best first: by who says so, IPv4 before IPv6, by the order of the NICs.

    Addresses of interfaces that the VM was not given (a container bridge in the guest, say) come last. Loopback and
    link-local ones are left out.

    Args:
        claims: what each source says.
        nics: the VM's.
        agent: whether the agent answered; it knows best.
    """
    order = {nic.mac.lower(): i for i, nic in reversed(list(enumerate(nics))) if nic.mac}
    unknown = any(not nic.mac for nic in nics)
    said: dict[tuple[str, str], list[Source]] = {}
    for claim in claims:
        at = ipaddress.ip_address(claim.ip)
        if not (at.is_loopback or at.is_link_local or at.is_unspecified):
            sources = said.setdefault((claim.mac, claim.ip), [])
            sources += [] if claim.source in sources else [claim.source]
    told = {mac for (mac, _), sources in said.items() if Source.AGENT in sources}
    trust = list(Source)
    found = []
    for (mac, ip), sources in said.items():
        network = nics[order[mac]].network if mac in order else "device" if unknown else ""
        doubtful = agent and Source.AGENT not in sources and mac in told
        ranked = tuple(sorted(sources, key=trust.index))
        found.append(Address(ip, mac, network, ranked, doubtful))
    return tuple(
        sorted(
            found,
            key=lambda a: (
                not a.network,
                a.doubtful,
                trust.index(a.sources[0]),
                ":" in a.ip,
                order.get(a.mac, len(nics)),
            ),
        )
    )


class Finder:
    """Asks every source about a VM. What does not change while it runs is read once.

    Attributes:
        nics: the VM's.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.nics = describe(domain.xml()).nics
        self._expected = [*_reserved(domain, self.nics), *_asked_for(domain, self.nics)]
        self._leasing = {n.network.removeprefix("network:") for n in self.nics if n.network.startswith("network:")}

    def look(self) -> Found:
        """Ask now. No source can hold this up for longer than AGENT_PATIENCE, and none makes it fail."""
        claims = list(self._expected)
        silent: dict[Source, str] = {}
        answered = False
        try:
            claims += _of_agent(self.domain)
            answered = True
        except VmkitError as e:
            silent[Source.AGENT] = e.message
        macs = {n.mac.lower() for n in self.nics if n.mac}
        leases = [lease for lease in self._leases() if lease.mac in macs]
        claims += leases
        if not leases:
            where = f"of {', '.join(sorted(self._leasing))} " if self._leasing else ""
            silent[Source.LEASE] = f"libvirt's DHCP {where}has lent it nothing" if where else "no libvirt network"
        heard = [Claim(Source.ARP, mac, ip) for mac, ip in heard_of(self.domain)]
        claims += heard
        if not heard:
            silent[Source.ARP] = "the host has not heard from it"
        if not self._expected:
            silent[Source.RESERVATION] = "none"
        return Found(merge(claims, self.nics, agent=answered), silent)

    def _leases(self) -> list[Claim]:
        found = []
        for network in networks(self.domain.host) if self._leasing else ():
            if network.name in self._leasing:
                try:
                    leases = network.leases()
                except VmkitError:  # it is not active
                    continue
                found += [Claim(Source.LEASE, lease.mac, lease.address) for lease in leases]
        return found


def _of_agent(domain: Domain) -> list[Claim]:
    interfaces = domain.agent("guest-network-get-interfaces", timeout=AGENT_PATIENCE)
    return [
        Claim(Source.AGENT, interface.get("hardware-address", "").lower(), address["ip-address"])
        for interface in interfaces
        if interface.get("name") != "lo"
        for address in interface.get("ip-addresses") or ()
    ]


def _reserved(domain: Domain, nics: Sequence[Nic]) -> list[Claim]:
    wanted = {n.network.removeprefix("network:") for n in nics if n.network.startswith("network:")}
    macs = {n.mac.lower() for n in nics if n.mac}
    found = []
    for network in networks(domain.host) if wanted else ():
        if network.name in wanted:
            reserved = network_facts.of(network).reserved
            found += [Claim(Source.RESERVATION, r.mac, r.address) for r in reserved if r.mac in macs]
    return found


def _asked_for(domain: Domain, nics: Sequence[Nic]) -> list[Claim]:
    """Fixed addresses in the VM's spec."""
    element = domain.metadata(NAMESPACE)
    memory = remembered_in(element) if element else None
    asked: list[dict[str, Any]] = memory.spec.get("nics", []) if memory else []
    return [
        Claim(Source.SPEC, nic.mac.lower(), card["address"].partition("/")[0])
        for card, nic in paired(asked, nics)
        if nic.mac and card.get("address", "dhcp") not in ("dhcp", "none")
    ]
