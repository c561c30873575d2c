"""A VM as it was decided: all that its domain XML says, in vmkit's own words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmkit.values import Bytes
from vmkit.vm.forward import Forward
from vmkit.vm.spec_parts import Bus, DiskLimits, LimitsSpec, NicLimits

_NO_LIMITS: Final = LimitsSpec()
_NO_DISK_LIMITS: Final = DiskLimits()
_NO_NIC_LIMITS: Final = NicLimits()


@dataclass(frozen=True, slots=True)
class CpuDesign:
    """The virtual CPU.

    Attributes:
        mode: 'host-model', 'host-passthrough', 'maximum' or 'custom'.
        model: named model of 'custom'.
        migratable: leave out features that keep a guest from moving; None where the mode does not know it.
        cache_passthrough: the guest sees the host's caches, so that it lays out its data for them.
        topology: sockets, cores of each, threads of each; None leaves it to QEMU.
    """

    mode: str
    model: str | None = None
    migratable: bool | None = None
    cache_passthrough: bool = False
    topology: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Pinning:
    """Host CPUs of each vCPU in order, and those of the rest: QEMU's own threads and I/O threads."""

    vcpus: tuple[tuple[int, ...], ...]
    rest: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Backing:
    """What the guest's memory lies on.

    Attributes:
        page: bytes of the host's pages; None for ordinary ones.
        locked: kept from being swapped.
        node: NUMA node of the host; None leaves it to the kernel.
        balloon: the guest can give memory back.
    """

    page: int | None = None
    locked: bool = False
    node: int | None = None
    balloon: bool = True


@dataclass(frozen=True, slots=True)
class Helpers:
    """What the hypervisor offers a guest that knows that it is one.

    Attributes:
        kvm: elements of libvirt's <features><kvm>.
        pvspinlock: para-virtual spinlocks; None leaves it to QEMU.
        hyperv: elements of libvirt's <features><hyperv>.
        timers: names of para-virtual clocks: 'kvmclock', 'hypervclock'.
        localtime: the hardware clock shows local time, as Windows takes it.
    """

    kvm: tuple[str, ...] = ()
    pvspinlock: bool | None = None
    hyperv: tuple[str, ...] = ()
    timers: tuple[str, ...] = ()
    localtime: bool = False


@dataclass(frozen=True, slots=True)
class DiskDesign:
    """A disk as it will be.

    Attributes:
        volume: its name in the pool; '' for a block device of the host.
        size: bytes that the guest sees; 0 for a block device of the host.
        backing: the image that it overlays.
        bus, device: how it is attached, and libvirt's name for it.
        source: block device of the host; None for a volume.
        iothread: number of the thread that serves it, from 1; None for QEMU's main loop.
        queues: virtio queues; None leaves it to QEMU.
        cache, io: QEMU's cache mode and asynchronous I/O; None leaves it to QEMU.
        limits: as in the spec.
    """

    volume: str
    size: int
    backing: str | None
    bus: Bus
    device: str
    source: str | None = None
    iothread: int | None = None
    queues: int | None = None
    cache: str | None = None
    io: str | None = None
    limits: DiskLimits = _NO_DISK_LIMITS


@dataclass(frozen=True, slots=True)
class SeedDesign:
    """The read-only disk that cloud-init reads: name of its volume, and how it is attached."""

    volume: str
    bus: Bus
    device: str


@dataclass(frozen=True, slots=True)
class NicDesign:
    """A network card as it will be.

    Attributes:
        kind: 'network', 'bridge' or 'user'; 'vf' for a virtual function, whose address is found when the VM is made;
            'pci' for a whole device.
        source: the network, the bridge, or the device's PCI address.
        model: which card the guest sees; '' for an assigned one.
        mac: None lets libvirt pick.
        index: its number in the spec's `nics`.
        vhost: True and False force the kernel's or QEMU's own back end; None leaves it to libvirt.
        queues: pairs of virtio queues; None for one.
        limits: as in the spec.
        vlan: of a virtual function.
        forward: ports of the host that lead to it; only of kind 'user', and then it is not libvirt's.
        reserve: the address that its network keeps for its MAC address; '' for none.
        team: 'persistent' for the virtio NIC of a failover pair, 'transient' for its virtual function; else None.
    """

    kind: str
    source: str
    model: str
    mac: str | None
    index: int = 0
    vhost: bool | None = None
    queues: int | None = None
    limits: NicLimits = _NO_NIC_LIMITS
    vlan: int | None = None
    team: str | None = None
    forward: tuple[Forward, ...] = ()
    reserve: str = ""

    @property
    def assigned(self) -> bool:
        """Whether it is a device of the host, and not one of QEMU's."""
        return self.kind in ("vf", "pci")


@dataclass(frozen=True, slots=True)
class Design:
    """All that the domain XML says, decided. `cpuset` are the host CPUs that all vCPUs keep to; empty for any.

    `max_vcpus` (0: as many as `vcpus`) and `max_memory` (None: as much as `memory`) are what it can grow to while it
    runs, `spare_ports` the PCI Express ports that are kept free for devices. `display` is 'vnc', 'spice' or None.
    """

    name: str
    domain_type: str
    arch: str
    machine: str | None
    cpu: CpuDesign | None
    vcpus: int
    memory: Bytes
    cmdline: str | None
    disks: tuple[DiskDesign, ...]
    nics: tuple[NicDesign, ...]
    agent: bool
    qemu_args: tuple[str, ...]
    pinning: Pinning | None = None
    cpuset: tuple[int, ...] = ()
    backing: Backing = Backing()
    helpers: Helpers = Helpers()
    limits: LimitsSpec = _NO_LIMITS
    devices: tuple[str, ...] = ()
    max_vcpus: int = 0
    max_memory: Bytes | None = None
    spare_ports: int = 0
    display: str | None = None
    seed: SeedDesign | None = None

    @property
    def accelerator(self) -> str:
        """'kvm', 'tcg', 'xen' or 'test'."""
        return "tcg" if self.domain_type == "qemu" else self.domain_type

    @property
    def iothreads(self) -> int:
        """Threads that serve disks."""
        return max((d.iothread or 0 for d in self.disks), default=0)

    @property
    def volumes(self) -> tuple[str, ...]:
        """Names of the disks that are made for it."""
        return (*(d.volume for d in self.disks if d.volume), *([self.seed.volume] if self.seed else []))
