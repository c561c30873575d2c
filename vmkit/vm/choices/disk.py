"""The road of a disk's blocks: emulated controller, virtio, or a block device of the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from vmkit.errors import RefusedError, SpecError
from vmkit.host import figures
from vmkit.plan import Rejected
from vmkit.values import Bytes
from vmkit.vm.choices import xen
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.design import DiskDesign
from vmkit.vm.facts import HostFacts
from vmkit.vm.families import Defaults
from vmkit.vm.spec_parts import Bus, DiskIo, DiskSpec

if TYPE_CHECKING:
    from vmkit.vm.spec import VmSpec

SPACE_NEEDED: Final = 32 << 20
"""Bytes that have to be free for an overlay's metadata and the first writes of a boot."""
DIRECT: Final = frozenset(["ext2/ext3", "ext4", "xfs", "btrfs", "f2fs"])
"""File systems, as `stat -f -c %T` names them, that take O_DIRECT; tmpfs refused it before Linux 6.6."""
_LETTERS: Final = {Bus.VIRTIO: "vd", Bus.SCSI: "sd", Bus.SATA: "sd", Bus.IDE: "hd"}
_EMULATED = Rejected("emulated", "a register access for each step of a request: slow")
_PASSTHROUGH = Rejected("passthrough", "a block device of the host serves one VM; name it with io: passthrough")


def disks(
    spec: VmSpec,
    defaults: Defaults,
    facts: HostFacts,
    sizes: Mapping[str, int],
    machine: str | None,
    why: Reasons,
) -> tuple[DiskDesign, ...]:
    """Every disk.

    Args:
        spec: what was asked for.
        defaults: what its family says.
        facts: the host.
        sizes: bytes of the disks of the images that the spec names.
        machine: machine type that was chosen.
        why: collects reasons.

    Raises:
        SpecError: a size or a bus cannot be. RefusedError: there is no space, or the block device is not free.
    """
    wanted = spec.disks
    if not wanted and spec.image in sizes:
        wanted = (DiskSpec(),)
    designs: list[DiskDesign] = []
    counts: dict[str, int] = {}
    threads = 0
    for i, disk in enumerate(wanted):
        if facts.driver == "Xen":
            bus = xen.disk_bus(disk, i, machine, why)
            prefix = "xvd" if bus is Bus.VIRTIO else _LETTERS[bus]
        else:
            bus = _bus(disk, i, defaults, machine, why)
            prefix = _LETTERS[bus]
        device = prefix + _letters(counts.get(prefix, 0))
        counts[prefix] = counts.get(prefix, 0) + 1
        block = disk.io is DiskIo.PASSTHROUGH
        size, backing = (0, None) if block else _size(spec, disk, i, sizes)
        _say_source(disk, i, device, size, backing, facts, why)
        thread = _thread(disk, i, bus, defaults, facts, why)
        threads += thread
        cache, io = _cache(i, defaults, facts, why, block=block)
        designs.append(
            DiskDesign(
                volume="" if block else f"{spec.name}-{i}.qcow2",
                size=size,
                backing=backing,
                bus=bus,
                device=device,
                source=disk.source if block else None,
                iothread=threads if thread else None,
                queues=_queues(spec, disk, i, bus, facts, why),
                cache=cache,
                io=io,
                limits=disk.limits,
            )
        )
    made = any(d.volume for d in designs)
    if made and facts.pool_free is not None and facts.driver == "QEMU" and facts.pool_free < SPACE_NEEDED:
        raise RefusedError(
            f"no space: {Bytes(facts.pool_free)} left in {facts.pool_folder} on {facts.uri}",
            hint=f"at least {Bytes(SPACE_NEEDED)} are needed; delete what is not used, or grow the file system",
        )
    return tuple(designs)


def _size(spec: VmSpec, disk: DiskSpec, i: int, sizes: Mapping[str, int]) -> tuple[int, str | None]:
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
    return size, backing


def _say_source(
    disk: DiskSpec, i: int, device: str, size: int, backing: str | None, facts: HostFacts, why: Reasons
) -> None:
    if disk.source and disk.io is DiskIo.PASSTHROUGH:
        problem = facts.block_devices.get(disk.source)
        if problem:
            raise RefusedError(
                f"disks[{i}].source: {disk.source} on {facts.uri} {problem}", hint="see lsblk -f on that host"
            )
        why.chose(f"disks[{i}]", f"{device} {disk.source}", "the block device itself: no file system, no image format")
        return
    reason = f"qcow2 overlay of the image '{backing}': made at once, shares its blocks" if backing else "empty qcow2"
    why.chose(f"disks[{i}]", f"{device} {Bytes(size)}", reason)


