"""In which of Xen's modes a guest runs, and by what devices it reaches the world. Pure.

Modes are named as libvirt names their machine types: `machine: xenpv`, `xenpvh` or `xenfv` asks for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkit.errors import SpecError, UnsupportedError
from vmkit.plan import Rejected
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.facts import HostFacts
from vmkit.vm.spec_parts import Bus, DiskIo, DiskSpec, NicIo, NicSpec

if TYPE_CHECKING:
    from vmkit.vm.design import DiskDesign, NicDesign
    from vmkit.vm.spec import VmSpec

PV: Final = "xenpv"
PVH: Final = "xenpvh"
HVM: Final = "xenfv"
NETFRONT: Final = "netfront"
"""libvirt's name for Xen's own network card."""
REASONS: Final = {
    PV: "PV: the guest knows Xen, and asks it for each change of its page tables; needs no hardware virtualisation",
    PVH: "PVH: the hardware runs the guest and maps its memory; no firmware, and no device is emulated",
    HVM: "HVM: a whole PC with firmware, emulated by QEMU in dom0, for whatever boots from a disk",
}
PAGING: Final = {
    PV: ("direct", "the CPU walks the guest's own tables, and Xen checks each change of them"),
    PVH: ("HAP", "nested paging: the CPU walks the guest's tables and Xen's"),
    HVM: ("HAP", "nested paging: the CPU walks the guest's tables and Xen's"),
}
"""How memory of each mode is mapped, and what that means."""
DISK: Final = "blkfront: requests travel in memory that the guest grants dom0"
NIC: Final = "packets travel in memory that the guest grants dom0"
_AGAINST: Final = {
    PV: "each change of its page tables is a call of the hypervisor",
    PVH: "it needs hardware virtualisation, and a kernel that it can begin with",
    HVM: "a firmware to boot by, and a QEMU in dom0 that the guest could attack",
}
_EMULATED: Final = Rejected("emulated", "a register access for each step, and each is carried to QEMU in dom0")
_ALL: Final = "take the same sort for all of them"


def mode(spec: VmSpec, facts: HostFacts, why: Reasons, *, direct: bool) -> str:
    """The mode. `direct` says that the image brings a kernel to begin with.

    Raises:
        SpecError: Xen has no such mode here.
        UnsupportedError: the image boots from its disk, and Xen runs no HVM guests here.
    """
    there = [m for m in (PVH, PV, HVM) if m in facts.machines]
    if spec.machine != "auto":
        chosen = spec.machine
        if chosen not in there:
            raise SpecError(
                f"there is no mode '{chosen}' of Xen on {facts.uri}",
                path="machine",
                hint=f"auto, or {', '.join(there)}",
            )
        if not direct and chosen != HVM:
            raise SpecError(f"{chosen} needs an image with a kernel", path="machine", hint=f"machine: {HVM}")
    elif direct and there:
        chosen = there[0]
    elif HVM in there:
        chosen = HVM
    else:
        raise UnsupportedError(
            f"there are no HVM guests on {facts.uri}, and '{spec.image or spec.name}' boots from a disk",
            hint="vmkit doctor says what is missing; images with a kernel run as PV",
        )
    rejected = tuple(Rejected(m, _AGAINST[m]) for m in (PV, PVH, HVM) if m != chosen and m in there)
    reason = f"{ASKED}; {REASONS[chosen]}" if spec.machine != "auto" else REASONS[chosen]
    why.chose("machine", chosen, reason, rejected=rejected)
    why.chose("memory.paging", *PAGING[chosen])
    return chosen


def boot_words(machine: str | None, disks: tuple[DiskDesign, ...], nics: tuple[NicDesign, ...]) -> list[str]:
    """What the kernel's command line says of Xen's devices, after what the image says.

    An HVM guest has each device twice, as Xen's own and emulated, and its kernel unplugs the emulated ones of a kind
    unless it is told otherwise: xen_emul_unplug in the kernel's kernel-parameters.txt.

    Raises:
        SpecError: devices of both sorts, of one kind.
    """
    if machine not in (PV, PVH, HVM):
        return []
    words = ["console=hvc0"]
    disk_sorts = {d.bus is Bus.IDE for d in disks}
    nic_sorts = {n.model != NETFRONT for n in nics}
    if len(disk_sorts) > 1:
        raise SpecError("a guest on Xen has emulated disks or Xen's own, not both", path="disks", hint=_ALL)
    if len(nic_sorts) > 1:
        raise SpecError("a guest on Xen has emulated cards or Xen's own, not both", path="nics", hint=_ALL)
    kept = {(True, True): "never", (True, False): "nics", (False, True): "ide-disks"}
    # Where there is no device of a kind it goes with the other kind.
    emulated = (True in (disk_sorts or nic_sorts), True in (nic_sorts or disk_sorts))
    return words + ([f"xen_emul_unplug={kept[emulated]}"] if True in emulated else [])


def disk_bus(disk: DiskSpec, i: int, machine: str | None, why: Reasons) -> Bus:
    """How the disk is attached: Bus.VIRTIO stands for the para-virtual road, which is Xen's own here.

    Raises:
        SpecError: a bus that this mode has not.
    """
    emulated = disk.bus is Bus.IDE or (disk.bus is None and disk.io is DiskIo.EMULATED)
    if disk.bus not in (None, Bus.IDE) or (emulated and machine != HVM):
        raise SpecError(
            f"{machine} has no such disk", path=f"disks[{i}].bus", hint="leave it out; HVM guests can have ide"
        )
    if emulated:
        why.chose(f"disks[{i}].bus", "ide", f"emulated IDE; {ASKED}")
        return Bus.IDE
    why.chose(
        f"disks[{i}].bus",
        "xen",
        DISK,
        rejected=(_EMULATED,),
    )
    return Bus.VIRTIO


def nic_model(nic: NicSpec, i: int, kind: str, machine: str | None, why: Reasons) -> str:
    """Which card the guest sees.

    Raises:
        SpecError: a card or a network that this mode has not.
    """
    if kind == "user":
        raise SpecError(
            "there is no network of QEMU's own on Xen", path=f"nics[{i}].network", hint="name a network, or none"
        )
    emulated = nic.model is not None or nic.io is NicIo.EMULATED
    model = nic.model.value if nic.model else "e1000"
    if emulated and (machine != HVM or model not in ("e1000", "rtl8139")):
        raise SpecError(
            f"{machine} has no card '{model}'",
            path=f"nics[{i}].model",
            hint="leave it out; HVM guests can have e1000 or rtl8139",
        )
    if emulated:
        why.chose(f"nics[{i}].model", model, f"emulated; {ASKED}")
        return model
    why.chose(f"nics[{i}].model", NETFRONT, NIC, rejected=(_EMULATED,))
    return NETFRONT
