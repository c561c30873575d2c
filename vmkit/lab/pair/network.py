"""The wires of a lab: a switch in a network namespace of its own, one namespace for each host, one link to the machine.

    machine --- vmk-A-B-C (gateway) ===veth=== [switch: br0 (DHCP, DNS)] ===veth=== [host: br0 (its address)] --- guests

The switch is not in the machine's own namespace, since firewall rules there (br_netfilter, Docker's FORWARD policy)
would be applied to what guests say to each other. The namespaces have no name in the file system: they last as long
as the processes in them, so nothing of the network is left when those are dead, however they died.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vmkit.errors import ConflictError, RefusedError
from vmkit.lab.pair.blueprint import PREFIX, Blueprint
from vmkit.lab.pair.config import BRIDGE
from vmkit.system.namespaces import NetworkNamespace
from vmkit.system.netlink import Links


@dataclass(frozen=True, slots=True)
class Wires:
    """The namespaces of a lab, held open: the switch's, and one for each host by its name."""

    switch: NetworkNamespace
    hosts: dict[str, NetworkNamespace]


@contextlib.contextmanager
def wired(
    plans: Iterator[Blueprint], settled: Callable[[Blueprint], None], alias: str
) -> Iterator[tuple[Blueprint, Wires]]:
    """Make the network of the first blueprint whose subnet nobody takes meanwhile.

    Args:
        plans: blueprints that differ in their subnet.
        settled: called with the one that it will be, before anything lasts.
        alias: alias of the link in the machine's namespace.

    When the block ends the handles are closed; what is in the namespaces by then keeps them. If the block raises, the
    link in the machine's namespace is removed.

    Raises:
        RefusedError: not permitted, or no blueprint is left.
    """
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(NetworkNamespace.new())
        own = stack.enter_context(Links())
        plan = _claim(plans, own, switch)
        stack.push(lambda failed, *_rest: bool(failed and own.delete(plan.link)) and False)
        settled(plan)
        own.set(plan.link, alias=alias)
        wires = Wires(switch, {h.name: stack.enter_context(NetworkNamespace.new()) for h in plan.hosts})
        _build(plan, wires)
        own.set(plan.link, up=True)
        own.add_address(plan.link, plan.gateway, PREFIX)
        yield plan, wires


def _claim(plans: Iterator[Blueprint], own: Links, switch: NetworkNamespace) -> Blueprint:
    """Take a subnet. The link is named for it, so the kernel lets only one lab on the machine have it."""
    for plan in plans:
        with contextlib.suppress(ConflictError):
            own.add_veth(plan.link, "machine", switch)
            return plan
    raise RefusedError("no subnet is free for a lab", hint="see: ip route; vmkit lab list")


def _build(plan: Blueprint, wires: Wires) -> None:
    with Links(wires.switch) as inside:
        inside.set("lo", up=True)
        inside.add_bridge(BRIDGE, plan.switch_mac)
        inside.set(BRIDGE, up=True)
        inside.add_address(BRIDGE, plan.switch, PREFIX)
        inside.set("machine", up=True, master=BRIDGE)
        for host in plan.hosts:
            inside.add_veth(f"to-{host.name}", "uplink", wires.hosts[host.name])
            inside.set(f"to-{host.name}", up=True, master=BRIDGE)
    for host in plan.hosts:
        with Links(wires.hosts[host.name]) as inside:
            inside.set("lo", up=True)
            inside.add_bridge(BRIDGE, host.mac)
            inside.set(BRIDGE, up=True)
            inside.set("uplink", up=True, master=BRIDGE)
            inside.add_address(BRIDGE, host.address, PREFIX)