def _bus(disk: DiskSpec, i: int, defaults: Defaults, machine: str | None, why: Reasons) -> Bus:
    ide = (machine or "").startswith("pc") and "q35" not in (machine or "")
    if disk.bus is Bus.IDE and machine and not ide:
        raise SpecError(f"the machine {machine} has no IDE", path=f"disks[{i}].bus", hint="bus: sata, or machine: pc")
    road = disk.io if disk.io is not DiskIo.AUTO else defaults.disk
    bus = disk.bus or Bus.VIRTIO
    if road is DiskIo.EMULATED and disk.bus is None:
        bus = Bus.IDE if ide else Bus.SATA
    reasons = {
        Bus.VIRTIO: "para-virtual: requests travel in shared memory",
        Bus.SCSI: "virtio-scsi: para-virtual, many disks on one controller",
        Bus.SATA: "emulated AHCI, for guests without virtio drivers",
        Bus.IDE: "emulated IDE, for guests without AHCI drivers",
    }
    emulated = bus in (Bus.SATA, Bus.IDE)
    rejected: tuple[Rejected, ...] = (_EMULATED,) if disk.io is DiskIo.PASSTHROUGH else (_EMULATED, _PASSTHROUGH)
    if emulated:
        rejected = (Rejected("virtio", "the guest would need its driver"),)
    reason = f"{reasons[bus]}; {ASKED}" if disk.bus or disk.io is not DiskIo.AUTO else reasons[bus]
    why.chose(f"disks[{i}].bus", bus.value, reason, rejected=rejected, expected=figures.DEVICES)
    return bus


def _thread(disk: DiskSpec, i: int, bus: Bus, defaults: Defaults, facts: HostFacts, why: Reasons) -> bool:
    if bus is not Bus.VIRTIO or facts.driver != "QEMU":
        if disk.iothread:
            raise SpecError("only a disk on virtio can have one", path=f"disks[{i}].iothread", hint="bus: virtio")
        return False
    wanted = disk.iothread if disk.iothread is not None else defaults.iothread
    if wanted:
        reason = ASKED if disk.iothread else "a thread of its own: requests do not wait for QEMU's main loop"
        why.chose(f"disks[{i}].iothread", "yes", reason)
    elif disk.iothread is False:
        why.chose(f"disks[{i}].iothread", "no", ASKED)
    return wanted


def _queues(spec: VmSpec, disk: DiskSpec, i: int, bus: Bus, facts: HostFacts, why: Reasons) -> int | None:
    if bus not in (Bus.VIRTIO, Bus.SCSI) or facts.driver != "QEMU":
        if disk.queues:
            raise SpecError("only virtio's queues can be set", path=f"disks[{i}].queues", hint="io: virtio")
        return None
    if disk.queues is not None:
        why.chose(f"disks[{i}].queues", disk.queues, ASKED)
        return disk.queues
    if spec.vcpus == 1:
        return None
    why.chose(
        f"disks[{i}].queues",
        spec.vcpus,
        "one for each vCPU: a request and its interrupt stay on the vCPU that made it",
        rejected=(Rejected("1", "all vCPUs would wait for one lock"),),
    )
    return spec.vcpus


def _cache(i: int, defaults: Defaults, facts: HostFacts, why: Reasons, *, block: bool) -> tuple[str | None, str | None]:
    uring = Rejected("io_uring", "many kernels and sandboxes switch it off; no faster on a single disk")
    if block:
        why.chose(f"disks[{i}].cache", "none, native", "a block device takes direct I/O", rejected=(uring,))
        return "none", "native"
    if not defaults.direct or facts.driver != "QEMU":
        return None, None
    if facts.pool_file_system in DIRECT:
        why.chose(
            f"disks[{i}].cache",
            "none, native",
            f"direct I/O on {facts.pool_file_system}: blocks are not kept twice, by guest and host",
            rejected=(uring, Rejected("writeback", "the host's page cache would take memory and copy every block")),
        )
        return "none", "native"
    where = facts.pool_file_system or "a file system that is not known"
    why.chose(f"disks[{i}].cache", "writeback", f"the pool is on {where}: direct I/O may fail there")
    return None, None


def next_device(bus: Bus, taken: Sequence[str]) -> str:
    """The first name that libvirt has for a disk on this bus, and that is not taken: 'vdb'."""
    names = (_LETTERS[bus] + _letters(n) for n in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def _letters(n: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa: how Linux counts disks."""
    text = ""
    n += 1
    while n:
        n, digit = divmod(n - 1, 26)
        text = chr(97 + digit) + text
    return text
