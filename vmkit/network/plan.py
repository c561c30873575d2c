"""From a spec and facts to a network: what is decided, what is done, and what a change of it takes. Pure."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Final

from vmkit.errors import ConflictError, NotFoundError, RefusedError, UnsupportedError
from vmkit.network.design import NetworkDesign
from vmkit.network.facts import HostNetworks, Reserved
from vmkit.network.spec import Mode, NetworkSpec, Reservation, dhcp_range, gateway_of, parse_subnet
from vmkit.plan import Choice, Plan, Rejected, Step

ASKED: Final = "asked for"


class Effect(enum.Enum):
    """What it takes to change a field of a network that exists."""

    LIVE = "live"
    RECREATE = "re-creation"


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that differs between what a network was made from and what is wanted now."""

    field: str
    before: Any
    after: Any
    effect: Effect


def decide(spec: NetworkSpec, facts: HostNetworks) -> tuple[NetworkDesign, Plan]:
    """Decide how to make the network.

    Raises:
        ConflictError: name, bridge or subnet are taken. NotFoundError: a port is not there.
        RefusedError: a port is in use by the host, or no subnet is free.
        UnsupportedError: ports on another machine.
    """
    if spec.name in facts.networks:
        raise ConflictError(
            f"there is a network named '{spec.name}' on {facts.uri} already",
            hint=f"take another name, or delete it first: vmkit network delete {spec.name}",
        )
    choices: list[Choice] = []
    design = _bridge(spec, facts, choices) if spec.mode is Mode.BRIDGE else _own(spec, facts, choices)
    return design, Plan(f"network {spec.name} on {facts.uri}", tuple(choices), _steps(design), _warnings(design))


def _own(spec: NetworkSpec, facts: HostNetworks, choices: list[Choice]) -> NetworkDesign:
    """A network with addresses of its own: NAT or isolated."""
    if spec.bridge is not None and spec.bridge in (facts.links or {}):
        raise ConflictError(
            f"bridge: the host has an interface {spec.bridge}",
            hint="another name; mode: bridge joins a bridge that is there",
        )
    nat = spec.mode is Mode.NAT
    why = (
        "VMs reach each other, the host, and what is behind it under the host's address; nobody reaches them from there"
        if nat
        else "VMs reach each other and the host, and nothing else"
    )
    other = Rejected("isolated", "VMs would not get out") if nat else Rejected("nat", "VMs would get out")
    bridge = Rejected("bridge", "VMs would be in the host's own network, where somebody else hands out addresses")
    choices.append(Choice("mode", spec.mode.value, why, (other, bridge)))
    subnet, reason = _subnet(spec, facts)
    choices.append(Choice("subnet", str(subnet), reason))
    dhcp = dhcp_range(spec.dhcp, subnet)
    shown = f"{dhcp[0]} to {dhcp[1]}" if dhcp else "none"
    reason = "the upper half: the lower one is free for fixed addresses" if spec.dhcp == "auto" else ASKED
    choices.append(Choice("dhcp", shown, reason))
    if spec.domain_name:
        names = f"VMs find each other by name, as in web1 or web1.{spec.domain_name}"
        choices.append(Choice("domain", spec.domain_name, names))
    return NetworkDesign(
        name=spec.name,
        forward="nat" if nat else "",
        bridge=spec.bridge,
        subnet=subnet,
        gateway=str(gateway_of(subnet)),
        dhcp=(str(dhcp[0]), str(dhcp[1])) if dhcp else None,
        domain=spec.domain_name,
        reserved=tuple(reserved_of(r) for r in spec.reservations),
        autostart=spec.autostart,
    )


def reserved_of(reservation: Reservation) -> Reserved:
    """A reservation as libvirt keeps it."""
    return Reserved(reservation.mac, reservation.address, reservation.name)


def _subnet(spec: NetworkSpec, facts: HostNetworks) -> tuple[IPv4Network, str]:
    known = {n.subnet: n.name for n in facts.networks.values() if n.subnet}
    if spec.subnet != "auto":
        subnet = parse_subnet(spec.subnet)
        for other, name in known.items():
            if subnet.overlaps(other):
                raise ConflictError(
                    f"subnet: {subnet} overlaps {other} of the network '{name}'", hint="another one, or subnet: auto"
                )
        for route in facts.routes:
            if subnet.overlaps(route) and route.prefixlen:
                raise ConflictError(
                    f"subnet: {subnet} overlaps {route}, which the host has a route to",
                    hint="another one, or subnet: auto; ip route shows the host's",
                )
        return subnet, ASKED
    taken = [*known, *facts.routes]
    for candidate in candidates(spec.name):
        if not any(candidate.overlaps(t) for t in taken):
            return candidate, "no network or route of the host overlaps it"
    raise RefusedError("no subnet is free: every candidate overlaps a route of the host", hint="name one with subnet:")


