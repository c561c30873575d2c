"""How a VM is virtualised: every choice, with its reason. Pure: a spec and facts go in, a design comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkit.errors import ConflictError, NotFoundError, RefusedError, SpecError, UnsupportedError
from vmkit.image.manifest import ImageKind
from vmkit.plan import Choice, Plan, Step
from vmkit.values import Bytes
from vmkit.vm.facts import HostFacts
from vmkit.vm.spec import Accel, Bus, DiskIo, DiskSpec, Family, NicIo, NicModel, NicSpec, VmSpec, dump

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmkit.image.manifest import Image

MEMORY_SLACK: Final = 64 << 20
"""Bytes that QEMU takes beside the guest's memory: 40 to 60 MiB resident for small guests (measured with QEMU 10.0)."""
DEFAULT_MEMORY: Final = 256 << 20
"""Bytes of a guest that does not say, where its image needs no more."""
SPACE_NEEDED: Final = 32 << 20
"""Bytes that have to be free for an overlay's metadata and the first writes of a boot."""


@dataclass(frozen=True, slots=True)
class DiskDesign:
    """A disk as it will be. `volume` is its name in the pool; `backing` the image it overlays."""

    volume: str
    size: int
    backing: str | None
    bus: Bus
    device: str


@dataclass(frozen=True, slots=True)
class NicDesign:
    """A network card as it will be: `kind` is 'network', 'bridge' or 'user'; `source` the network or bridge."""

    kind: str
    source: str
    model: str
    mac: str | None


@dataclass(frozen=True, slots=True)
class Design:
    """All that the domain XML says, decided."""

    name: str
    domain_type: str
    arch: str
    machine: str | None
    cpu_mode: str | None
    cpu_model: str | None
    vcpus: int
    memory: Bytes
    cmdline: str | None
    disks: tuple[DiskDesign, ...]
    nics: tuple[NicDesign, ...]
    agent: bool
    qemu_args: tuple[str, ...]

    @property
    def accelerator(self) -> str:
        """'kvm', 'tcg', 'xen' or 'test'."""
        return "tcg" if self.domain_type == "qemu" else self.domain_type


def _refuse_unbuilt(spec: VmSpec) -> None:
    """Refuse what a spec may say and nothing here carries out yet."""
    plain = dump(spec)
    unbuilt = {"pinning", "hugepages", "locked", "balloon", "limits", "devices"}
    fields = sorted(unbuilt & set(plain))
    fields += ["family"] if spec.family is not Family.GENERAL else []
    fields += ["numa"] if spec.numa not in ("auto", "none") else []
    for kind in ("disks", "nics"):
        for i, part in enumerate(plain.get(kind, ())):
            wanted = {"iothread", "queues", "limits", "vhost"} & set(part)
            assigned = part.get("io") in (NicIo.PASSTHROUGH.value, NicIo.SRIOV.value)
            fields += [f"{kind}[{i}].{f}" for f in sorted(wanted | ({"io"} if assigned else set()))]
    if fields:
        raise UnsupportedError(f"{fields[0]}: not carried out by this version of vmkit", hint="leave it out")


class _Reasons:
    """Collects choices in the order in which they are made."""

    def __init__(self) -> None:
        self.choices: list[Choice] = []
        self.warnings: list[str] = []

    def chose(self, subject: str, value: object, reason: str) -> None:
        self.choices.append(Choice(subject, str(value), reason))


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
    _refuse_unbuilt(spec)
    memory = spec.memory if spec.memory is not None else max(DEFAULT_MEMORY, image.min_memory if image else 0)
    why = _Reasons()
    domain_type = _accelerator(spec, facts, why)
    machine = _machine(spec, facts, why)
    mode, model = _cpu(spec, facts, domain_type, why)
    _size(spec, Bytes(memory), facts, image, why)
    disks = _disks(spec, facts, sizes, why)
    nics = tuple(d for i, nic in enumerate(spec.nics) if (d := _nic(nic, i, facts, why)))
    design = Design(
        name=spec.name,
        domain_type=domain_type,
        arch=facts.arch,
        machine=machine,
        cpu_mode=mode,
        cpu_model=model,
        vcpus=spec.vcpus,
        memory=Bytes(memory),
        cmdline=_cmdline(spec, image, why),
        disks=disks,
        nics=nics,
        agent=facts.driver == "QEMU",
        qemu_args=spec.qemu_args,
    )
    if spec.qemu_args:
        why.chose("qemu_args", " ".join(spec.qemu_args), "asked for; libvirt marks the domain as tainted")
    return design, Plan(f"VM {spec.name} on {facts.uri}", tuple(why.choices), _steps(spec, design), tuple(why.warnings))


