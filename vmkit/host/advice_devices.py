"""Judging IOMMU, device assignment, SR-IOV and the kernel's helpers for I/O."""

from __future__ import annotations

from collections.abc import Iterator

from vmkit.host import figures
from vmkit.host.facts.host import HostFacts
from vmkit.host.facts.kvm import Device
from vmkit.host.facts.pci import WANTED, IommuGroup
from vmkit.host.facts.virt import Environment
from vmkit.host.finding import Finding, Level, counted

_SHOWN = 3


def judge(facts: HostFacts) -> Iterator[Finding]:
    """Findings about devices."""
    if facts.virt.environment is Environment.XEN_DOM0:
        return  # Xen has back ends of its own, and keeps the IOMMU for itself: `xl info` tells, dom0's kernel cannot
    if not (facts.virt.container and not facts.kvm.device.present):  # devices of a container are what it was given
        yield from _helpers(facts)
    yield from _iommu(facts)
    yield from _groups(facts)
    yield from _remapping(facts)
    yield from _sriov(facts)


def kernel_option(facts: HostFacts, option: str) -> tuple[str, ...]:
    """How a word gets onto the kernel's command line for good, and the reboot."""
    if not facts.system.grub:
        return (f"add {option} to the kernel's command line, then reboot",)
    make = "update-grub"
    if not any(p.endswith("/update-grub") for p in facts.system.programs) and "debian" not in facts.system.family:
        make = "grub2-mkconfig -o /boot/grub2/grub.cfg"
    return (f"in /etc/default/grub, to GRUB_CMDLINE_LINUX: {option}", f"{make} && reboot")


def _iommu(facts: HostFacts) -> Iterator[Finding]:
    pci = facts.pci
    if pci.groups:
        units = f" by {counted(len(pci.units), 'IOMMU')}" if pci.units else ""
        yield Finding(
            "iommu", "iommu", Level.OK, f"devices are kept apart{units}, in {counted(len(pci.groups), 'group')}"
        )
        return
    if not pci.devices:
        return
    cost = "no device and no virtual function can be given to a guest"
    option = "intel_iommu=on" if facts.cpu.vendor == "Intel" else "amd_iommu=on" if facts.cpu.vendor == "AMD" else ""
    word = option or "iommu.passthrough=0"
    name = (
        "VT-d" if facts.cpu.vendor == "Intel" else "AMD-Vi (IOMMU)" if facts.cpu.vendor == "AMD" else "the IOMMU (SMMU)"
    )
    if facts.virt.environment in (Environment.GUEST, Environment.XEN_DOMU):
        yield Finding(
            "iommu-guest",
            "iommu",
            Level.NOTE,
            "this guest has no IOMMU",
            cost,
            ("on the machine below: <iommu model='intel'/> among this VM's devices",),
        )
    elif pci.firmware_table == "":
        yield Finding(
            "iommu-firmware", "iommu", Level.GAP, "the firmware tells of no IOMMU", cost, (f"firmware: enable {name}",)
        )
    elif pci.firmware_table is None:
        fix = (f"firmware: see that {name} is enabled", *kernel_option(facts, word))
        yield Finding(
            "iommu-off", "iommu", Level.GAP, "the kernel uses no IOMMU; the firmware's tables cannot be seen", cost, fix
        )
    elif "intel_iommu=off" in facts.system.command_line or "iommu=off" in facts.system.command_line:
        fix = kernel_option(facts, f"{word} (in place of iommu=off)")
        yield Finding(
            "iommu-off", "iommu", Level.GAP, "the IOMMU is switched off on the kernel's command line", cost, fix
        )
    else:
        what = f"the firmware has an IOMMU ({pci.firmware_table}), and the kernel does not use it"
        yield Finding("iommu-off", "iommu", Level.GAP, what, cost, kernel_option(facts, word))


