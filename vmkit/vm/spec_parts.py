"""The parts of a VM's spec: what a disk, a network card, a limit and an assigned device may say."""

from __future__ import annotations

import enum

import msgspec

from vmkit.values import Bytes


class Accel(enum.Enum):
    """How guest instructions are executed."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Family(enum.Enum):
    """What the VM is for, in one word. Sets defaults that every field of its own overrides; see vmkit.vm.families."""

    GENERAL = "general"
    COMPUTE = "compute"
    MEMORY = "memory"
    NETWORK = "network"
    COMPAT = "compat"


class Guest(enum.Enum):
    """What runs in the VM: decides which para-virtual helpers it is offered."""

    LINUX = "linux"
    WINDOWS = "windows"
    OTHER = "other"


class HugePages(enum.Enum):
    """Which pages of the host back the guest's memory."""

    AUTO = "auto"
    NONE = "none"
    SIZE_2M = "2M"
    SIZE_1G = "1G"


class DisplayKind(enum.Enum):
    """The screen of a VM, and by which protocol it is looked at."""

    NONE = "none"
    VNC = "vnc"
    SPICE = "spice"


class Bus(enum.Enum):
    """How a disk is attached."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"
    IDE = "ide"


class NicModel(enum.Enum):
    """Which network card the guest sees."""

    VIRTIO = "virtio"
    E1000 = "e1000"
    E1000E = "e1000e"
    RTL8139 = "rtl8139"


class DiskIo(enum.Enum):
    """The road of a disk's blocks: an emulated controller, virtio, or a block device of the host handed through."""

    AUTO = "auto"
    EMULATED = "emulated"
    VIRTIO = "virtio"
    PASSTHROUGH = "passthrough"


class NicIo(enum.Enum):
    """The road of a NIC's packets: an emulated card, virtio, a whole PCI device, or a virtual function of one."""

    AUTO = "auto"
    EMULATED = "emulated"
    VIRTIO = "virtio"
    PASSTHROUGH = "passthrough"
    SRIOV = "sriov"


class Vhost(enum.Enum):
    """Whether the host's kernel moves the packets of a virtio NIC, in place of the QEMU process."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class DiskLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What a disk may be used for: bytes and operations a second. A total excludes the read and write of its kind."""

    read_bytes_sec: Bytes | None = None
    write_bytes_sec: Bytes | None = None
    total_bytes_sec: Bytes | None = None
    read_iops_sec: int | None = None
    write_iops_sec: int | None = None
    total_iops_sec: int | None = None


class NicLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Average rates of a NIC, bytes a second: `inbound` is what the guest receives."""

    inbound: Bytes | None = None
    outbound: Bytes | None = None


class LimitsSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What the VM may take from its host.

    Attributes:
        cpu_shares: weight against other VMs while CPUs are scarce, 2 to 10000 (cgroup v2's cpu.weight; default 100).
        cpu_quota: CPUs that the QEMU process may use, its vCPUs and its other threads together, as in 1.5.
        memory: cap of the whole QEMU process, which needs more than the guest's memory.
        io_weight: weight against other VMs while disks are busy, 10 to 1000.
    """

    cpu_shares: int | None = None
    cpu_quota: float | None = None
    memory: Bytes | None = None
    io_weight: int | None = None


class DeviceSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A PCI device of the host that is handed to the guest: `address` is written as lspci -D does, 0000:01:00.0."""

    address: str


class DiskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A disk. The first disk of a VM is an overlay of its image's disk unless it names another image.

    Attributes:
        size: virtual size; at least the image's, and that by default. Required for a disk without an image.
        image: image whose disk it overlays; '' for an empty disk.
        io: how its blocks travel; 'auto' is what the family says.
        bus: how it is attached; None follows `io`.
        source: block device of the host, as in /dev/sdb; only with `io: passthrough`, and then it is the disk.
        iothread: whether a thread of its own serves it (virtio only); None leaves it to the family.
        queues: virtio queues, 1 to 256; None is one for each vCPU.
        limits: bytes and operations a second.
    """

    size: Bytes | None = None
    image: str | None = None
    io: DiskIo = DiskIo.AUTO
    bus: Bus | None = None
    source: str | None = None
    iothread: bool | None = None
    queues: int | None = None
    limits: DiskLimits = DiskLimits()


class NicSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A network card.

    Attributes:
        network: 'auto', 'user' (QEMU's own NAT), 'none', 'bridge:NAME', or the name of a libvirt network.
        address: 'dhcp', 'none' or ADDRESS/PREFIX; given to guests that take it from the kernel command line or from
            cloud-init, and reserved in the network where that hands out addresses.
        gateway: default route that goes with a fixed address.
        mac: MAC address; libvirt picks one if None.
        io: how its packets travel; 'auto' is what the family says.
        model: which card the guest sees; None follows `io`.
        vhost: whether the host's kernel moves the packets (virtio only); 'auto' takes it where it is there.
        queues: pairs of virtio queues, 1 to 256; None is one for each vCPU where that helps.
        limits: bytes a second.
        forward: ports of the host that lead into the guest, as in '2222:22' or 'udp:0.0.0.0:5353:53'; only on the
            network 'user', which 'auto' then is.
        device: PCI address of the whole card that is handed over; only with `io: passthrough`.
        pf: physical function whose virtual function is taken, as in eth1; None for any that has one free.
            This and what follows is only for `io: sriov`.
        vlan: VLAN that the virtual function is put into, 1 to 4094.
        max_tx_rate: Mbit/s that it may send.
        spoofcheck: drop what it sends from another MAC address.
        trust: let the guest change its MAC address and listen to everything.
        failover: also a virtio NIC of the same MAC address on `network`, which carries on while the VF is away.
    """

    network: str = "auto"
    address: str = "dhcp"
    gateway: str | None = None
    mac: str | None = None
    io: NicIo = NicIo.AUTO
    model: NicModel | None = None
    vhost: Vhost = Vhost.AUTO
    queues: int | None = None
    limits: NicLimits = NicLimits()
    forward: tuple[str, ...] = ()
    device: str | None = None
    pf: str | None = None
    vlan: int | None = None
    max_tx_rate: int | None = None
    spoofcheck: bool = True
    trust: bool = False
    failover: bool = False
