"""Limits of a new VM: what the host could not hold is refused before anything is made. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from vmkit.errors import UnsupportedError
from vmkit.hypervisor.errors import CGROUP_ADVICE
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.limit_plan import judge_cap, judge_nic
from vmkit.vm.limits import VM_KINDS, OfDisk, OfNic, show
from vmkit.vm.spec_parts import DiskLimits, LimitsSpec, NicLimits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmkit.values import Bytes
    from vmkit.vm.design import DiskDesign, NicDesign
    from vmkit.vm.facts import HostFacts
    from vmkit.vm.spec import VmSpec

_HOLDERS: Final = {
    "cpus": "the kernel holds it over all threads of the QEMU process",
    "cpu-shares": "weighed against other VMs, which have 100, while CPUs are scarce",
    "memory-cap": "the kernel holds it over the QEMU process; its own memory and the page cache of its disks are in it",
    "io-weight": "weighed against other VMs, which have 100, while disks are busy",
}


def limits(
    spec: VmSpec,
    facts: HostFacts,
    size: Bytes,
    disks: Sequence[DiskDesign],
    nics: Sequence[NicDesign],
    why: Reasons,
) -> LimitsSpec:
    """The limits of the whole VM; those of disks and NICs are in their designs already.

    Raises:
        SpecError: the memory cap is too low for the guest. UnsupportedError: the host cannot hold one of them.
    """
    _whole(spec, facts, size, why)
    for i, disk in enumerate(disks):
        if disk.limits != DiskLimits():
            words = show("disk", OfDisk(disk.device, disk.limits))
            why.chose(f"disks[{i}].limits", words, f"{ASKED}: QEMU holds it; no cgroups are needed")
    for nic in nics:
        path = f"nics[{nic.index}].limits"
        if nic.limits != NicLimits():
            part = OfNic(nic.index, nic.mac, "hostdev" if nic.assigned else nic.kind, nic.limits)
            judge_nic(part, path)
            why.chose(path, show("nic", part), f"{ASKED}: tc holds it on the host's end of the tap")
    return spec.limits


def _whole(spec: VmSpec, facts: HostFacts, size: Bytes, why: Reasons) -> None:
    if spec.limits == LimitsSpec():
        return
    if urlsplit(facts.uri).path == "/session":
        raise UnsupportedError(f"limits: {facts.uri} is a user's own libvirt, which has no cgroups", hint=CGROUP_ADVICE)
    judge_cap(spec.limits.memory, size, "limits.memory")
    for kind, name in VM_KINDS.items():
        if getattr(spec.limits, name) is not None:
            why.chose(f"limits.{name}", show(kind, spec.limits), f"{ASKED}: {_HOLDERS[kind]}")
    quota = spec.limits.cpu_quota
    if quota is not None and quota > spec.vcpus:
        why.warn(f"{quota:g} CPUs are more than {spec.vcpus} vCPUs use: the quota will hardly be felt")
