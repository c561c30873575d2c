"""The addresses that networks keep for a VM's cards: made with the VM, and gone with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from vmkit.errors import NotFoundError, VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.network import Network, network, networks
from vmkit.network import facts as network_facts
from vmkit.network.dhcp import give_back
from vmkit.network.facts import NetworkFacts, Reserved
from vmkit.network.reserve import release, reserve
from vmkit.vm.describe import describe, paired
from vmkit.vm.metadata import NAMESPACE, Remembered, remembered_in

if TYPE_CHECKING:
    from vmkit.vm.design import Design


@dataclass(frozen=True, slots=True)
class Kept:
    """A reservation and the network that it is in."""

    network: str
    reserved: Reserved


def facts(host: Host) -> dict[str, NetworkFacts]:
    """Every network of a host that hands out addresses, with those that it has lent."""
    return {n.name: network_facts.with_leases(n) for n in networks(host)}


def of_design(design: Design) -> tuple[Kept, ...]:
    """What is to be reserved for a VM. The name is resolvable where it is one that DNS knows."""
    return tuple(
        Kept(nic.source, Reserved(nic.mac or "", nic.reserve, dns_name(design.name)))
        for nic in design.nics
        if nic.reserve
    )


def dns_name(vm: str) -> str:
    """The name of a VM as a DNS label; '' if it is none."""
    plain = vm.replace("-", "")
    return vm if plain.isascii() and plain.isalnum() and not vm.endswith("-") else ""


def make(host: Host, kept: Iterable[Kept]) -> None:
    """Reserve.

    Raises:
        ConflictError: somebody else has an address meanwhile. NotFoundError: the network is gone.
    """
    for one in kept:
        reserve(network(host, one.network), one.reserved)


def plain(kept: Sequence[Kept]) -> list[dict[str, Any]]:
    """For a journal."""
    return [asdict(k) for k in kept]


def undo(host: Host, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Take back what a journal says; returns what was there."""
    gone = []
    for entry in entries:
        reserved = Reserved(**entry["reserved"])
        try:
            if release(network(host, entry["network"]), reserved):
                gone.append(f"reservation {reserved.address}")
        except NotFoundError:
            continue
    return gone


def sync(domain: Domain) -> None:
    """Have the networks keep what the VM's spec says now: after a change of its NICs, addresses or name.

    Raises:
        ConflictError: an address is kept for somebody else.
    """
    nics = describe(domain.xml(inactive=True)).nics
    memory = _remembered(domain)
    cards = paired(memory.spec.get("nics", []) if memory else [], nics)
    if not any(_fixed(card) for card, _ in cards):
        return
    known = {n.name: n for n in networks(domain.host)}
    for card, nic in cards:
        found = known.get(nic.network.removeprefix("network:"))
        if not (found and nic.mac and _fixed(card)):
            continue
        there = network_facts.of(found)
        address = card["address"].partition("/")[0]
        if not there.dhcp or there.subnet is None or IPv4Address(address) not in there.subnet:
            continue
        wanted = Reserved(nic.mac.lower(), address, dns_name(domain.name))
        for old in there.reserved:
            if old.mac == wanted.mac and old != wanted:
                release(found, old)
        reserve(found, wanted)


def _fixed(card: Mapping[str, Any]) -> bool:
    address = card.get("address", "dhcp")
    return address not in ("dhcp", "none") and ":" not in address


def _remembered(domain: Domain) -> Remembered | None:
    element = domain.metadata(NAMESPACE)
    return remembered_in(element) if element else None


class Holdings:
    """What a VM holds in the networks of its host. Made while the VM is there; `release` is for when it is gone."""

    def __init__(self, domain: Domain) -> None:
        self.host = domain.host
        nics = describe(domain.xml()).nics
        self._macs = {n.mac.lower() for n in nics if n.mac}
        names = {n.network.removeprefix("network:") for n in nics if n.network.startswith("network:")}
        memory = _remembered(domain)
        asked: list[dict[str, Any]] = memory.spec.get("nics", []) if memory else []
        self._addresses = {n.get("address", "").partition("/")[0] for n in asked}
        self._name = domain.name
        self._networks = [n for n in networks(self.host) if n.name in names] if names else []

    def release(self) -> tuple[str, ...]:
        """Take back its reservations, and give back what DHCP has lent to it; returns what was done.

        What cannot be given back runs out by itself: a lease after an hour.
        """
        done: list[str] = []
        for found in self._networks:
            try:
                done += self._release(found)
            except VmkitError:
                continue
        return tuple(done)

    def _release(self, found: Network) -> list[str]:
        known = network_facts.of(found)
        done = []
        # Leases first: a server that reads its reservations anew has no ear for what comes meanwhile.
        leases = [lease for lease in found.leases() if lease.mac in self._macs] if found.active else []
        if leases and give_back(self.host, known, leases):
            done += [f"lease {lease.address}" for lease in leases]
        for reserved in known.reserved:
            ours = reserved.name == self._name or reserved.address in self._addresses
            if reserved.mac in self._macs and ours and release(found, reserved):
                done.append(f"reservation {reserved.address}")
        return done
