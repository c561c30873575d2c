"""From a spec and facts to a design: every choice in its turn. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkit.errors import ConflictError, SpecError
from vmkit.image.manifest import ImageKind
from vmkit.plan import Plan, Step
from vmkit.vm.choices import (
    accelerator,
    cpu,
    disk,
    display,
    growth,
    helpers,
    limits,
    memory,
    nic,
    placement,
    reserving,
    xen,
)
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.design import Design, NicDesign
from vmkit.vm.facts import HostFacts
from vmkit.vm.families import FAMILIES
from vmkit.vm.spec import VmSpec
from vmkit.vm.spec_parts import DisplayKind, Family, NicIo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmkit.image.manifest import Image


def decide(
    spec: VmSpec, facts: HostFacts, images: Mapping[str, Image], sizes: Mapping[str, int]
) -> tuple[Design, Plan]:
    """Decide how to build the VM.

    Args:
        spec: what was asked for.
        facts: the host it goes to.
        images: the images that the spec names.
        sizes: bytes of the disk that a guest sees, for those of them that have one.

    Raises:
        ConflictError: the name is taken. NotFoundError: a network is missing. UnsupportedError: the host cannot do it.
        RefusedError: there is no room. SpecError: a CPU model or machine that this host does not know.
    """
    if spec.name in facts.domains:
        raise ConflictError(
            f"there is a VM named '{spec.name}' on {facts.uri} already",
            hint=f"take another name, or delete it first: vmkit delete {spec.name}",
        )
    image = images[spec.image] if spec.image else None
    defaults = FAMILIES[spec.family]
    why = Reasons()
    _family(spec, why)
    domain_type = accelerator.accelerator(spec, facts, why)
    kvm = domain_type == "kvm"
    if facts.driver == "Xen":
        machine: str | None = xen.mode(spec, facts, why, direct=bool(image and image.kernel))
    else:
        machine = accelerator.machine(spec, facts, why)
    size = memory.size(spec, defaults, image, why)
    _vcpus(spec, facts, why)
    place = placement.place(spec, defaults, facts, size, why)
    most = growth.max_vcpus(spec, facts, place, why, kvm=kvm)
    room = growth.max_memory(spec, facts, size, why)
    chosen = cpu.cpu(spec, defaults, facts, domain_type, place.topology, why)
    assigned = bool(spec.devices) or any(n.io in (NicIo.PASSTHROUGH, NicIo.SRIOV) for n in spec.nics)
    backing = memory.backing(spec, defaults, facts, size, place.node, kvm=kvm, assigned=assigned, why=why)
    disks = disk.disks(spec, defaults, facts, sizes, machine, why)
    nics = nic.nics(spec, defaults, facts, machine, kvm=kvm, why=why)
    nics = reserving.reserved(spec, nics, facts, why)
    offered = helpers.helpers(spec, facts, kvm=kvm, pinned=_exclusive(place), why=why)
    helpers.interrupts(facts, disks, nics, kvm=kvm, why=why)
    design = Design(
        name=spec.name,
        domain_type=domain_type,
        arch=facts.arch,
        machine=machine,
        cpu=chosen,
        vcpus=spec.vcpus,
        memory=size,
        cmdline=_cmdline(spec, image, nics, xen.boot_words(machine, disks, nics), why),
        disks=disks,
        nics=nics,
        agent=facts.driver == "QEMU",
        qemu_args=spec.qemu_args,
        pinning=place.pinning,
        cpuset=place.cpuset,
        backing=backing,
        helpers=offered,
        limits=limits.limits(spec, facts, size, disks, nics, why),
        devices=tuple(d.address for d in spec.devices),
        max_vcpus=most,
        max_memory=room,
        spare_ports=growth.spare_ports(domain_type, machine),
        display=display.display(spec, facts, why),
    )
    if spec.qemu_args:
        why.chose("qemu_args", " ".join(spec.qemu_args), "asked for; libvirt marks the domain as tainted")
    return design, Plan(f"VM {spec.name} on {facts.uri}", tuple(why.choices), _steps(spec, design), tuple(why.warnings))


def _family(spec: VmSpec, why: Reasons) -> None:
    given = spec.family is not Family.GENERAL
    purpose = FAMILIES[spec.family].purpose
    why.chose("family", spec.family.value, f"{ASKED}: {purpose}" if given else f"the default: {purpose}")


def _vcpus(spec: VmSpec, facts: HostFacts, why: Reasons) -> None:
    why.chose("vcpus", spec.vcpus, ASKED if spec.vcpus != 1 else "the default")
    if spec.vcpus > facts.cpus:
        why.warn(f"{spec.vcpus} vCPUs on {facts.cpus} CPUs: they cannot all run at once")


def _exclusive(place: placement.Place) -> bool:
    """Whether each vCPU has CPUs that nothing else of this VM runs on, and no other vCPU shares."""
    if place.pinning is None:
        return False
    used = [n for cpus in place.pinning.vcpus for n in cpus]
    return len(used) == len(set(used)) and not set(used) & set(place.pinning.rest)


def _cmdline(
    spec: VmSpec, image: Image | None, cards: tuple[NicDesign, ...], xen_words: list[str], why: Reasons
) -> str | None:
    if image is None or image.kernel is None:
        if spec.cmdline:
            raise SpecError("only images that bring a kernel take a command line", path="cmdline")
        return None
    # The last console= is /dev/console, so that the screen comes before what the image names.
    words = ["console=tty0"] if spec.display is not DisplayKind.NONE else []
    words += [image.cmdline, f"vmkit.name={spec.name}"] if image.kind is ImageKind.MICRO else [image.cmdline]
    words += xen_words
    if image.kind is ImageKind.MICRO:
        words += _addresses(spec, cards)
        first = spec.nics[0].address if cards and cards[0].index == 0 else "none"
        if not (cards and cards[0].reserve):
            why.chose("address", first, "given to the guest on the kernel command line")
    words.append(spec.cmdline)
    why.chose(
        "boot",
        "direct kernel boot",
        f"the image '{image.name}' brings kernel and initramfs: no firmware, no boot loader",
    )
    return " ".join(w for w in words if w)


def _steps(spec: VmSpec, design: Design) -> tuple[Step, ...]:
    steps = []
    if spec.image:
        steps.append(Step("place", f"image '{spec.image}' on the host", "done once for each host and image"))
    steps += [
        Step("create", f"volume {d.volume}", f"overlay of '{d.backing}'" if d.backing else "empty disk")
        for d in design.disks
        if d.volume
    ]
    steps += [
        Step("reserve", f"{n.reserve} in network {n.source}", "so that nobody else gets it")
        for n in design.nics
        if n.reserve
    ]
    steps.append(Step("define", f"domain {design.name}", "so that it survives a restart of the host"))
    if spec.autostart:
        steps.append(Step("mark", f"domain {design.name} for autostart", "asked for"))
    steps.append(Step("start", f"domain {design.name}", ""))
    return tuple(steps)


def _addresses(spec: VmSpec, cards: tuple[NicDesign, ...]) -> list[str]:
    """What the micro guest is told about each card: `vmkit.ip=`, `vmkit.ip1=`, ...

    Which card is which it knows by the MAC address, where there are several or one comes up late. A failover pair is
    one card to it.
    """
    words = []
    macs = {card.index: card.mac for card in cards}
    for i, asked in enumerate(spec.nics):
        number = i or ""
        if i not in macs:
            words += [] if i else ["vmkit.ip=none"]
            continue
        # What the network keeps for the card it gives it too, with gateway and name server.
        kept = any(card.reserve for card in cards if card.index == i)
        words.append(f"vmkit.ip{number}={'dhcp' if kept else asked.address}")
        words += [f"vmkit.gw{number}={asked.gateway}"] if asked.gateway and not kept else []
        assigned = any(card.assigned for card in cards if card.index == i)
        words += [f"vmkit.mac{number}={macs[i]}"] if macs[i] and (assigned or len(macs) > 1) else []
    return words or ["vmkit.ip=none"]
