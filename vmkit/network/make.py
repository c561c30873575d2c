"""Making, starting and removing a network, under a journal entry."""

from __future__ import annotations

import uuid as uuids
from typing import Any

from vmkit.errors import CancelledError, ConflictError, NotFoundError
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.network import Network, define, networks
from vmkit.hypervisor.settle import undo_or_keep
from vmkit.network.design import NetworkDesign
from vmkit.network.facts import NetworkFacts, User
from vmkit.network.spec import NetworkSpec, dump
from vmkit.network.xml import network_xml
from vmkit.progress import Finished, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.interrupts import deferred
from vmkit.system.journal import journalled


def build(host: Host, spec: NetworkSpec, design: NetworkDesign, reporter: Reporter = silent) -> Network:
    """Carry a plan out. After a failure what was made is removed again, or the next command does it.

    Raises:
        EffectError, ConflictError: a step failed.
        CancelledError: Ctrl-C or a signal came; what was made is removed.
    """
    data: dict[str, Any] = {"action": "create", "uri": host.uri, "uuid": str(uuids.uuid4())}
    reporter(Started("network", design.name))
    watch = stopwatch()
    with journalled("network", design.name, "define", **data) as entry, deferred() as interrupted:
        try:
            network = define(host, network_xml(design, dump(spec), data["uuid"]))
            entry.advance("start")
            network.start()
            join(network.name, design.bridge, design.ports)
            if design.autostart:
                network.set_autostart(True)
            if by := interrupted():
                raise CancelledError(f"the making of network {design.name} was stopped by {by}; nothing is left of it")
        except BaseException:
            undo_or_keep(host, entry, undo)
            raise
    reporter(Finished("network", watch(), design.name))
    return network


def join(name: str, bridge: str | None, ports: tuple[str, ...]) -> tuple[str, ...]:
    """Make interfaces of this machine ports of a bridge; returns those that were not.

    Raises:
        NotFoundError: one is not there. ConflictError: one is a port of another bridge.
    """
    if not ports:
        return ()
    from vmkit.system.netlink import Links

    if bridge is None:
        raise ConflictError(
            f"the network '{name}' has no bridge",
            hint="only networks of mode bridge take ports: vmkit network create NAME --mode bridge",
        )
    joined = []
    with Links() as links:
        there = {link.name: link for link in links.all()}
        if bridge not in there:
            raise NotFoundError(f"the bridge {bridge} is not there", hint=f"vmkit network start {name}")
        for port in ports:
            if port not in there:
                raise NotFoundError(f"the host has no interface {port}", hint="ip link shows them")
            if there[port].master == there[bridge].index:
                continue
            if there[port].master:
                raise ConflictError(f"{port} is a port of another bridge", hint=f"ip link set {port} nomaster")
            links.set(port, up=True, master=bridge)
            joined.append(port)
    return tuple(joined)


def remove(network: Network, facts: NetworkFacts, users: list[User], *, force: bool = False) -> None:
    """Stop a network and remove its definition.

    Raises:
        ConflictError: VMs are on it, and `force` is not set; or another tool made it, and `force` is not set.
    """
    check_removal(facts, users, force=force)
    data = {"action": "delete", "uri": network.host.uri, "uuid": network.uuid}
    with journalled("network", network.name, "stop", **data), deferred():
        _vanish(network)


def check_removal(facts: NetworkFacts, users: list[User], *, force: bool) -> None:
    """Refuse to remove what somebody uses.

    Raises:
        ConflictError: as `remove`.
    """
    if force:
        return
    if not facts.managed:
        raise ConflictError(
            f"the network '{facts.name}' was made by another tool",
            hint=f"vmkit network delete --force {facts.name} removes it all the same",
        )
    if users:
        names = sorted({f"{u.vm}{' (running)' if u.running else ''}" for u in users})
        raise ConflictError(
            f"VMs are on the network '{facts.name}': {', '.join(names)}",
            hint=f"delete them first; vmkit network delete --force {facts.name} cuts them off",
        )


def _vanish(network: Network) -> None:
    persistent = network.persistent
    if network.active:
        network.stop()
    if persistent:
        network.undefine()


def undo(host: Host, data: dict[str, Any]) -> str:
    """Remove the network of a journal entry, if it is there; says what was done."""
    for network in networks(host):
        if network.uuid == data["uuid"]:
            _vanish(network)
            return f"removed network {network.name}"
    return "nothing was left of it"


def restart(host: Host, data: dict[str, Any]) -> str:
    """Start the network of a journal entry if it does not run; says what was done."""
    for network in networks(host):
        if network.uuid == data["uuid"]:
            if network.active:
                return "it runs; make the change again"
            network.start()
            return "it was started again; make the change again"
    return "it is not there any more"
