"""Which card of a host lends a virtual function to the guest that is measured, or why none does. Pure.

A card's own switch carries frames between its physical function and its virtual ones, so that the road from the host to
the guest needs no second machine. The two get addresses of a network of their own (RFC 3927: no router passes them on).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Final

from vmkit.device.facts import DeviceFacts, Function
from vmkit.device.plan import stable_mac
from vmkit.device.usage import Kind, Usage

PREFIX: Final = 30
"""Length of the network between the physical function and the guest: two addresses."""
_THIRD: Final = tuple(n for n in range(1, 255) if n != 169)
"""Third bytes of 169.254.0.0/16 that are free to use (RFC 3927); clouds have their metadata in 169.254.169.0/24."""


@dataclass(frozen=True, slots=True)
class Card:
    """A physical function, one of whose virtual functions the guest gets.

    Attributes:
        net: its network interface.
        address: its PCI address.
        make: it has no virtual function so far, and gets one for the time of the measurement.
        host, guest: IPv4 addresses of both ends.
        mac: of the guest's end.
    """

    net: str
    address: str
    make: bool
    host: str
    guest: str
    mac: str


def find_card(facts: DeviceFacts, uses: Mapping[str, Usage], networks: Iterable[IPv4Network]) -> Card | str:
    """The card that is taken, or why there is none. One with a free virtual function comes before one without any.

    Args:
        facts: the host's functions.
        uses: who uses each.
        networks: that the host has routes to.
    """
    cards = [f for f in facts.physical() if f.kind == "network"]
    found, reasons = [], []
    for function in cards:
        answer = _usable(facts, uses, function)
        if isinstance(answer, str):
            reasons.append(answer)
        else:
            found.append((answer, function))
    if not found:
        return "; ".join(reasons) or "no network card here has virtual functions (SR-IOV)"
    make, function = min(found, key=lambda pair: (pair[0], pair[1].address))
    # By machine and boot: two hosts of one wire that measure at the same time are not to have the same addresses.
    seed = f"{facts.boot}/{function.address}"
    subnet = link_local(seed, networks)
    if subnet is None:
        return "every network of 169.254.0.0/16 is in use here"
    host, guest = (str(a) for a in subnet.hosts())
    return Card(function.nets[0], function.address, make, host, guest, stable_mac(seed, 0))


def link_local(seed: str, networks: Iterable[IPv4Network]) -> IPv4Network | None:
    """A network for two that no route leads to, the same for the same seed; None if there is none.

    A route to 169.254.0.0/16 as a whole does not count: many hosts have one, and a narrower one goes before it.
    """
    narrow = [n for n in networks if n.prefixlen > 16]
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    count = len(_THIRD) * 64
    for i in range(count):
        third, block = divmod((start + i) % count, 64)
        subnet = ipaddress.ip_network(f"169.254.{_THIRD[third]}.{4 * block}/{PREFIX}")
        if isinstance(subnet, IPv4Network) and not any(subnet.overlaps(n) for n in narrow):
            return subnet
    return None


def _usable(facts: DeviceFacts, uses: Mapping[str, Usage], function: Function) -> bool | str:
    """Whether a card would have to get its first virtual function; or why it cannot be used."""
    name = (*function.nets, function.address)[0]
    use = uses[function.address]
    if use.kind not in (Kind.FREE, Kind.HOST):
        return f"{name} is in use: {use.text}"
    if not function.nets:
        return f"{name} has no network interface on this host"
    # An address alone is no reason: the card carries one more for a while. The way out is no place for samples.
    if ways := [why for why in function.needed if not why.startswith("address ")]:
        return f"the host itself needs {name}: {'; '.join(ways)}"
    if name not in facts.up:
        return f"{name} is down, or has no cable: ip link set {name} up"
    if function.group is None:
        return f"no IOMMU is in use, so that no function of {name} can be given to a guest: vmkit doctor says more"
    if function.vfs:
        free = [v for v in function.vfs if v in uses and uses[v].kind is Kind.FREE and _alone(facts, v)]
        return False if free else f"none of the {len(function.vfs)} virtual functions of {name} is free"
    if use.kind is not Kind.FREE:
        return (
            f"{name} has no virtual functions, and making one interrupts it while the host uses it "
            f"({use.text.removeprefix('host: ')}): vmkit sriov set {name} 1"
        )
    return True


def _alone(facts: DeviceFacts, address: str) -> bool:
    group = facts.functions[address].group
    return group is not None and len(facts.group(group)) == 1