def _accelerator(spec: VmSpec, facts: HostFacts, why: _Reasons) -> str:
    if facts.driver != "QEMU":
        kind = next(iter(sorted(facts.domain_types)), facts.driver.lower())
        if spec.accel is not Accel.AUTO:
            raise UnsupportedError(f"accel: {spec.accel.value} is for QEMU hosts, {facts.uri} is {facts.driver}")
        why.chose("accel", kind, f"the only one that the driver {facts.driver} has")
        return kind
    kvm = facts.kvm
    if spec.accel is Accel.TCG or spec.cpu == "emulated":
        why.chose("accel", "tcg", "asked for")
        return "qemu"
    if kvm is not None and kvm.works:
        why.chose("accel", "kvm", kvm.reason)
        return "kvm"
    reason = kvm.reason if kvm else "KVM was not probed"
    if spec.accel is Accel.KVM:
        raise UnsupportedError(f"accel: kvm does not work on {facts.uri}: {reason}", hint="use accel: auto or tcg")
    why.chose("accel", "tcg", reason)
    why.warnings.append(f"no KVM: {reason}; the guest is emulated by TCG, which is much slower")
    return "qemu"


def _machine(spec: VmSpec, facts: HostFacts, why: _Reasons) -> str | None:
    if facts.driver != "QEMU":
        return None
    if spec.machine != "auto":
        if spec.machine not in facts.machines:
            raise SpecError(
                f"{facts.uri} has no machine type '{spec.machine}'", path="machine", hint="try auto, q35 or pc"
            )
        why.chose("machine", spec.machine, "asked for")
        return spec.machine
    for name, reason in (
        ("q35", "PCI Express, AHCI and an IOMMU model; the successor of pc"),
        ("virt", "for this CPU"),
    ):
        if name in facts.machines:
            why.chose("machine", name, reason)
            return name
    return None


def _cpu(spec: VmSpec, facts: HostFacts, domain_type: str, why: _Reasons) -> tuple[str | None, str | None]:
    if facts.driver != "QEMU":
        return None, None
    match spec.cpu if spec.cpu != "emulated" else "auto":
        case "auto" if domain_type == "kvm":
            why.chose("cpu", "host-model", "nearly all of the host's features, and can still move to a similar host")
            return "host-model", None
        case "auto":
            why.chose("cpu", "qemu64", "TCG: the plain model emulates fastest and moves to any host")
            return "custom", "qemu64"
        case "host" if domain_type == "kvm":
            why.chose("cpu", "host-passthrough", "asked for; moves only to hosts with the same CPU")
            return "host-passthrough", None
        case "host" | "maximum":
            reason = "asked for" if spec.cpu == "maximum" else "'host' under TCG means all that TCG can emulate"
            why.chose("cpu", "maximum", reason)
            return "maximum", None
    known = facts.cpu_models.get(domain_type, frozenset())
    if spec.cpu not in known:
        import difflib

        near = difflib.get_close_matches(spec.cpu, known, n=3, cutoff=0.5)
        hint = f"usable here: {', '.join(near)}" if near else "auto, host or maximum always work"
        raise SpecError(f"no guest of {facts.uri} can have the CPU '{spec.cpu}'", path="cpu", hint=hint)
    why.chose("cpu", spec.cpu, "asked for")
    return "custom", spec.cpu


def _size(spec: VmSpec, memory: Bytes, facts: HostFacts, image: Image | None, why: _Reasons) -> None:
    if image and memory < image.min_memory:
        raise SpecError(
            f"{memory} is less than the image '{image.name}' needs",
            path="memory",
            hint=f"{image.min_memory} or more",
        )
    needed = memory + MEMORY_SLACK
    if facts.driver == "QEMU" and facts.memory_free is not None and needed > facts.memory_free:
        raise RefusedError(
            f"{spec.name} needs {Bytes(needed)} of memory, {facts.uri} has {Bytes(facts.memory_free)} free",
            hint="give it less memory, or stop another VM",
        )
    why.chose("memory", memory, "asked for" if spec.memory is not None else "the default")
    why.chose("vcpus", spec.vcpus, "asked for" if spec.vcpus != 1 else "the default")
    if spec.vcpus > facts.cpus:
        why.warnings.append(f"{spec.vcpus} vCPUs on {facts.cpus} CPUs: they cannot all run at once")


