"""Taking away what a bench made on a host. Everything has names of its own, and is found by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from vmkit.bench import lending, paging
from vmkit.bench.layout import BRIDGE, BRIDGE_MAC, COMPUTE, Guest, subnet
from vmkit.errors import NotFoundError, VmkitError
from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter, silent
from vmkit.vm.machine import Vm

NAMES: Final = frozenset(Guest(mode).name for mode in COMPUTE)
"""Of the VMs that a bench makes."""


def remove_vms(host: Host, only: str | None = None) -> list[str]:
    """Delete every VM of a bench, or only the one of a name; returns what went.

    Raises:
        VmkitError: one of them cannot be deleted.
    """
    removed: list[str] = []
    for domain in host.domains():
        if domain.name in NAMES and only in (None, domain.name):
            try:
                Vm(domain).delete(force=True)
            except NotFoundError:
                continue
            removed.append(domain.name)
    return removed


def make_bridge(cards: int) -> None:
    """Make the bridge between the host and that many cards of a guest, with an address of the host for each.

    Raises:
        RefusedError: not permitted.
    """
    from vmkit.system.netlink import Links

    with Links() as links:
        links.delete(BRIDGE)
        links.add_bridge(BRIDGE, BRIDGE_MAC)
        for i in range(cards):
            links.add_address(BRIDGE, subnet(i)[0], 29)
        links.set(BRIDGE, up=True)


def remove_bridge() -> bool:
    """Remove the bridge. False if it is not there."""
    from vmkit.system.netlink import Links

    with Links() as links:
        return BRIDGE in {link.name for link in links.all()} and links.delete(BRIDGE)


def undo(host: Host, data: Mapping[str, Any], reporter: Reporter = silent) -> list[str]:
    """Delete the VMs and the bridge, give a card and KVM's paging back as they were; says what was done.

    Raises:
        VmkitError: something is left. Each part is tried all the same.
    """
    done: list[str] = []
    first: VmkitError | None = None

    def paging_again() -> list[str]:
        text = paging.restore(data)
        return [text] if text else []

    parts: tuple[Callable[[], list[str]], ...] = (
        lambda: [f"deleted {name}" for name in remove_vms(host)],
        lambda: lending.give_back(host, data, NAMES, reporter),
        lambda: [f"removed the bridge {BRIDGE}"] if remove_bridge() else [],
        paging_again,
    )
    for part in parts:
        try:
            done += part()
        except VmkitError as e:
            first = first or e
    if first:
        raise first
    return done
