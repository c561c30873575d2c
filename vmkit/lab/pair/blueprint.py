"""What a pair lab is made of: subnet, addresses, names and identities. Pure: facts in, blueprint out."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from vmkit.errors import RefusedError, SpecError

MIN_HOSTS: Final = 2
MAX_HOSTS: Final = 8
PREFIX: Final = 24
# Last octets in the lab's /24.
_ROOT, _SWITCH, _FIRST_HOST = 1, 2, 11
_DHCP, _STATIC = (100, 199), (200, 250)


@dataclass(frozen=True, slots=True)
class HostPlan:
    """One host: its name, address, the MAC of its bridge, and the uuid that its libvirt gives as its own."""

    name: str
    address: str
    mac: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A pair lab before anything of it exists.

    Attributes:
        subnet: IPv4 /24 that hosts and guests share.
        link: interface in the machine's own network namespace; named for the subnet, so that two labs cannot take the
            same one at the same time.
        gateway: its address.
        switch: address of the DHCP and DNS server.
        switch_mac: MAC of the switch's bridge.
        dhcp, static: first and last address that guests get by DHCP, and that are free for guests with fixed addresses.
    """

    subnet: IPv4Network
    link: str
    gateway: str
    switch: str
    switch_mac: str
    dhcp: tuple[str, str]
    static: tuple[str, str]
    hosts: tuple[HostPlan, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "subnet": str(self.subnet),
            "dhcp": list(self.dhcp),
            "static": list(self.static),
            "hosts": [asdict(h) for h in self.hosts],
        }

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> Blueprint:
        """Read what `plain` gave."""
        return cls(
            subnet=IPv4Network(plain["subnet"]),
            link=plain["link"],
            gateway=plain["gateway"],
            switch=plain["switch"],
            switch_mac=plain["switch_mac"],
            dhcp=(plain["dhcp"][0], plain["dhcp"][1]),
            static=(plain["static"][0], plain["static"][1]),
            hosts=tuple(HostPlan(**h) for h in plain["hosts"]),
        )


def subnets(name: str) -> Iterator[IPv4Network]:
    """Subnets that a lab may use, in the order in which they are tried.

    Home and office routers hand out the low networks of 192.168/16 and virtual ones start at .121, so the search
    begins in the middle of the upper half, at a place that the lab's name settles; 10/8 comes last, since a VPN often
    routes all of it.
    """
    upper = [IPv4Network(f"192.168.{n}.0/{PREFIX}") for n in range(140, 250)]
    ten = [IPv4Network(f"10.{n}.77.0/{PREFIX}") for n in range(140, 250)]
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % len(upper)
    yield from upper[start:] + upper[:start]
    yield from ten


def free_subnets(name: str, taken: Iterable[IPv4Network]) -> list[IPv4Network]:
    """Those of `subnets` that overlap nothing that this machine has a route to.

    Raises:
        RefusedError: there is none.
    """
    used = list(taken)
    free = [s for s in subnets(name) if not any(s.overlaps(u) for u in used)]
    if not free:
        raise RefusedError("no subnet is free for a lab: every candidate overlaps a route", hint="see: ip route")
    return free


def check_hosts(count: int) -> int:
    """Return a number of hosts that a pair lab can have.

    Raises:
        SpecError: it cannot.
    """
    if not MIN_HOSTS <= count <= MAX_HOSTS:
        raise SpecError(f"{count} is not between {MIN_HOSTS} and {MAX_HOSTS}", path="--hosts")
    return count


def blueprint(name: str, hosts: int, subnet: IPv4Network, machine_id: str) -> Blueprint:
    """Settle everything of the lab `name` on a subnet. The same input gives the same lab, identities included.

    Args:
        name: the lab's name.
        hosts: how many.
        subnet: a /24.
        machine_id: identity of this machine, so that labs on two machines do not share host uuids.
    """

    def at(octet: int) -> str:
        return str(IPv4Address(int(subnet.network_address) + octet))

    plans = tuple(
        HostPlan(
            name=f"h{n}",
            address=at(_FIRST_HOST + n - 1),
            mac=mac(f"{machine_id}/{name}/h{n}"),
            uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"vmkit:lab/{machine_id}/{name}/h{n}")),
        )
        for n in range(1, check_hosts(hosts) + 1)
    )
    return Blueprint(
        subnet=subnet,
        link=link_name(subnet),
        gateway=at(_ROOT),
        switch=at(_SWITCH),
        switch_mac=mac(f"{machine_id}/{name}/switch"),
        dhcp=(at(_DHCP[0]), at(_DHCP[1])),
        static=(at(_STATIC[0]), at(_STATIC[1])),
        hosts=plans,
    )


def link_name(subnet: IPv4Network) -> str:
    """Name of the interface for a subnet: 'vmk-192-168-150', which has the 15 characters that Linux allows."""
    return "vmk-" + "-".join(str(subnet.network_address).split(".")[:3])


def mac(seed: str) -> str:
    """A unicast MAC address of the locally administered kind (IEEE 802-2014, 8.4), settled by `seed`."""
    raw = hashlib.sha256(seed.encode()).digest()[:5]
    return "02:" + ":".join(f"{b:02x}" for b in raw)
