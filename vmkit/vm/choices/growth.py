"""Room to grow while it runs: how many vCPUs and how much memory may be added, and how many cards and disks. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkit.errors import SpecError
from vmkit.plan import Rejected
from vmkit.values import Bytes
from vmkit.vm.choices.placement import Place
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.facts import HostFacts
from vmkit.vm.spec_parts import Family

if TYPE_CHECKING:
    from vmkit.vm.spec import VmSpec

MAX_AUTO_VCPUS: Final = 8
"""vCPUs that a guest may grow to without being asked for: each costs it about 250 KiB for its per-CPU data (Linux 6.1,
setup_per_cpu_areas), so many would be felt by small guests."""
SPARE_PORTS: Final = 4
"""PCI Express ports without a device, each for a disk or a NIC that is added while the VM runs."""
SPARE_PORTS_EMULATED: Final = 3
"""The same without KVM, where each port adds about 0.05 s to a boot of 4.5 s (Linux 6.1 on QEMU 10.0)."""


def max_vcpus(spec: VmSpec, facts: HostFacts, place: Place, why: Reasons, *, kvm: bool) -> int:
    """How many vCPUs it may have while it runs.

    Raises:
        SpecError: more than its vCPUs were asked for where they cannot be added.
    """
    tied = "its vCPUs are laid out over cores" if place.topology else "each vCPU is pinned" if place.pinning else ""
    able = facts.driver == "QEMU" and facts.arch == "x86_64"
    if spec.max_vcpus is not None and spec.max_vcpus > spec.vcpus:
        if tied or facts.driver not in ("QEMU", "TEST"):
            raise SpecError(
                tied or f"is for QEMU hosts, {facts.uri} is {facts.driver}", path="max_vcpus", hint="leave it out"
            )
        why.chose("max_vcpus", spec.max_vcpus, ASKED)
        return spec.max_vcpus
    if spec.max_vcpus is not None or tied or not able or spec.family is not Family.GENERAL:
        return spec.vcpus
    most = max(spec.vcpus, min(facts.cpus, MAX_AUTO_VCPUS))
    if most > spec.vcpus:
        none = Rejected(str(spec.vcpus), "no vCPU could be added while it runs")
        reason = "what the host has, so that vCPUs can be added while it runs"
        if not kvm:
            reason += "; emulated, newer Linux kernels see those after a reboot"
        why.chose("max_vcpus", most, reason, rejected=(none,))
    return most


def max_memory(spec: VmSpec, facts: HostFacts, size: Bytes, why: Reasons) -> Bytes | None:
    """How much memory it may have while it runs; None for no more than it begins with.

    Never by itself: a Linux guest that may get memory above 4 GiB sets 64 MiB aside for devices that cannot reach it
    (swiotlb; arch/x86/kernel/pci-dma.c looks at max_possible_pfn, which the slots raise).

    Raises:
        SpecError: it is less than its memory, or cannot be.
    """
    if spec.max_memory is None:
        return None
    if spec.max_memory < size:
        raise SpecError(f"{spec.max_memory} is less than its memory, {size}", path="max_memory")
    if facts.driver != "QEMU":
        raise SpecError(f"is for QEMU hosts, {facts.uri} is {facts.driver}", path="max_memory", hint="leave it out")
    if spec.max_memory == size:
        return None
    why.chose("max_memory", spec.max_memory, f"{ASKED}: memory can be added while it runs, in steps of 128M")
    return spec.max_memory


def spare_ports(domain_type: str, machine: str | None) -> int:
    """PCI Express ports that are kept free; other boards have a bus that takes devices as it is."""
    if "q35" not in (machine or ""):
        return 0
    return {"kvm": SPARE_PORTS, "qemu": SPARE_PORTS_EMULATED}.get(domain_type, 0)
