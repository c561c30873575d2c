"""Which modes are measured with which guests, and what is left out and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from vmkit.bench.card import PREFIX as CARD_PREFIX
from vmkit.bench.card import Card
from vmkit.bench.workloads import DISK_MIB, Workload
from vmkit.errors import SpecError
from vmkit.host.measured import Area, Mode, Skipped

PREFIX: Final = "vmkit-bench-"
"""Of the names of everything that a bench makes on a host."""
BRIDGE: Final = "vmkit-bench0"
"""Bridge of the host that the guest's cards are ports of: it leads nowhere else."""
BRIDGE_MAC: Final = "52:54:00:be:0c:ff"
MEMORY: Final = "320M"

COMPUTE: Final = (Mode.NESTED, Mode.SHADOW, Mode.TCG)
DISKS: Final = (Mode.VIRTIO, Mode.EMULATED)
NICS: Final = (Mode.VHOST, Mode.VIRTIO, Mode.EMULATED, Mode.VF)
DEFAULT_MODES: Final = tuple(Mode)


@dataclass(frozen=True, slots=True)
class Facts:
    """What of the host decides.

    Attributes:
        kvm: whether a probe guest ran on KVM.
        why_not_kvm: the reason, where it did not.
        paging: 'nested' or 'shadow' as KVM is now; None if it does not say.
        module: kernel module that a change of paging reloads; None if there is none.
        others: names of VMs that run on the host.
        vhost: whether virtio NICs can have vhost.
        card: the card that can lend a virtual function; None if there is none.
        why_not_card: the reason, where there is none.
        root: whether this process may reload modules and join networks.
        local: whether the host is this machine.
    """

    kvm: bool
    why_not_kvm: str
    paging: str | None
    module: str | None
    others: tuple[str, ...]
    vhost: bool
    root: bool
    local: bool
    card: Card | None = None
    why_not_card: str = ""


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that is made.

    Attributes:
        mode: how its CPU is virtualised: NESTED, SHADOW or TCG.
        disks, nics: the roads that are measured in it, in the order of its devices.
        card: the card whose virtual function is the last of its NICs, where VF is among them.
    """

    mode: Mode
    disks: tuple[Mode, ...] = ()
    nics: tuple[Mode, ...] = ()
    card: Card | None = None

    @property
    def accelerator(self) -> str:
        """'kvm' or 'tcg'."""
        return "tcg" if self.mode is Mode.TCG else "kvm"

    @property
    def name(self) -> str:
        """Name of its VM."""
        return f"{PREFIX}{self.mode.value}"

    def ends(self, mode: Mode) -> tuple[str, str]:
        """Addresses of host and guest on the road `mode`."""
        if mode is Mode.VF and self.card is not None:
            return self.card.host, self.card.guest
        return subnet(self.nics.index(mode))

    @property
    def bridged(self) -> int:
        """How many of its NICs are ports of the host's bridge; they come first."""
        return len(self.nics) - (Mode.VF in self.nics)

    def without_card(self) -> Guest:
        """The same without a virtual function."""
        return replace(self, nics=tuple(m for m in self.nics if m is not Mode.VF), card=None)


@dataclass(frozen=True, slots=True)
class Layout:
    """What is done.

    Attributes:
        phases: guests that run side by side; the paging of KVM is changed between phases.
        skipped: what is not measured.
        reload: whether the paging of KVM is changed.
    """

    phases: tuple[tuple[Guest, ...], ...]
    skipped: tuple[Skipped, ...]
    reload: bool

    def order(self, repeats: int) -> list[int]:
        """Numbers of the phases for so many repetitions: to and fro (0 1 1 0), so that a drift hits all alike."""
        numbers = list(range(len(self.phases)))
        return [n for i in range(repeats) for n in (numbers if i % 2 == 0 else numbers[::-1])]


def lay_out(facts: Facts, modes: tuple[Mode, ...], workloads: tuple[Workload, ...], *, shadow: bool) -> Layout:
    """Decide.

    Args:
        facts: of the host.
        modes: that are wanted.
        workloads: that are wanted.
        shadow: whether the paging of KVM may be changed, by loading its module again.

    Raises:
        SpecError: nothing is left to measure.
    """
    areas = {w.area for w in workloads}
    skipped: list[Skipped] = []
    compute = bool(areas & {Area.CPU, Area.MEMORY})
    cpus = _cpu_modes(facts, modes, shadow, skipped) if compute or areas & {Area.DISK, Area.NETWORK} else []
    # Disk and network go with the fastest way to run a guest: what they cost would drown in another.
    disks = tuple(m for m in DISKS if m in modes) if Area.DISK in areas else ()
    nics = _nics(facts, modes, skipped) if Area.NETWORK in areas else ()
    carrier = cpus[0] if cpus else None
    guests = [
        Guest(m, disks, nics, facts.card if Mode.VF in nics else None) if m is carrier else Guest(m)
        for m in cpus
        if compute or (m is carrier and (disks or nics))
    ]
    if not guests and Mode.NATIVE not in modes:
        raise SpecError(
            "nothing is left to measure",
            path="modes",
            hint="name modes and workloads that go together",
            details=tuple(f"{s.mode.value}: {s.reason}" for s in skipped),
        )
    current = Mode.SHADOW if facts.paging == "shadow" else Mode.NESTED
    first = tuple(g for g in guests if g.mode in (current, Mode.TCG))
    second = tuple(g for g in guests if g not in first)
    phases = tuple(p for p in (first, second) if p) or ((),)
    return Layout(phases, tuple(skipped), reload=bool(second))


