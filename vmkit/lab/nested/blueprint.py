"""What a lab of nested hosts is made of: names, addresses, identities. Pure."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from vmkit.lab.nested.options import HostOptions, check_hosts

SUBNET: Final = "192.168.77.0/24"
"""Of hosts and guests. No packet of it leaves the lab, so it is the same in every one."""
PREFIX: Final = 24
DHCP: Final = ("192.168.77.100", "192.168.77.199")
STATIC: Final = ("192.168.77.200", "192.168.77.250")
DOMAIN: Final = "lab"
_FIRST: Final = 11


@dataclass(frozen=True, slots=True)
class HostPlan:
    """One host.

    Attributes:
        name: 'h1'.
        address: on the lab's network.
        mac: of its bridge.
        uuid: that its libvirt gives as its own.
        machine_id: content of its /etc/machine-id.
        port: of this machine's loopback that leads to its ssh server.
    """

    name: str
    address: str
    mac: str
    uuid: str
    machine_id: str
    port: int


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A lab of nested hosts before anything of it exists.

    Attributes:
        options: hardware of each host.
        accel: 'kvm' or 'tcg', and why.
        hosts: at least one.
        uses: names in the cache of what the hosts stand on.
    """

    options: HostOptions
    accel: str
    reason: str
    hosts: tuple[HostPlan, ...]
    uses: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "options": self.options.plain(),
            "accel": self.accel,
            "reason": self.reason,
            "hosts": [asdict(h) for h in self.hosts],
            "uses": list(self.uses),
        }

    @classmethod
    def parse(cls, plain: dict[str, Any], options: type[HostOptions]) -> Blueprint:
        """Read what `plain` gave of a lab whose hosts have options of this class."""
        return cls(
            options.parse(plain["options"]),
            plain["accel"],
            plain["reason"],
            tuple(HostPlan(**h) for h in plain["hosts"]),
            tuple(plain["uses"]),
        )


def blueprint(
    kind: str, name: str, options: HostOptions, accel: tuple[str, str], ports: Sequence[int], machine_id: str
) -> Blueprint:
    """Settle everything of the lab `name`. The same input gives the same lab.

    Args:
        kind: of its hosts.
        name: the lab's name.
        options: hardware of each host.
        accel: 'kvm' or 'tcg', and why.
        ports: for ssh; one a host, which says how many there are.
        machine_id: identity of this machine, so that labs on two machines do not share uuids.
    """
    check_hosts(len(ports))

    def host(n: int, port: int) -> HostPlan:
        seed = f"{machine_id}/{kind}/{name}/h{n}"
        own = uuid.uuid5(uuid.NAMESPACE_URL, f"vmkit:lab/{seed}")
        digest = hashlib.sha256(seed.encode()).digest()
        mac = "02:" + ":".join(f"{b:02x}" for b in digest[:5])
        return HostPlan(
            name=f"h{n}",
            address=f"192.168.77.{_FIRST + n - 1}",
            mac=mac,
            uuid=str(own),
            machine_id=digest[5:21].hex(),
            port=port,
        )

    return Blueprint(options, *accel, tuple(host(n, port) for n, port in enumerate(ports, 1)))