def candidates(name: str) -> Iterator[IPv4Network]:
    """Subnets for a network, beginning at a place that its name settles, so that two hosts take different ones.

    The upper half of 192.168/16: routers of homes and offices hand out the lower one; then some of 10/8.
    """
    found = [IPv4Network(f"192.168.{n}.0/24") for n in range(123, 255)]
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % len(found)
    yield from found[start:] + found[:start]
    yield from (IPv4Network(f"10.{n}.77.0/24") for n in range(123, 255))


def _bridge(spec: NetworkSpec, facts: HostNetworks, choices: list[Choice]) -> NetworkDesign:
    """A network on a bridge: one of the host's, or one that is made."""
    name = spec.bridge or spec.name[:15].rstrip(".-_")
    link = (facts.links or {}).get(name)
    if owner := next((n.name for n in facts.networks.values() if n.bridge == name and n.mode != "bridge"), None):
        raise ConflictError(f"bridge: {name} is that of the network '{owner}'", hint=f"put VMs on {owner}")
    unknown = facts.links is None and spec.bridge is not None and facts.driver == "QEMU"
    if link is not None or unknown:
        if link is not None and link.kind != "bridge":
            what = link.kind or "network interface"
            raise ConflictError(f"bridge: {name} is a {what} of the host", hint="bridge: names another one")
        if spec.ports:
            raise RefusedError(
                f"ports: the bridge {name} is there, and its ports are whoever's who made it",
                hint=f"ip link set {spec.ports[0]} master {name}",
            )
        there = "is there" if link else "is asked for; whether it is there cannot be seen from here"
        choices.append(Choice("mode", "bridge", f"VMs are where the bridge {name} leads"))
        choices.append(Choice("bridge", name, there))
        return NetworkDesign(spec.name, "bridge", name, autostart=spec.autostart)
    for port in spec.ports:
        _check_port(port, facts)
    choices.append(Choice("mode", "bridge", "VMs are on one wire, with whatever is on the bridge's ports"))
    choices.append(Choice("bridge", name, "the host has none of that name: libvirt makes it at each start"))
    if spec.ports:
        choices.append(Choice("ports", ", ".join(spec.ports), ASKED))
    return NetworkDesign(spec.name, "open", name, ports=spec.ports, autostart=spec.autostart)


def _check_port(port: str, facts: HostNetworks) -> None:
    if not facts.local:
        raise UnsupportedError(
            "ports: interfaces of another machine are not touched",
            hint="make the bridge there, then name it: ip link add br1 type bridge",
        )
    link = (facts.links or {}).get(port)
    if link is None:
        raise NotFoundError(f"ports: the host has no interface {port}", hint="ip link shows them")
    if link.master:
        raise ConflictError(f"ports: {port} is a port of {link.master}", hint=f"bridge: {link.master} joins that one")
    if link.addresses or port in facts.default or port == "lo":
        used = f"has the address {link.addresses[0]}" if link.addresses else "leads the default route"
        raise RefusedError(
            f"ports: {port} {used}: as a port it would cut the host off",
            hint="give the bridge that address by the host's own means, then name it with bridge:",
        )


def _steps(design: NetworkDesign) -> tuple[Step, ...]:
    steps = [Step("define", f"network {design.name}", "so that it survives a restart of the host")]
    made = design.forward != "bridge"
    steps.append(Step("start", f"network {design.name}", "makes the bridge and starts its servers" if made else ""))
    steps += [Step("join", f"{p} to the bridge", "a port") for p in design.ports]
    if design.autostart:
        steps.append(Step("mark", f"network {design.name} for autostart", "start with the host"))
    return tuple(steps)


def _warnings(design: NetworkDesign) -> tuple[str, ...]:
    if not design.ports:
        return ()
    return (
        f"after a restart of the host the bridge is made again without its ports: vmkit network start {design.name}",
    )


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    """What differs between two specs as `spec.dump` gives them, by field. Names are not compared."""
    live = {"reservations", "autostart"}
    return tuple(
        Difference(f, before.get(f), after.get(f), Effect.LIVE if f in live else Effect.RECREATE)
        for f in sorted({*before, *after} - {"name"})
        if before.get(f) != after.get(f)
    )
