"""What hosts have and what their VMs take, read from libvirt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkit.errors import NotFoundError
from vmkit.migrate.many.solve import Fleet, Need, Room

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host

OVERCOMMIT: Final = 4.0
"""vCPUs for each CPU of a host."""
OWN: Final = 512 * 2**20
"""Memory that a host keeps for itself, bytes; a twentieth of its memory where that is more."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Hosts and VMs, and how a person calls the VMs, which the plan knows by their uuid.

    Attributes:
        names: uuid -> name.
        asleep: host -> names of its VMs that are shut off.
    """

    fleet: Fleet
    names: Mapping[str, str]
    asleep: Mapping[str, tuple[str, ...]]


def observe(hosts: Sequence[Host], overcommit: float = OVERCOMMIT) -> Observed:
    """Ask each host.

    A VM counts with as much memory as it may ever have; a host has room for what its VMs take so and for what is free,
    less what it keeps for itself.

    Raises:
        UnreachableError: a host stopped answering.
    """
    rooms, at, names, asleep = {}, {}, {}, {}
    for host in hosts:
        vms, off = [], []
        for domain in host.domains():
            try:
                info = domain.info()
            except NotFoundError:  # it has just gone
                continue
            if not info.state.active:
                off.append(domain.name)
                continue
            vms.append(Need(domain.uuid, info.max_memory, info.vcpus))
            names[domain.uuid] = domain.name
        _, _, cpus = host.node()
        rooms[host.uri] = room(host.memory(), cpus, sum(v.memory for v in vms), overcommit)
        at[host.uri], asleep[host.uri] = tuple(vms), tuple(off)
    return Observed(Fleet(rooms, at), names, asleep)


def room(memory: tuple[int, int], cpus: int, taken: int, overcommit: float) -> Room:
    """What a host can give to VMs in all. Pure.

    Args:
        memory: bytes in all, and bytes that can be had now.
        cpus: logical CPUs.
        taken: bytes that its VMs may have.
        overcommit: vCPUs for each CPU.
    """
    total, free = memory
    own = max(OWN, total // 20)
    return Room(max(0, min(total, taken + free) - own), int(cpus * overcommit))