def _cpu_modes(facts: Facts, modes: tuple[Mode, ...], shadow: bool, skipped: list[Skipped]) -> list[Mode]:
    current = Mode.SHADOW if facts.paging == "shadow" else Mode.NESTED
    found: list[Mode] = []
    for mode in COMPUTE:
        if mode not in modes:
            continue
        if mode is Mode.TCG:
            found.append(mode)
        elif not facts.kvm:
            skipped.append(Skipped(mode, f"KVM runs no guest here: {facts.why_not_kvm}"))
        elif mode is current or not _cannot_reload(facts, mode, shadow, skipped):
            found.append(mode)
    return found


def _cannot_reload(facts: Facts, mode: Mode, shadow: bool, skipped: list[Skipped]) -> bool:
    if not shadow:
        reason = "KVM's module has to be loaded again for it: --shadow permits that while no VM runs"
    elif facts.module is None:
        reason = "KVM is not a module of a kind whose paging can be chosen (kvm_intel, kvm_amd)"
    elif not facts.local:
        reason = "KVM's module can be loaded again on this machine only, not on another host"
    elif not facts.root:
        reason = "loading KVM's module again takes root"
    elif facts.others:
        reason = f"KVM's module is in use by {', '.join(facts.others)}"
    else:
        return False
    skipped.append(Skipped(mode, reason))
    return True


def _nics(facts: Facts, modes: tuple[Mode, ...], skipped: list[Skipped]) -> tuple[Mode, ...]:
    wanted = tuple(m for m in NICS if m in modes)
    if not facts.root:
        skipped.extend(Skipped(m, "a network between host and guest takes root", Area.NETWORK) for m in wanted)
        return ()
    if Mode.VHOST in wanted and not facts.vhost:
        skipped.append(Skipped(Mode.VHOST, "there is no /dev/vhost-net: modprobe vhost_net", Area.NETWORK))
        wanted = tuple(m for m in wanted if m is not Mode.VHOST)
    if Mode.VF in wanted and facts.card is None:
        skipped.append(Skipped(Mode.VF, facts.why_not_card, Area.NETWORK))
        wanted = tuple(m for m in wanted if m is not Mode.VF)
    return wanted


def subnet(index: int) -> tuple[str, str]:
    """Addresses (prefix 29) of host and guest on the network of the guest's card `index`, in TEST-NET-1 (RFC 5737)."""
    return f"192.0.2.{8 * index + 1}", f"192.0.2.{8 * index + 2}"


def spec(guest: Guest, image: str) -> dict[str, Any]:
    """The VM of a guest, as `vmkit.vm.spec.parse` takes it. The first disk holds the programs."""
    disks: list[dict[str, Any]] = [{}]
    disks += [
        {"size": f"{DISK_MIB}M", "image": "", "io": "virtio" if m is Mode.VIRTIO else "emulated"} for m in guest.disks
    ]
    nics = [_nic(guest, i, mode) for i, mode in enumerate(guest.nics)]
    return {
        "name": guest.name,
        "image": image,
        "vcpus": 1,
        "memory": MEMORY,
        "accel": guest.accelerator,
        "disks": disks,
        "nics": nics or [{"network": "none", "address": "none"}],
        "labels": {"made-by": "vmkit bench host"},
    }


def _nic(guest: Guest, index: int, mode: Mode) -> dict[str, Any]:
    address = guest.ends(mode)[1]
    if mode is Mode.VF and guest.card is not None:
        card = guest.card
        return {"io": "sriov", "pf": card.net, "address": f"{address}/{CARD_PREFIX}", "mac": card.mac}
    nic = {"network": f"bridge:{BRIDGE}", "address": f"{address}/29", "mac": f"52:54:00:be:0c:{index:02x}"}
    if mode is Mode.EMULATED:
        return nic | {"io": "emulated", "model": "e1000"}
    return nic | {"io": "virtio", "vhost": "on" if mode is Mode.VHOST else "off"}


def device(mode: Mode) -> str:
    """Name of a disk in the guest. Virtio disks follow the one with the programs; others have letters of their own."""
    return "/dev/vdb" if mode is Mode.VIRTIO else "/dev/sda"
