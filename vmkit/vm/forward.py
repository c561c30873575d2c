"""Port forwards of a NIC on a user network: a port of the host that leads to one of the guest. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from vmkit.errors import SpecError
from vmkit.values import quoted

MAX_CARDS: Final = 4
"""NICs of a VM that forward ports: those that have a slot of their own (vmkit.vm.xml_forward)."""
_FORWARD: Final = re.compile(r"(?:(tcp|udp):)?(?:([0-9.]+):)?(\d{1,5}):(\d{1,5})\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Forward:
    """`protocol` ('tcp' or 'udp') to `host_port` of the host's `address` goes to `guest_port` of the guest."""

    protocol: str
    address: str
    host_port: int
    guest_port: int

    def __str__(self) -> str:
        return f"{self.protocol}:{self.address}:{self.host_port}:{self.guest_port}"

    @property
    def qemu(self) -> str:
        """As the value of QEMU's hostfwd= (qemu(1), -netdev user)."""
        return f"{self.protocol}:{self.address}:{self.host_port}-:{self.guest_port}"


def parse(text: str, path: str = "forward") -> Forward:
    """Read `2222:22`, `udp:5353:53` or `tcp:0.0.0.0:8080:80`. Without an address only the host itself gets in.

    Raises:
        SpecError: it is not written like that, or no port.
    """
    match = _FORWARD.match(text)
    hint = "[tcp|udp:][ADDRESS:]HOST_PORT:GUEST_PORT, like 2222:22"
    if not match:
        raise SpecError(f"{quoted(text)} is not a port forward", path=path, hint=hint)
    try:
        address = str(ipaddress.IPv4Address(match[2] or "127.0.0.1"))
    except ValueError as e:
        raise SpecError(str(e), path=path, hint=hint) from e
    ports = int(match[3]), int(match[4])
    for port in ports:
        if not 0 < port < 65536:
            raise SpecError(f"{port} is not a port", path=path, hint="1 to 65535")
    return Forward(match[1] or "tcp", address, *ports)


def of_netdev(value: str) -> tuple[Forward, ...]:
    """The forwards in the value of QEMU's -netdev, as `Forward.qemu` wrote them."""
    found = re.findall(r"hostfwd=(tcp|udp):([0-9.]+):(\d+)-:(\d+)", value)
    return tuple(Forward(protocol, address, int(host), int(inner)) for protocol, address, host, inner in found)
