"""All facts about a host together."""

from __future__ import annotations

from dataclasses import dataclass

from vmkit.host.facts import cpu, kvm, libvirt, memory, pci, system, virt, xen
from vmkit.host.facts.probe import ProbeFacts
from vmkit.host.tree import Tree


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Everything that is known of a host. None stands for unknown throughout, never for absent."""

    system: system.SystemFacts
    virt: virt.VirtFacts
    cpu: cpu.CpuFacts
    kvm: kvm.KvmFacts
    probe: ProbeFacts
    memory: memory.MemoryFacts
    pci: pci.PciFacts
    libvirt: libvirt.LibvirtFacts
    xen: xen.XenFacts


def read(tree: Tree, answers: libvirt.Answers, probe: ProbeFacts) -> HostFacts:
    """The facts of a captured host, with what libvirt and the probe guest said."""
    processor = cpu.read(tree)
    return HostFacts(
        system=system.read(tree),
        virt=virt.read(tree),
        cpu=processor,
        kvm=kvm.read(tree),
        probe=probe,
        memory=memory.read(tree),
        pci=pci.read(tree),
        libvirt=libvirt.read(answers, processor.arch),
        xen=xen.read(tree),
    )
