"""Limits of a running domain, set through libvirt's own calls, and what its host can limit at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import libvirt

from vmkit.errors import UnsupportedError, VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.errors import translated

UNLIMITED_KIB: Final = 9007199254740991
"""What libvirt takes for 'no limit of memory' (VIR_DOMAIN_MEMORY_PARAM_UNLIMITED, which its Python module lacks)."""
_LIVE: Final = libvirt.VIR_DOMAIN_AFFECT_LIVE


@dataclass(frozen=True, slots=True)
class Controllers:
    """Which limits a running domain can be given, as its libvirt says.

    Attributes:
        cpu, memory, io: the cgroup controller is there for this domain.
        weight: the weight that every cgroup begins with: 100 in version 2, 1024 (CPU) in version 1; None if unknown.
        why_not: libvirt's words about the first one that is missing; '' if none is.
    """

    cpu: bool
    memory: bool
    io: bool
    weight: int | None
    why_not: str


def controllers(domain: Domain) -> Controllers:
    """What can be limited of a running domain. Nothing is changed.

    Raises:
        UnreachableError: the host went away.
    """
    words: list[str] = []

    def there(call: Callable[[int], Mapping[str, Any]], field: str) -> bool:
        try:
            with translated("limits"):
                return field in call(_LIVE)
        except VmkitError as e:
            words.append(e.message.removeprefix("limits: "))
            return False

    handle = domain.handle
    found = (
        there(handle.schedulerParametersFlags, "global_quota"),
        there(handle.memoryParameters, "hard_limit"),
        there(handle.blkioParameters, "weight"),
    )
    if not any(found) and not domain.host.alive:
        with translated(f"limits of {domain.name}"):
            domain.host.handle.getLibVersion()  # raises what is wrong with the connection
    return Controllers(*found, weight=_weight(domain) if found[0] else None, why_not=words[0] if words else "")


def _weight(domain: Domain) -> int | None:
    """CPU time by CPU is counted by version 1 alone, so libvirt's answer to a question for it tells the version."""
    try:
        with translated("CPU statistics"):
            domain.handle.getCPUStats(False, 0)
    except UnsupportedError:
        return 100
    except VmkitError:
        return None
    return 1024


def set_element(domain: Domain, namespace: str, prefix: str, xml: str, *, live: bool, config: bool) -> None:
    """Replace the element that is kept under a namespace in the metadata of what runs, the definition, or both."""
    flags = (_LIVE if live else 0) | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if config else 0)
    with translated(f"metadata of {domain.name}"):
        domain.handle.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, prefix, namespace, flags)


def set_cpu(domain: Domain, values: Mapping[str, int]) -> None:
    """Change `cpu_shares`, `global_period` and `global_quota` (microseconds; -1 for none) of a running domain."""
    with translated(f"CPU limits of {domain.name}"):
        domain.handle.setSchedulerParametersFlags(dict(values), _LIVE)


def set_memory(domain: Domain, kib: int | None) -> None:
    """Cap the memory of a running domain's process; None takes the cap away."""
    with translated(f"memory cap of {domain.name}"):
        domain.handle.setMemoryParameters({"hard_limit": UNLIMITED_KIB if kib is None else kib}, _LIVE)


def set_io_weight(domain: Domain, weight: int) -> None:
    """Weight of a running domain against others while disks are busy."""
    with translated(f"I/O weight of {domain.name}"):
        domain.handle.setBlkioParameters({"weight": weight}, _LIVE)


def set_disk(domain: Domain, device: str, values: Mapping[str, int]) -> None:
    """Rates of a disk of a running domain, by libvirt's names (`read_iops_sec`, ...); 0 for none. QEMU holds them."""
    with translated(f"limits of {domain.name}'s disk {device}"):
        domain.handle.setBlockIoTune(device, dict(values), _LIVE)


def set_nic(domain: Domain, mac: str, inbound: int, outbound: int) -> None:
    """Average rates of a NIC of a running domain in kilobytes (1000 bytes) a second; 0 for none. tc(8) holds them."""
    values = {"inbound.average": inbound, "outbound.average": outbound}
    with translated(f"limits of {domain.name}'s NIC {mac}"):
        domain.handle.setInterfaceParameters(mac, values, _LIVE)
