"""What runs the guest's instructions, on which machine: KVM or the emulator, q35 or another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkit.errors import SpecError, UnsupportedError
from vmkit.host import figures
from vmkit.plan import Rejected
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.facts import HostFacts
from vmkit.vm.spec_parts import Accel

if TYPE_CHECKING:
    from vmkit.vm.spec import VmSpec

_SLOWER = Rejected("tcg", "translates every instruction of the guest in software")
_PV = Rejected("para-virtual CPU", "Xen PV alone has it; hardware virtualisation has replaced it")


def accelerator(spec: VmSpec, facts: HostFacts, why: Reasons) -> str:
    """The domain type in libvirt's words: 'kvm', 'qemu' for TCG, or what the driver has.

    Raises:
        UnsupportedError: KVM was asked for, and does not work.
    """
    if facts.driver != "QEMU":
        return _only_one(spec, facts, why)
    kvm = facts.kvm
    if spec.accel is Accel.TCG or spec.cpu == "emulated":
        field = "accel: tcg" if spec.accel is Accel.TCG else "cpu: emulated"
        why.chose(
            "accel",
            "tcg",
            f"{ASKED} ({field})",
            rejected=(Rejected("kvm", "emulation was asked for"),),
            expected=figures.EMULATION,
        )
        return "qemu"
    if kvm is not None and kvm.works:
        shadow = facts.paging == "shadow"
        why.chose(
            "accel",
            "kvm",
            kvm.reason,
            rejected=(_SLOWER, _PV),
            expected=figures.SHADOW if shadow else figures.NESTED,
        )
        return "kvm"
    reason = kvm.reason if kvm else "KVM was not probed"
    if spec.accel is Accel.KVM:
        raise UnsupportedError(f"accel: kvm does not work on {facts.uri}: {reason}", hint="use accel: auto or tcg")
    why.chose("accel", "tcg", reason, rejected=(Rejected("kvm", reason), _PV), expected=figures.EMULATION)
    why.warn(f"no KVM: {reason}; the guest is emulated by TCG, which is much slower")
    return "qemu"


def _only_one(spec: VmSpec, facts: HostFacts, why: Reasons) -> str:
    kind = next(iter(sorted(facts.domain_types)), facts.driver.lower())
    if spec.accel is not Accel.AUTO or spec.cpu == "emulated":
        field = f"accel: {spec.accel.value}" if spec.accel is not Accel.AUTO else "cpu: emulated"
        raise UnsupportedError(
            f"{field} is for QEMU hosts, {facts.uri} is {facts.driver}", hint="leave it out, or take another host"
        )
    why.chose("accel", kind, f"the only one that the driver {facts.driver} has")
    return kind


def machine(spec: VmSpec, facts: HostFacts, why: Reasons) -> str | None:
    """The machine type; None leaves it to the driver.

    Raises:
        SpecError: this host has none of that name.
    """
    if facts.driver != "QEMU":
        return None
    if spec.machine != "auto":
        if spec.machine not in facts.machines:
            raise SpecError(
                f"{facts.uri} has no machine type '{spec.machine}'", path="machine", hint="try auto, q35 or pc"
            )
        why.chose("machine", spec.machine, ASKED)
        return spec.machine
    if "q35" in facts.machines:
        why.chose(
            "machine",
            "q35",
            "PCI Express, AHCI and an IOMMU model; the successor of pc",
            rejected=(Rejected("pc", "plain PCI only: no PCI Express for assigned devices; IDE in place of AHCI"),),
        )
        return "q35"
    if "virt" in facts.machines:
        why.chose("machine", "virt", "for this CPU")
        return "virt"
    return None