def _groups(facts: HostFacts) -> Iterator[Finding]:
    shared = [g for g in facts.pci.groups if not g.isolated and _kinds(facts, g) & WANTED]
    if not shared:
        return
    listed = "; ".join(
        f"group {g.number}: {', '.join(g.devices[:4])}{', ...' if len(g.devices) > 4 else ''}" for g in shared[:_SHOWN]
    )
    more = f"; and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
    many = f"{len(shared)} IOMMU groups hold" if len(shared) > 1 else "an IOMMU group holds"
    yield Finding(
        "iommu-shared",
        "iommu",
        Level.NOTE,
        f"{many} several devices that can only be given away together: {listed}{more}",
        "a device in such a group cannot go to a guest while the host or another guest uses the rest",
        ("put the card into a slot whose root port has ACS, or enable ACS in the firmware",),
    )


def _kinds(facts: HostFacts, group: IommuGroup) -> set[str]:
    return {d.kind for a in group.devices if (d := facts.pci.device(a))}


def _remapping(facts: HostFacts) -> Iterator[Finding]:
    pci = facts.pci
    if not pci.groups:
        return
    if pci.interrupt_remapping is False:
        yield Finding(
            "interrupt-remapping",
            "iommu",
            Level.GAP,
            "interrupts are not remapped",
            "VFIO refuses devices, since a guest could send the host interrupts of any kind",
            (
                "firmware: enable interrupt remapping (often with x2APIC)",
                "or, where all guests are trusted, in /etc/modprobe.d/vfio.conf:",
                "options vfio_iommu_type1 allow_unsafe_interrupts=1",
            ),
        )
    elif pci.interrupt_remapping is None and facts.cpu.arch == "x86_64":
        why = "" if facts.system.root else " without root"
        yield Finding("interrupt-remapping-unknown", "iommu", Level.NOTE, f"interrupt remapping: unknown{why}")
    if pci.unsafe_interrupts:
        yield Finding(
            "unsafe-interrupts",
            "iommu",
            Level.NOTE,
            "VFIO is told to do without interrupt remapping",
            "a guest with a device can send the host interrupts of any kind",
            ("remove allow_unsafe_interrupts=1 from /etc/modprobe.d",),
        )


def _sriov(facts: HostFacts) -> Iterator[Finding]:
    for function in facts.pci.physical_functions:
        name = "/".join(function.interfaces) or function.address
        if function.enabled:
            on_host = sum(1 for v in function.functions if v.driver and v.driver != "vfio-pci")
            text = f"{name} has {function.enabled} of {function.total} virtual functions, {on_host} with a host driver"
            yield Finding(f"sriov-{function.address}", "sriov", Level.OK, text)
        elif function.kind == "network":
            yield Finding(
                f"sriov-{function.address}",
                "sriov",
                Level.NOTE,
                f"{name} could have {function.total} virtual functions, and has none",
                f"guests share the port through the host; {figures.SRIOV.text}",
                (f"echo {min(function.total, 4)} > /sys/bus/pci/devices/{function.address}/sriov_numvfs",),
                figures.SRIOV.source,
            )


def _helpers(facts: HostFacts) -> Iterator[Finding]:
    kvm = facts.kvm
    if kvm.vhost_net.present is False:
        fix = _load("vhost_net", kvm.vhost_net)
        yield Finding(
            "vhost-net", "io", Level.GAP, "vhost-net is not there", figures.VHOST.text, fix, figures.VHOST.source
        )
    elif kvm.vhost_net.present:
        yield Finding("vhost-net", "io", Level.OK, "vhost-net is there")
    if kvm.tun.present is False:
        yield Finding(
            "tun",
            "io",
            Level.PROBLEM,
            "/dev/net/tun is not there",
            "guests cannot be joined to bridges or libvirt networks",
            _load("tun", kvm.tun),
        )
    if kvm.vhost_vsock.present is False:
        cost = "no sockets between host and guest without a network"
        yield Finding(
            "vhost-vsock", "io", Level.NOTE, "vhost-vsock is not there", cost, _load("vhost_vsock", kvm.vhost_vsock)
        )
    if facts.pci.groups and kvm.vfio.present is False:
        fix = _load("vfio-pci", kvm.vfio)
        yield Finding(
            "vfio", "iommu", Level.NOTE, "vfio-pci is not loaded", "libvirt loads it when a device is assigned", fix
        )


def _load(module: str, device: Device) -> tuple[str, ...]:
    if device.loadable is False:
        return (f"none on this kernel: it has no module {module}; install a distribution kernel",)
    return (f"modprobe {module}", f"echo {module} > /etc/modules-load.d/{module}.conf")
