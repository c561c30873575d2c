"""Judging CPU and KVM."""

from __future__ import annotations

from collections.abc import Iterator

from vmkit.host import figures
from vmkit.host.facts.host import HostFacts
from vmkit.host.facts.virt import Environment
from vmkit.host.finding import Finding, Level

_PC = ("Intel", "AMD", "Hygon", "Centaur", "Zhaoxin")


def judge(facts: HostFacts) -> Iterator[Finding]:
    """Findings about CPU and KVM."""
    if facts.virt.environment is Environment.XEN_DOM0:
        return
    yield from _works(facts)
    yield from _extension(facts)
    yield from _device(facts)
    yield from _paging(facts)
    yield from _nested(facts)
    yield from _interrupts(facts)


def module_fix(module: str, option: str) -> tuple[str, ...]:
    """How a parameter of a KVM module is set for good."""
    return (
        f"echo 'options {module} {option}' >> /etc/modprobe.d/kvm.conf",
        f"modprobe -r {module} && modprobe {module}    (with no VM running; or reboot)",
    )


def firmware_setting(facts: HostFacts) -> str:
    """What the firmware calls the switch for hardware virtualisation."""
    return "SVM Mode" if facts.cpu.vendor in ("AMD", "Hygon") else "Intel Virtualization Technology (VT-x)"


def _works(facts: HostFacts) -> Iterator[Finding]:
    probe = facts.probe
    if probe.works:
        yield Finding("kvm-works", "kvm", Level.OK, f"KVM runs guests: {probe.reason}")
    elif probe.works is False and facts.kvm.device.present:
        yield Finding(
            "kvm-no-guest",
            "kvm",
            Level.PROBLEM,
            f"/dev/kvm is there, and no guest runs on it: {probe.reason}",
            figures.EMULATION.text,
            _no_guest_fix(facts),
            figures.EMULATION.source,
        )
    elif probe.works is None and facts.kvm.device.present:
        yield Finding(
            "kvm-not-proven",
            "kvm",
            Level.NOTE,
            f"whether KVM runs guests is not known: {probe.reason}",
            "",
            ("vmkit doctor",) if facts.libvirt.error is None and facts.cpu.arch == "x86_64" else (),
        )


def _no_guest_fix(facts: HostFacts) -> tuple[str, ...]:
    if facts.kvm.paging == "shadow" and facts.cpu.nested_paging:
        return module_fix(facts.kvm.module or "kvm", "npt=1" if facts.cpu.extension == "SVM" else "ept=1")
    if facts.virt.environment is Environment.GUEST:
        return (
            "on the machine below: load its kvm module with nested=1,",
            "and give this VM the host's CPU: <cpu mode='host-passthrough'/>",
        )
    return ("dmesg | grep -i kvm", "ls -t /var/log/libvirt/qemu/vmkit-probe-kvm-*    (QEMU's own words)")


def _extension(facts: HostFacts) -> Iterator[Finding]:
    cpu, virt = facts.cpu, facts.virt
    if cpu.extension:
        yield Finding("cpu-extension", "cpu", Level.OK, f"the CPU has {cpu.extension}")
        return
    if cpu.vendor not in _PC or not cpu.threads or facts.probe.works:
        return
    flag = "svm" if cpu.vendor in ("AMD", "Hygon") else "vmx"
    cost, source = figures.EMULATION.text, figures.EMULATION.source
    if virt.environment in (Environment.GUEST, Environment.XEN_DOMU):
        module = "kvm_amd" if flag == "svm" else "kvm_intel"
        fix: tuple[str, ...] = (
            f"on the machine below: 'options {module} nested=1' in /etc/modprobe.d/kvm.conf,",
            "and this VM's CPU as <cpu mode='host-passthrough'/>",
            "in a cloud: take an instance type with nested virtualisation, or a bare-metal one",
        )
        what = f"this is a guest of {_below(virt.under)}, and its CPU shows no {flag}: no hardware virtualisation"
        level = Level.GAP
    else:
        fix = (f"firmware: enable {firmware_setting(facts)}, then power off and on",)
        what = f"the CPU shows no {flag}, which {cpu.vendor}'s server and PC processors have: it is off in the firmware"
        level = Level.PROBLEM
    yield Finding("cpu-no-extension", "cpu", level, what, cost, fix, source)


