"""What the networks of a host are, and what a new one has to keep clear of. Only observed here, never judged."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

from vmkit.errors import VmkitError
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.network import Lease, Network, networks

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMESPACE: Final = "urn:vmkit:network:1"
"""Namespace of the element in which vmkit keeps the spec of a network that it made."""
_DEADLINE: Final = 30.0


@dataclass(frozen=True, slots=True)
class Reserved:
    """An address that DHCP keeps for a MAC address, and the name that goes with it ('' for none)."""

    mac: str
    address: str
    name: str


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """A network of a host, whoever made it.

    Attributes:
        mode: 'nat', 'isolated', 'bridge', or libvirt's word for another way of forwarding: 'route', 'open', ...
        bridge: the bridge device; None for networks without one.
        subnet: its IPv4 network; None if it has no address of its own.
        gateway: the host's address in it.
        dhcp: first and last address that DHCP hands out; None without DHCP.
        domain: DNS domain of its VMs; '' for none.
        reserved: fixed addresses.
        names: further names that its DNS server knows, by address.
        spec: what vmkit was asked for; None for networks that another tool made.
        lent: MAC addresses by address that DHCP has lent to them, where that was asked for.
        owns_bridge: whether the bridge comes and goes with the network.
    """

    name: str
    uuid: str
    mode: str
    bridge: str | None = None
    subnet: IPv4Network | None = None
    gateway: str | None = None
    dhcp: tuple[str, str] | None = None
    domain: str = ""
    reserved: tuple[Reserved, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spec: Mapping[str, Any] | None = None
    owns_bridge: bool = True
    lent: Mapping[str, str] = field(default_factory=dict)

    @property
    def managed(self) -> bool:
        """Whether vmkit made it."""
        return self.spec is not None


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """A network interface of a host: what it is ('bridge', 'veth', ''), its bridge, and its addresses."""

    name: str
    kind: str = ""
    master: str | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostNetworks:
    """What a new network is planned against.

    Attributes:
        networks: those that are defined, by name.
        routes: IPv4 networks that the host has a route to; default routes left out.
        default: interfaces that default routes lead through.
        links: interfaces by name; None where they cannot be looked at.
        local: whether the host is this machine.
    """

    uri: str
    driver: str
    networks: Mapping[str, NetworkFacts]
    routes: tuple[IPv4Network, ...] = ()
    default: frozenset[str] = frozenset()
    links: Mapping[str, LinkFacts] | None = None
    local: bool = True


@dataclass(frozen=True, slots=True)
class User:
    """A NIC of a domain that is on a network: `running` is about the domain."""

    vm: str
    mac: str
    running: bool


def read(xml: str) -> NetworkFacts:
    """What a network's XML says (https://libvirt.org/formatnetwork.html)."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    forward, bridge, domain = root.find("forward"), root.find("bridge"), root.find("domain")
    ip = next((i for i in root.iterfind("ip") if i.get("family", "ipv4") == "ipv4"), None)
    dhcp = ip.find("dhcp/range") if ip is not None else None
    spec = _spec(root)
    mode = "isolated" if forward is None else forward.get("mode", "nat")
    if mode == "open" and spec is not None:
        mode = "bridge"  # how vmkit has libvirt make a bridge
    return NetworkFacts(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        mode=mode,
        bridge=bridge.get("name") if bridge is not None else None,
        subnet=_subnet(ip) if ip is not None else None,
        gateway=ip.get("address") if ip is not None else None,
        dhcp=(dhcp.get("start", ""), dhcp.get("end", "")) if dhcp is not None else None,
        domain=domain.get("name", "") if domain is not None else "",
        reserved=tuple(
            Reserved(h.get("mac", "").lower(), h.get("ip", ""), h.get("name", ""))
            for h in (ip.iterfind("dhcp/host") if ip is not None else ())
        ),
        names={h.get("ip", ""): tuple(n.text or "" for n in h.iterfind("hostname")) for h in root.iterfind("dns/host")},
        spec=spec,
        owns_bridge=forward is None or forward.get("mode") in ("nat", "route", "open"),
    )


