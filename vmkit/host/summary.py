"""A host in a few lines. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vmkit.host.facts.host import HostFacts
from vmkit.host.facts.pci import PciFacts
from vmkit.host.facts.virt import Environment
from vmkit.host.facts.xen import XenFacts
from vmkit.host.finding import counted
from vmkit.values import Bytes


def summary(facts: HostFacts) -> tuple[tuple[str, str], ...]:
    """Label and text of each line, for people. What is unknown is called so."""
    return tuple(_lines(facts))


def _lines(facts: HostFacts) -> Iterator[tuple[str, str]]:
    system, cpu, memory = facts.system, facts.cpu, facts.memory
    yield "host", _join([system.hostname or "unknown", system.os, f"Linux {system.kernel}" if system.kernel else ""])
    yield "kind", _kind(facts)
    level = f"x86-64-v{cpu.level}" if cpu.level else cpu.arch
    model = cpu.model if cpu.model.startswith(cpu.vendor) else f"{cpu.vendor} {cpu.model}".strip()
    yield "cpu", _join([model or "unknown", level, _topology(facts)])
    yield "virtualisation", _virtualisation(facts)
    yield "probe guest", _probe(facts)
    size = f"{Bytes(memory.total)}" if memory.total is not None else "unknown"
    swap = {None: "swap unknown", 0: "no swap"}.get(memory.swap) or f"swap {Bytes(memory.swap or 0)}"
    thp = f"THP {memory.thp}" if memory.thp else "THP unknown"
    ksm = {True: "KSM on", False: "KSM off", None: "KSM unknown"}[memory.ksm]
    nodes = counted(len(memory.nodes), "NUMA node") if memory.nodes else ""
    yield "memory", _join([size, nodes, swap, thp, ksm])
    yield "huge pages", _huge(facts)
    yield "iommu", _iommu(facts)
    yield "sr-iov", _sriov(facts.pci)
    kvm = facts.kvm
    devices = {"vhost-net": kvm.vhost_net, "vhost-vsock": kvm.vhost_vsock, "tun": kvm.tun, "vfio": kvm.vfio}
    yield "i/o", ", ".join(f"{n} {_yes(d.present)}" for n, d in devices.items())
    yield "libvirt", _libvirt(facts)
    cgroup = f"cgroup {system.cgroup}" if system.cgroup else "cgroup unknown"
    security = {None: "security module unknown", "none": "no security module"}.get(system.security, system.security)
    yield (
        "system",
        _join(
            [
                cgroup,
                security or "",
                f"mitigations={system.mitigations}" if system.mitigations else "mitigations unknown",
                "" if system.root else "not root",
            ]
        ),
    )


def _join(parts: list[str]) -> str:
    return ", ".join(p for p in parts if p)


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[value]


def _kind(facts: HostFacts) -> str:
    virt = facts.virt
    name = {
        Environment.BARE_METAL: "laptop" if virt.laptop else "bare metal",
        Environment.GUEST: f"guest of {virt.under}" if virt.under != "unknown" else "guest of an unknown hypervisor",
        Environment.XEN_DOM0: f"dom0 of Xen {virt.xen_version or ''}".strip(),
        Environment.XEN_DOMU: "guest of Xen",
        Environment.UNKNOWN: "unknown",
    }[virt.environment]
    machine = virt.product if virt.product.startswith(virt.vendor) else f"{virt.vendor} {virt.product}".strip()
    return _join([name, f"in a container ({virt.container})" if virt.container else "", machine])


def _topology(facts: HostFacts) -> str:
    cpu = facts.cpu
    if not cpu.cores:
        return counted(cpu.threads, "CPU") if cpu.threads else ""
    return ", ".join(
        counted(n, what) for n, what in ((cpu.sockets, "socket"), (cpu.cores, "core"), (cpu.threads, "thread"))
    )


def _virtualisation(facts: HostFacts) -> str:
    cpu, kvm = facts.cpu, facts.kvm
    if facts.virt.environment is Environment.XEN_DOM0:
        return _xen(facts.xen)
    hardware = cpu.extension or "no VT-x or SVM shown"
    if cpu.arch and cpu.arch != "x86_64":
        hardware = cpu.arch
    if not cpu.threads:
        hardware = "unknown"
    device = {True: f"KVM ({kvm.module or 'module unknown'})", False: "no /dev/kvm", None: "/dev/kvm unknown"}[
        kvm.device.present
    ]
    paging = f"{kvm.paging} paging" if kvm.paging else ""
    nested = {True: "nested on", False: "nested off", None: ""}[kvm.nested]
    name = "AVIC" if cpu.extension == "SVM" else "APICv"
    virtual = {True: f"{name} on", False: f"{name} off", None: ""}[kvm.virtual_interrupts]
    posted = {True: "posted interrupts", False: "", None: ""}[kvm.posted_interrupts]
    return _join([hardware, device, paging, nested, virtual, posted])


def _xen(xen: XenFacts) -> str:
    modes = {"PV": xen.pv, "HVM and PVH": xen.hvm, "HAP": xen.hap, "shadow paging": xen.shadow}
    known = ", ".join(f"{name} {_yes(value)}" for name, value in modes.items())
    return f"Xen's: {known}, live patches {_yes(xen.livepatch)}"


def _probe(facts: HostFacts) -> str:
    works = facts.probe.works
    word = {True: "KVM works", False: "KVM does not run guests: TCG is used", None: "not known"}[works]
    return f"{word} ({facts.probe.reason})"


def _huge(facts: HostFacts) -> str:
    pools = facts.memory.huge_pages
    if not pools:
        return "unknown"
    text = ", ".join(f"{p.total} of {Bytes(p.size)}" for p in pools)
    nodes = [f"node {n.number}: {Bytes(sum(p.total * p.size for p in n.huge_pages))}" for n in facts.memory.nodes]
    return f"{text} ({', '.join(nodes)})" if len(nodes) > 1 else text


def _iommu(facts: HostFacts) -> str:
    pci = facts.pci
    if facts.virt.environment is Environment.XEN_DOM0:
        return {True: "in use by Xen", False: "not in use", None: "unknown: Xen's"}[facts.xen.iommu]
    if not pci.groups:
        table = {None: "firmware tables unknown", "": "none told of by the firmware"}.get(pci.firmware_table)
        return f"not in use ({table or f'the firmware has {pci.firmware_table}'})"
    shared = sum(1 for g in pci.groups if not g.isolated)
    return _join(
        [
            pci.firmware_table or "",
            counted(len(pci.groups), "group"),
            f"{shared} of them shared",
            f"interrupt remapping {_yes(pci.interrupt_remapping)}",
        ]
    )


def _sriov(pci: PciFacts) -> str:
    if not pci.physical_functions:
        return "none" if pci.devices else "unknown"
    return ", ".join(
        f"{'/'.join(f.interfaces) or f.address} {f.enabled} of {f.total} VFs" for f in pci.physical_functions
    )


def _libvirt(facts: HostFacts) -> str:
    libvirt = facts.libvirt
    if libvirt.error is not None:
        return "does not answer"
    names = {True: "UEFI", False: "no UEFI", None: ""}[libvirt.uefi]
    boot = "secure boot" if libvirt.secure_boot else ""
    tpm = {True: "TPM", False: "no TPM"}[bool(libvirt.tpm)] if libvirt.uefi is not None else ""
    models = f"{len(libvirt.cpu_models)} CPU models" if libvirt.cpu_models else ""
    return _join(
        [
            f"{libvirt.libvirt}, {libvirt.driver} {libvirt.hypervisor}",
            "/".join(libvirt.domain_types),
            models,
            names,
            boot,
            tpm,
        ]
    )
