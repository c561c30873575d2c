"""Changing a network that exists, to what its spec says now."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vmkit.errors import ConflictError
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.network import Network, define
from vmkit.network.design import NetworkDesign
from vmkit.network.facts import HostNetworks, NetworkFacts, Reserved, User
from vmkit.network.make import join
from vmkit.network.plan import Difference, Effect, decide, reserved_of
from vmkit.network.reserve import release, reserve
from vmkit.network.spec import NetworkSpec, dump
from vmkit.network.xml import network_xml, with_spec
from vmkit.system.interrupts import deferred
from vmkit.system.journal import journalled


def plan_change(
    spec: NetworkSpec,
    known: NetworkFacts,
    facts: HostNetworks,
    differences: tuple[Difference, ...],
    users: list[User],
) -> NetworkDesign | None:
    """What the network will be if it has to be made again; None if all of the change is done while it runs.

    Raises:
        ConflictError: VMs run on it, or have fixed addresses that would no longer be in it.
        otherwise as `plan.decide`.
    """
    if all(d.effect is Effect.LIVE for d in differences):
        return None
    if running := sorted({u.vm for u in users if u.running}):
        fields = ", ".join(d.field for d in differences if d.effect is Effect.RECREATE)
        raise ConflictError(
            f"the network '{spec.name}' has to be made again for {fields}, and VMs run on it: {', '.join(running)}",
            hint=f"vmkit stop {' '.join(running)}",
        )
    design, _ = decide(_settled(spec, known), _without(facts, known))
    kept = of_others(known)
    if lost := [r for r in kept if design.subnet is None or not _inside(r, design)]:
        raise ConflictError(
            f"VMs have fixed addresses in '{spec.name}' that would be outside of it: "
            + ", ".join(f"{r.name or r.mac} {r.address}" for r in lost),
            hint="delete those VMs first, or keep the subnet",
        )
    return replace(design, reserved=(*design.reserved, *(r for r in kept if r not in design.reserved)))


def change(
    host: Host,
    network: Network,
    spec: NetworkSpec,
    known: NetworkFacts,
    differences: tuple[Difference, ...],
    design: NetworkDesign | None,
) -> None:
    """Carry a change out.

    What is changed while the network runs is remembered last, so that a change that was cut off is seen and done again.
    """
    data = {"action": "change", "uri": host.uri, "uuid": network.uuid}
    with journalled("network", network.name, "change", **data), deferred():
        if design is not None:
            if network.active:
                network.stop()
            define(host, network_xml(design, dump(spec), network.uuid))
            network.start()
            join(network.name, design.bridge, design.ports)
            network.set_autostart(spec.autostart)
            return
        if any(d.field == "reservations" for d in differences):
            wanted = {reserved_of(r) for r in spec.reservations}
            for old in of_spec(known) - wanted:
                release(network, old)
            for new in sorted(wanted - set(known.reserved), key=lambda r: r.address):
                reserve(network, new)
        network.set_autostart(spec.autostart)
        remember(host, network, dump(spec))


def remember(host: Host, network: Network, spec: dict[str, Any]) -> None:
    """Keep a spec in the network's metadata."""
    define(host, with_spec(network.definition(), spec))


def of_spec(known: NetworkFacts) -> set[Reserved]:
    """The reservations that its spec asked for."""
    return {Reserved(r["mac"], r["address"], r["name"]) for r in (known.spec or {}).get("reservations", ())}


def of_others(known: NetworkFacts) -> tuple[Reserved, ...]:
    """The reservations that came later: those of VMs with a fixed address, and by hand."""
    return tuple(r for r in known.reserved if r not in of_spec(known))


def _settled(spec: NetworkSpec, known: NetworkFacts) -> NetworkSpec:
    """The spec with what was chosen for 'auto' when the network was made, as far as it still goes with the mode."""
    import msgspec

    if spec.subnet != "auto" or known.subnet is None or spec.mode.value == "bridge":
        return spec
    return msgspec.structs.replace(spec, subnet=str(known.subnet))


def _without(facts: HostNetworks, known: NetworkFacts) -> HostNetworks:
    """The host as if the network were not there."""
    # A bridge that was there before it stays.
    gone = known.bridge if known.owns_bridge else None
    links = None if facts.links is None else {n: k for n, k in facts.links.items() if n != gone}
    return replace(
        facts,
        networks={n: k for n, k in facts.networks.items() if n != known.name},
        routes=tuple(r for r in facts.routes if known.subnet is None or not r.overlaps(known.subnet)),
        links=links,
    )


def _inside(reserved: Reserved, design: NetworkDesign) -> bool:
    from ipaddress import IPv4Address

    return design.subnet is not None and IPv4Address(reserved.address) in design.subnet