def _subnet(ip: ET.Element) -> IPv4Network | None:
    size = ip.get("prefix") or ip.get("netmask")
    try:
        found = ipaddress.ip_network(f"{ip.get('address')}/{size or 24}", strict=False)
    except ValueError:
        return None
    return found if isinstance(found, IPv4Network) else None


def _spec(root: ET.Element) -> dict[str, Any] | None:
    element = root.find(f"metadata/{{{NAMESPACE}}}network")
    if element is None:
        return None
    try:
        spec = json.loads(element.text or "")
    except ValueError:
        return None
    return spec if isinstance(spec, dict) else None


def of(network: Network) -> NetworkFacts:
    """What a network is."""
    return read(network.definition())


def with_leases(network: Network) -> NetworkFacts:
    """What a network is, and what its DHCP server has lent."""
    leases = network.leases() if network.active else []
    return replace(of(network), lent={lease.address: lease.mac for lease in leases})


def gather(host: Host) -> HostNetworks:
    """Look at the host. What cannot be looked at is unknown."""
    known = {n.name: of(n) for n in networks(host)}
    if host.driver != "QEMU":
        return HostNetworks(host.uri, host.driver, known, local=host.local)
    try:
        links, routes, default = _look(host)
    except VmkitError:
        return HostNetworks(host.uri, host.driver, known, local=host.local)
    return HostNetworks(host.uri, host.driver, known, routes, default, links, host.local)


def _look(host: Host) -> tuple[dict[str, LinkFacts] | None, tuple[IPv4Network, ...], frozenset[str]]:
    from vmkit.system.shell import Shell

    script = "LC_ALL=C ip -j -d addr show; echo; echo ---; LC_ALL=C ip -j -4 route show table all\n"
    answer = Shell.of_uri(host.uri).run_script(script, timeout=_DEADLINE).stdout
    return read_links(*answer.partition("---")[::2])


def read_links(links: str, routes: str) -> tuple[dict[str, LinkFacts] | None, tuple[IPv4Network, ...], frozenset[str]]:
    """What `ip -j -d addr show` and `ip -j -4 route show table all` say: interfaces, routes, and ways out."""
    try:
        seen, ways = json.loads(links), json.loads(routes)
    except ValueError:
        return None, (), frozenset()
    found = {
        link["ifname"]: LinkFacts(
            name=link["ifname"],
            kind=link.get("linkinfo", {}).get("info_kind", ""),
            master=link.get("master"),
            # What the kernel gives to every interface by itself does not count.
            addresses=tuple(a["local"] for a in link.get("addr_info", ()) if a.get("scope") != "link"),
        )
        for link in seen
        if "ifname" in link
    }
    default = frozenset(w["dev"] for w in ways if w.get("dst") == "default" and "dev" in w)
    return found, tuple(sorted(set(_destinations(ways)))), default


def _destinations(ways: Iterable[dict[str, Any]]) -> Iterable[IPv4Network]:
    for way in ways:
        try:
            network = IPv4Network(way.get("dst", ""), strict=False)
        except ValueError:  # 'default'
            continue
        if not network.is_multicast and network.network_address != IPv4Address("255.255.255.255"):
            yield network


def users(host: Host, facts: NetworkFacts) -> list[User]:
    """NICs of the host's domains that are on a network, or straight on its bridge."""
    found = []
    for domain in host.domains():
        running = domain.state().active
        root = ET.fromstring(domain.xml())  # noqa: S314 - libvirt's own answer
        for nic in root.iterfind("devices/interface"):
            source, mac = nic.find("source"), nic.find("mac")
            if source is None:
                continue
            if source.get("network") == facts.name or (facts.bridge and source.get("bridge") == facts.bridge):
                found.append(User(domain.name, mac.get("address", "") if mac is not None else "", running))
    return found


def lease_of(leases: Iterable[Lease], address: str) -> Lease | None:
    """Who was given an address; None for nobody."""
    return next((lease for lease in leases if lease.address == address), None)