def _disks(spec: VmSpec, facts: HostFacts, sizes: Mapping[str, int], why: _Reasons) -> tuple[DiskDesign, ...]:
    wanted = spec.disks
    if not wanted and spec.image in sizes:
        wanted = (DiskSpec(),)
    designs: list[DiskDesign] = []
    letters = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd"}
    counts: dict[str, int] = {}
    for i, disk in enumerate(wanted):
        backing = disk.image if disk.image is not None else spec.image if i == 0 and spec.image in sizes else None
        backing = backing or None
        if backing and backing not in sizes:
            raise SpecError(f"the image '{backing}' has no disk", path=f"disks[{i}].image", hint="give a size instead")
        least = sizes[backing] if backing else 0
        size = disk.size if disk.size is not None else least
        if size < least:
            raise SpecError(
                f"{Bytes(size)} is less than the image's {Bytes(least)}",
                path=f"disks[{i}].size",
                hint=f"{Bytes(least)} or more",
            )
        if not size:
            raise SpecError("needs a size", path=f"disks[{i}].size", hint="write it like 10G")
        chosen = disk.bus or (Bus.SATA if disk.io is DiskIo.EMULATED else Bus.VIRTIO)
        prefix = letters[chosen.value]
        device = prefix + _letters(counts.get(prefix, 0))
        counts[prefix] = counts.get(prefix, 0) + 1
        reason = (
            f"qcow2 overlay of the image '{backing}': made at once, shares its blocks" if backing else "empty qcow2"
        )
        why.chose(f"disks[{i}]", f"{device} {Bytes(size)}", reason)
        bus = {
            Bus.VIRTIO: "para-virtual, fastest without assigning a device",
            Bus.SCSI: "virtio-scsi: para-virtual, many disks on one controller",
            Bus.SATA: "emulated AHCI, for guests without virtio drivers",
            Bus.IDE: "emulated IDE, for guests without AHCI drivers",
        }
        why.chose(f"disks[{i}].bus", chosen.value, bus[chosen])
        designs.append(DiskDesign(f"{spec.name}-{i}.qcow2", size, backing, chosen, device))
    if designs and facts.pool_free is not None and facts.driver == "QEMU" and facts.pool_free < SPACE_NEEDED:
        raise RefusedError(
            f"no space: {Bytes(facts.pool_free)} left in {facts.pool_folder} on {facts.uri}",
            hint=f"at least {Bytes(SPACE_NEEDED)} are needed; delete what is not used, or grow the file system",
        )
    return tuple(designs)


def _letters(n: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa: how Linux counts disks."""
    text = ""
    n += 1
    while n:
        n, digit = divmod(n - 1, 26)
        text = chr(97 + digit) + text
    return text


def _nic(nic: NicSpec, i: int, facts: HostFacts, why: _Reasons) -> NicDesign | None:
    subject = f"nics[{i}]"
    network, reason = nic.network, "asked for"
    if network == "auto":
        network, reason = _auto_network(facts)
    if network == "none":
        why.chose(subject, "none", reason)
        return None
    if network == "user":
        kind, source = "user", ""
    elif network.startswith("bridge:"):
        kind, source = "bridge", network.removeprefix("bridge:")
    else:
        kind, source = "network", network
        if network not in facts.networks:
            there = ", ".join(sorted(facts.networks)) or "none"
            raise NotFoundError(
                f"{subject}.network: no network '{network}' on {facts.uri}",
                hint=f"there is: {there}; 'user' needs none",
            )
    why.chose(subject, network, reason)
    models = {
        "virtio": "para-virtual",
        "e1000": "emulated, for guests without virtio",
        "e1000e": "emulated, PCI Express",
        "rtl8139": "emulated, the oldest",
    }
    model = nic.model or (NicModel.E1000E if nic.io is NicIo.EMULATED else NicModel.VIRTIO)
    why.chose(f"{subject}.model", model.value, models[model.value])
    return NicDesign(kind, source, model.value, nic.mac.lower() if nic.mac else None)


def _auto_network(facts: HostFacts) -> tuple[str, str]:
    if facts.driver == "TEST" and "default" in facts.networks:
        return "default", "libvirt's default network"
    active = sorted(n for n, on in facts.networks.items() if on)
    if "default" in active:
        return "default", "libvirt's default network is active"
    if len(active) == 1:
        return active[0], "the only active network of this host"
    reason = (
        f"no network 'default' is active, and there are {len(active)} others"
        if active
        else "no libvirt network is active"
    )
    return "user", f"{reason}: QEMU's own NAT, which reaches out but cannot be reached"


def _cmdline(spec: VmSpec, image: Image | None, why: _Reasons) -> str | None:
    if image is None or image.kernel is None:
        if spec.cmdline:
            raise SpecError("only images that bring a kernel take a command line", path="cmdline")
        return None
    words = [image.cmdline, f"vmkit.name={spec.name}"] if image.kind is ImageKind.MICRO else [image.cmdline]
    if image.kind is ImageKind.MICRO:
        nic = spec.nics[0] if spec.nics and spec.nics[0].network != "none" else None
        words.append(f"vmkit.ip={nic.address if nic else 'none'}")
        if nic and nic.gateway:
            words.append(f"vmkit.gw={nic.gateway}")
        why.chose("address", nic.address if nic else "none", "given to the guest on the kernel command line")
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
    ]
    steps.append(Step("define", f"domain {design.name}", "so that it survives a restart of the host"))
    if spec.autostart:
        steps.append(Step("mark", f"domain {design.name} for autostart", "asked for"))
    steps.append(Step("start", f"domain {design.name}", ""))
    return tuple(steps)
