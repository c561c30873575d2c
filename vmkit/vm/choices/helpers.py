"""What the hypervisor offers a guest that knows that it is one, and how interrupts reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkit.host import figures
from vmkit.plan import Rejected
from vmkit.vm.choices.reasons import Reasons
from vmkit.vm.design import DiskDesign, Helpers, NicDesign
from vmkit.vm.facts import HostFacts
from vmkit.vm.spec_parts import Bus, Guest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmkit.vm.spec import VmSpec

HYPERV: Final = {
    "relaxed": "no watchdog panics when a vCPU waits for its CPU",
    "vapic": "interrupts are acknowledged in memory, without an exit",
    "spinlocks": "a vCPU that spins on a lock tells the host",
    "vpindex": "numbers of vCPUs, which what follows builds on",
    "runtime": "how long each vCPU really ran",
    "synic": "message interrupts, which synthetic timers need",
    "stimer": "synthetic timers in place of an emulated one",
    "reset": "reset by a register",
    "frequencies": "frequencies of clock and APIC, without measuring them",
    "tlbflush": "a TLB flush of other vCPUs is one call",
    "ipi": "an interrupt to many vCPUs is one call",
    "avic": "the guest prefers what hardware interrupt virtualisation speeds up",
    "evmcs": "a hypervisor in the guest shares its VMCS in memory (Intel)",
}
"""Hyper-V enlightenments that are offered to Windows, in the order of their dependencies (QEMU, docs/system/i386/
hyperv.rst)."""
_NEEDS: Final = {"synic": "vpindex", "stimer": "synic", "tlbflush": "vpindex", "ipi": "vpindex", "evmcs": "vapic"}


def helpers(spec: VmSpec, facts: HostFacts, *, kvm: bool, pinned: bool, why: Reasons) -> Helpers:
    """The para-virtual helpers for this kind of guest."""
    if facts.driver != "QEMU":
        return Helpers()
    windows = spec.guest is Guest.WINDOWS
    if not kvm or facts.arch != "x86_64":
        reason = "TCG offers none: they are KVM's" if not kvm else f"none are set on {facts.arch}"
        why.chose("helpers", "none", reason, rejected=(Rejected("kvm, hyperv", "need KVM on x86-64"),))
        return Helpers(localtime=windows)
    match spec.guest:
        case Guest.LINUX:
            return _linux(pinned, why)
        case Guest.WINDOWS:
            return _windows(facts, why)
    why.chose("helpers", "QEMU's defaults", "the kind of guest is not known; guest: linux or windows says more")
    return Helpers()


def _linux(pinned: bool, why: Reasons) -> Helpers:
    why.chose(
        "helpers.clock",
        "kvmclock",
        "the guest reads time from a shared page, right also after a migration to a host of another frequency",
        rejected=(Rejected("hpet, acpi_pm", "each reading of the time would leave the guest"),),
    )
    common = "interrupts to many are one call; the guest sees what CPU time it lost"
    if pinned:
        # Linux leaves PV TLB flush alone where it is told that vCPUs are dedicated (arch/x86/kernel/kvm.c).
        idle = Rejected("PV TLB flush", "it spares vCPUs that do not run, and these always do")
        why.chose("helpers.kvm", "steal time, PV IPI, PV EOI, poll control", common, rejected=(idle,))
        why.chose(
            "helpers.locks",
            "hint-dedicated",
            "pinned vCPUs are not pre-empted: the guest takes plain queued spinlocks, and polls before it halts",
            rejected=(Rejected("PV spinlocks", "they help when vCPUs share CPUs, and cost when they do not"),),
        )
        return Helpers(("hint-dedicated", "poll-control", "pv-ipi"), None, (), ("kvmclock",))
    why.chose(
        "helpers.kvm",
        "steal time, PV TLB flush, PV IPI, PV EOI, poll control",
        f"vCPUs that do not run need no flush; {common}",
    )
    why.chose(
        "helpers.locks",
        "PV spinlocks",
        "a vCPU that waits for a lock sleeps, and is woken by who frees it",
        rejected=(Rejected("hint-dedicated", "only true of vCPUs that have CPUs of their own"),),
        expected=figures.PV_LOCKS,
    )
    return Helpers(("poll-control", "pv-ipi"), True, (), ("kvmclock",))


def _windows(facts: HostFacts, why: Reasons) -> Helpers:
    chosen: list[str] = []
    missing: list[Rejected] = []
    for name in HYPERV:
        if name == "evmcs" and facts.vendor != "Intel":
            missing.append(Rejected(name, "for Intel's VMX only"))
        elif name == "avic" and facts.virtual_interrupts is not True:
            missing.append(Rejected(name, "APICv or AVIC is not on, or not known to be"))
        elif facts.hyperv is not None and name not in facts.hyperv:
            missing.append(Rejected(name, "libvirt does not offer it on this host"))
        elif name in _NEEDS and _NEEDS[name] not in chosen:
            missing.append(Rejected(name, f"needs {_NEEDS[name]}"))
        else:
            chosen.append(name)
    why.chose(
        "helpers.hyperv",
        " ".join(chosen) or "none",
        "Windows knows them as Hyper-V's: " + "; ".join(f"{n}: {HYPERV[n]}" for n in chosen),
        rejected=tuple(missing),
    )
    why.chose(
        "helpers.clock",
        "hypervclock, localtime",
        "time from a shared page; Windows takes the hardware clock for local time",
        rejected=(Rejected("kvmclock", "Windows has no driver for it"),),
    )
    return Helpers((), None, tuple(chosen), ("hypervclock",), localtime=True)


def interrupts(
    facts: HostFacts, disks: Sequence[DiskDesign], nics: Sequence[NicDesign], *, kvm: bool, why: Reasons
) -> None:
    """How interrupts reach the guest: reported, for the host and the queues have settled it."""
    if facts.driver != "QEMU":
        return
    if kvm:
        name = {"Intel": "APICv", "AMD": "AVIC"}.get(facts.vendor, "APICv or AVIC")
        match facts.virtual_interrupts:
            case True:
                why.chose("interrupts.apic", name, "the CPU delivers interrupts without an exit")
            case False:
                rejected = (Rejected(name, "this host's KVM has it off, or the CPU lacks it"),)
                why.chose("interrupts.apic", "in-kernel APIC", "KVM emulates it: an exit each", rejected=rejected)
            case _:
                why.chose("interrupts.apic", "unknown", f"whether {name} is on could not be read")
        _assigned(facts, nics, why)
    vectors = [f"{d.device} {(d.queues or 1) + 1}" for d in disks if d.bus is Bus.VIRTIO]
    vectors += [f"nics[{n.index}] {2 * (n.queues or 1) + 2}" for n in nics if n.model == "virtio"]
    if vectors:
        why.chose("interrupts.msi-x", ", ".join(vectors), "vectors: one for each queue, and one for the device's state")


def _assigned(facts: HostFacts, nics: Sequence[NicDesign], why: Reasons) -> None:
    if not any(n.assigned for n in nics):
        return
    posted = {True: "posted", False: "through the host", None: "unknown"}[facts.posted_interrupts]
    reason = "interrupts of assigned devices" + (
        " go straight to the running vCPU" if facts.posted_interrupts else ": each is taken by the host first"
    )
    if facts.posted_interrupts is None:
        reason = "whether the IOMMU can post interrupts could not be read"
    why.chose("interrupts.assigned", posted, reason, expected=figures.EXITLESS)
    match facts.interrupt_remapping:
        case True:
            why.chose("interrupts.remapping", "on", "a device can raise only its own interrupts")
        case False:
            why.chose("interrupts.remapping", "off", "VFIO refuses devices without it, unless it is told to be unsafe")
