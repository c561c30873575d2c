"""The families: one word that sets the defaults of a VM. Whatever the spec says itself goes before its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vmkit.values import Bytes
from vmkit.vm.spec_parts import DiskIo, Family, NicIo

_SMALL: Final = Bytes(256 << 20)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a family says where the spec does not.

    Attributes:
        purpose: what it is for, as part of a sentence.
        cpu: mode of the CPU with KVM: 'host-model', 'host-passthrough', or 'oldest' for a model that any host has.
        pinning: give each vCPU a core of its own, if there are enough.
        numa: keep to one NUMA node, on hosts that have several.
        hugepages: back the memory with huge pages, if they are free.
        locked: keep the memory from being swapped.
        balloon: let the guest give memory back.
        direct: disks by-pass the host's page cache.
        iothread: disks are served by a thread of their own.
        disk, nic: the road of blocks and packets.
        memory: bytes for a guest that does not say, where its image needs no more.
    """

    purpose: str
    cpu: str = "host-model"
    pinning: bool = False
    numa: bool = False
    hugepages: bool = False
    locked: bool = False
    balloon: bool = True
    direct: bool = False
    iothread: bool = False
    disk: DiskIo = DiskIo.VIRTIO
    nic: NicIo = NicIo.VIRTIO
    memory: Bytes = _SMALL


FAMILIES: Final[Mapping[Family, Defaults]] = {
    Family.GENERAL: Defaults("good speed, and moves between similar hosts"),
    Family.COMPUTE: Defaults(
        "steady CPU speed: the host's own CPU, a core for each vCPU, huge pages",
        cpu="host-passthrough",
        pinning=True,
        numa=True,
        hugepages=True,
        balloon=False,
        direct=True,
        iothread=True,
    ),
    Family.MEMORY: Defaults(
        "large memory: huge pages of one NUMA node, never swapped, nothing kept twice",
        numa=True,
        hugepages=True,
        locked=True,
        balloon=False,
        direct=True,
        memory=Bytes(1 << 30),
    ),
    Family.NETWORK: Defaults(
        "packets and blocks: vhost, a queue for each vCPU, disks off QEMU's main loop, huge pages of one NUMA node",
        numa=True,
        hugepages=True,
        direct=True,
        iothread=True,
    ),
    Family.COMPAT: Defaults(
        "guests without virtio drivers, and hosts that are unlike: a CPU that any has, emulated devices",
        cpu="oldest",
        balloon=False,
        disk=DiskIo.EMULATED,
        nic=NicIo.EMULATED,
    ),
}