def _below(under: str | None) -> str:
    return under if under and under != "unknown" else "an unknown hypervisor"


def _device(facts: HostFacts) -> Iterator[Finding]:
    device = facts.kvm.device
    emulated = (figures.EMULATION.text, figures.EMULATION.source)
    capable = facts.cpu.extension is not None or facts.cpu.vendor not in _PC
    if device.present is False and facts.virt.container:
        yield Finding(
            "kvm-container",
            "kvm",
            Level.GAP,
            f"this is a container ({facts.virt.container}) without /dev/kvm",
            emulated[0],
            ("start the container with --device /dev/kvm",),
            emulated[1],
        )
    elif device.present is False and capable and facts.cpu.arch:
        module = {"VT-x": "kvm_intel", "SVM": "kvm_amd"}.get(facts.cpu.extension or "", "kvm")
        how = f"modprobe {module}" if device.loadable is not False else "install a kernel that has KVM"
        also = "if that fails: dmesg | grep kvm    ('disabled by bios' means the firmware's switch is off)"
        yield Finding(
            "kvm-missing", "kvm", Level.PROBLEM, "/dev/kvm is not there", emulated[0], (how, also), emulated[1]
        )
    elif device.present and device.usable is False:
        yield Finding(
            "kvm-access",
            "kvm",
            Level.GAP,
            "/dev/kvm is there, and this user may not open it",
            "QEMU run by this user falls back to emulation; libvirt's system daemon is not affected",
            ('usermod -aG kvm "$USER"    (as root; then log in anew)',),
        )


def _paging(facts: HostFacts) -> Iterator[Finding]:
    kvm, cpu = facts.kvm, facts.cpu
    name = "NPT" if cpu.extension == "SVM" else "EPT"
    if kvm.paging == "nested":
        yield Finding(
            "paging-nested", "kvm", Level.OK, f"KVM uses nested paging ({name if cpu.extension else 'stage 2'})"
        )
    elif kvm.paging == "shadow":
        option = "npt=1" if cpu.extension == "SVM" else "ept=1"
        fix = module_fix(kvm.module or "kvm", option)
        if cpu.nested_paging is False:
            fix = (f"none here: the CPU has no {name}",)
        yield Finding(
            "paging-shadow",
            "kvm",
            Level.GAP,
            f"KVM uses shadow page tables: {name} is off",
            figures.SHADOW.text,
            fix,
            figures.SHADOW.source,
        )


def _nested(facts: HostFacts) -> Iterator[Finding]:
    if facts.kvm.nested is False and facts.kvm.module:
        yield Finding(
            "nested-off",
            "kvm",
            Level.NOTE,
            "guests cannot run KVM themselves: nested=0",
            "a hypervisor inside a guest, as in tests, has to emulate",
            module_fix(facts.kvm.module, "nested=1"),
        )


def _interrupts(facts: HostFacts) -> Iterator[Finding]:
    kvm, cpu = facts.kvm, facts.cpu
    name, option = ("AVIC", "avic=1") if cpu.extension == "SVM" else ("APICv", "enable_apicv=1")
    if kvm.virtual_interrupts is False and kvm.module in ("kvm_intel", "kvm_amd"):
        able = cpu.virtual_interrupts is not False
        yield Finding(
            "virtual-interrupts-off",
            "kvm",
            Level.NOTE,
            f"{name} is off{'' if able else ': the CPU does not have it'}",
            figures.EXITLESS.text,
            module_fix(kvm.module, option) if able else (),
            figures.EXITLESS.source,
        )
    elif kvm.virtual_interrupts:
        posted = "; interrupts of assigned devices are posted" if kvm.posted_interrupts else ""
        yield Finding("virtual-interrupts", "kvm", Level.OK, f"{name} is on{posted}")
