"""Checks of a spec that types alone cannot make: ranges, and fields that contradict each other. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

from vmkit.errors import SpecError
from vmkit.values import Bytes, check_image_name, check_mac, check_name, quoted
from vmkit.vm import cloud_spec, forward
from vmkit.vm.spec_parts import (
    Accel,
    Bus,
    DiskIo,
    DiskLimits,
    DiskSpec,
    HugePages,
    LimitsSpec,
    NicIo,
    NicLimits,
    NicModel,
    NicSpec,
    Vhost,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkit.vm.spec import VmSpec

    Path = Callable[[str], str]

_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]\Z")
_CPUS = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*\Z", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}\Z")
"""Names that Linux gives to network interfaces: at most 15 characters (IFNAMSIZ - 1)."""
MAX_QUEUES: Final = 256
"""Queue pairs of a tap device (MAX_TAP_QUEUES of Linux' drivers/net/tun.c), and what libvirt passes on for a disk."""
MAX_RATE: Final = 10**15
"""Bytes or operations a second of a disk (QEMU's THROTTLE_VALUE_MAX)."""
MAX_NIC_RATE: Final = Bytes((2**32 - 1) * 1000)
"""Bytes a second of a NIC: libvirt keeps kilobytes in 32 bits."""
MAX_CPU: Final = 8191
"""The highest CPU number of a distribution's kernel (NR_CPUS=8192)."""


def check_vm(spec: VmSpec, at: str) -> None:
    """Check a spec. `at` is put before every path.

    Raises:
        SpecError: a field is out of range, or contradicts another.
    """

    def path(field: str) -> str:
        return f"{at}.{field}".lstrip(".")

    check_name(spec.name, path=path("name"))
    if spec.image is not None:
        check_image_name(spec.image, path=path("image"))
    between(spec.vcpus, 1, 1024, path("vcpus"))
    between(spec.max_vcpus, spec.vcpus, 1024, path("max_vcpus"), "at least its vcpus; leave it out for the default")
    _check_memory(spec, path)
    for field in ("cpu", "machine"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", getattr(spec, field)):
            raise SpecError(f"{quoted(getattr(spec, field))} cannot be right", path=path(field))
    if spec.cpu == "emulated" and spec.accel is Accel.KVM:
        raise SpecError("'emulated' means TCG, and accel says kvm", path=path("cpu"), hint="leave one of them out")
    _check_placement(spec, path)
    for field in ("cmdline", "qemu_args"):
        _check_text(getattr(spec, field), path(field))
    for i, disk in enumerate(spec.disks):
        _check_disk(disk, path(f"disks[{i}]"), has_image=spec.image is not None and i == 0)
    for i, nic in enumerate(spec.nics):
        _check_nic(nic, path(f"nics[{i}]"))
    if sum(1 for nic in spec.nics if nic.forward) > forward.MAX_CARDS:
        few = f"at most {forward.MAX_CARDS} forward ports"
        raise SpecError(few, path=path("nics"), hint="one NIC forwards as many ports as you like")
    for i, device in enumerate(spec.devices):
        check_pci(device.address, path(f"devices[{i}].address"))
        if device.address in (d.address for d in spec.devices[:i]):
            raise SpecError(f"{device.address} is there twice", path=path(f"devices[{i}].address"))
    check_limits(spec.limits, path("limits"))
    if spec.cloud_init is not None:
        cloud_spec.check(spec.cloud_init, lambda field: path(f"cloud_init.{field}"))
    for key, value in spec.labels.items():
        check_name(key, path=path("labels"))
        _check_text(value, path(f"labels.{key}"))


def cpu_numbers(text: str, path: str) -> tuple[int, ...]:
    """The CPUs of a list such as `2`, `0-3` or `0,4-5`, sorted.

    Raises:
        SpecError: it is not such a list.
    """
    if not _CPUS.match(text):
        raise SpecError(f"{quoted(text)} is not a list of CPUs", path=path, hint="write it like 2, 0-3 or 0,4-5")
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        first, last = int(low), int(high or low)
        if first > last or last > MAX_CPU:
            raise SpecError(f"{part} is not a range of CPUs up to {MAX_CPU}", path=path, hint="write it like 0-3")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def check_pci(text: str, path: str) -> str:
    """Return `text` if it is a PCI address with its domain, in lower case.

    Raises:
        SpecError: it is not.
    """
    if not _PCI.match(text):
        hint = f"write it like 0000:{text.lower()}" if _PCI.match(f"0000:{text.lower()}") else "as lspci -D prints it"
        raise SpecError(f"{quoted(text)} is not a PCI address like 0000:01:00.0", path=path, hint=hint)
    return text


def between(value: float | None, low: int | float, high: int | float, path: str, hint: str | None = None) -> None:
    """Refuse a number that is outside of `low` to `high`; None passes.

    Raises:
        SpecError: it is outside.
    """
    if value is not None and not low <= value <= high:
        raise SpecError(f"{value} is not between {low} and {high}", path=path, hint=hint)


def _check_memory(spec: VmSpec, path: Path) -> None:
    hint = "write it like 512M or 2G"
    between(spec.memory, Bytes(16 << 20), Bytes(1 << 50), path("memory"), hint)
    least = Bytes(16 << 20) if spec.memory is None else spec.memory
    between(spec.max_memory, least, Bytes(1 << 50), path("max_memory"), "at least its memory; leave it out for that")
    if spec.locked and spec.balloon:
        raise SpecError("locked memory cannot be given back by a balloon", path=path("balloon"), hint="balloon: false")
    page = {HugePages.SIZE_2M: 2 << 20, HugePages.SIZE_1G: 1 << 30}.get(spec.hugepages)
    if page and spec.memory is not None and spec.memory % page:
        up = Bytes(-(-spec.memory // page) * page)
        raise SpecError(
            f"{spec.memory} is no multiple of {Bytes(page)} pages", path=path("memory"), hint=f"{up} would be"
        )


def _check_placement(spec: VmSpec, path: Path) -> None:
    if isinstance(spec.pinning, str) and spec.pinning not in ("none", "auto"):
        near = "pinning: ['2', '3'] has one entry for each vCPU" if spec.pinning[:1].isdigit() else "none or auto"
        raise SpecError(f"{quoted(spec.pinning)} is not a way of pinning", path=path("pinning"), hint=near)
    if isinstance(spec.pinning, tuple):
        for i, text in enumerate(spec.pinning):
            cpu_numbers(text, path(f"pinning[{i}]"))
        if len(spec.pinning) != spec.vcpus:
            raise SpecError(
                f"{len(spec.pinning)} entries for {spec.vcpus} vCPUs", path=path("pinning"), hint="one for each vCPU"
            )
    if spec.numa not in ("auto", "none") and spec.numa_node is None:
        raise SpecError(
            f"{quoted(str(spec.numa))} is no NUMA node", path=path("numa"), hint="auto, none, or a number like 0"
        )
    between(spec.numa_node, 0, 1023, path("numa"))


def _check_text(value: str | tuple[str, ...], path: str) -> None:
    for text in (value,) if isinstance(value, str) else value:
        if not text.isprintable():
            raise SpecError(f"{quoted(text)} has characters that cannot be printed", path=path)


def _check_disk(disk: DiskSpec, path: str, *, has_image: bool) -> None:
    if disk.io is DiskIo.PASSTHROUGH:
        _check_block_device(disk, path)
    else:
        if disk.source is not None:
            raise SpecError("only a passthrough disk has a source", path=f"{path}.source", hint="add io: passthrough")
        if disk.image:
            check_image_name(disk.image, path=f"{path}.image")
        elif disk.size is None and not (has_image and disk.image is None):
            raise SpecError("an empty disk needs a size", path=f"{path}.size", hint="write it like 10G")
        between(disk.size, Bytes(1 << 20), Bytes(1 << 50), f"{path}.size")
    emulated = disk.bus in (Bus.SATA, Bus.IDE) or (disk.bus is None and disk.io is DiskIo.EMULATED)
    if (
        disk.bus is not None
        and disk.io in (DiskIo.EMULATED, DiskIo.VIRTIO)
        and emulated != (disk.io is DiskIo.EMULATED)
    ):
        raise SpecError(
            f"io says {disk.io.value}, and the bus {disk.bus.value} is not",
            path=f"{path}.bus",
            hint="emulated goes with sata or ide, virtio with virtio or scsi; one of the two fields is enough",
        )
    for field in ("iothread", "queues"):
        if emulated and getattr(disk, field):
            raise SpecError("an emulated controller has none", path=f"{path}.{field}", hint="io: virtio has")
    if disk.iothread and disk.bus is Bus.SCSI:
        raise SpecError("only a disk on virtio has one of its own", path=f"{path}.iothread", hint="bus: virtio has")
    between(disk.queues, 1, MAX_QUEUES, f"{path}.queues")
    check_disk_limits(disk.limits, f"{path}.limits")


def _check_block_device(disk: DiskSpec, path: str) -> None:
    if not disk.source:
        raise SpecError("passthrough of what?", path=f"{path}.source", hint="source: /dev/sdb")
    plain = disk.source.startswith("/dev/") and disk.source.isprintable() and ".." not in disk.source.split("/")
    if not plain or len(disk.source) > 4096:
        raise SpecError(
            f"{quoted(disk.source)} is no block device of the host", path=f"{path}.source", hint="like /dev/sdb"
        )
    for field in ("size", "image"):
        if getattr(disk, field):
            raise SpecError("a passthrough disk is what its source is", path=f"{path}.{field}", hint="leave it out")


def check_disk_limits(limits: DiskLimits, path: str) -> None:
    """Refuse a disk's limits that QEMU or libvirt would not take.

    Raises:
        SpecError: a rate is out of range, or a total stands beside its parts.
    """
    for kind in ("bytes", "iops"):
        total, read, write = (f"{what}_{kind}_sec" for what in ("total", "read", "write"))
        for field in (total, read, write):
            between(getattr(limits, field), 1, MAX_RATE, f"{path}.{field}", "leave it out for no limit")
        if getattr(limits, total) and (getattr(limits, read) or getattr(limits, write)):
            raise SpecError(f"excludes {read} and {write}", path=f"{path}.{total}", hint="give the total or the parts")


def _check_nic(nic: NicSpec, path: str) -> None:
    check_name(nic.network.removeprefix("bridge:"), path=f"{path}.network")
    if nic.mac is not None:
        check_mac(nic.mac, path=f"{path}.mac")
    if nic.address not in ("dhcp", "none"):
        try:
            ipaddress.ip_interface(nic.address)
        except ValueError as e:
            raise SpecError(str(e), path=f"{path}.address", hint="write it like 192.0.2.10/24, or dhcp") from e
        if "/" not in nic.address:
            raise SpecError(f"{nic.address} lacks its prefix", path=f"{path}.address", hint=f"{nic.address}/24")
    if nic.gateway is not None:
        try:
            ipaddress.ip_address(nic.gateway)
        except ValueError as e:
            raise SpecError(str(e), path=f"{path}.gateway", hint="write it like 192.0.2.1") from e
    _check_forward(nic, path)
    _check_nic_io(nic, path)
    _check_assigned(nic, path)
    check_nic_limits(nic.limits, f"{path}.limits")


def _check_forward(nic: NicSpec, path: str) -> None:
    if not nic.forward:
        return
    if nic.network not in ("auto", "user") or nic.io in (NicIo.PASSTHROUGH, NicIo.SRIOV):
        raise SpecError(
            f"a NIC on '{nic.network}' forwards none: others reach it by its address",
            path=f"{path}.forward",
            hint="network: user",
        )
    if nic.limits != NicLimits():
        raise SpecError("a NIC that forwards ports has none", path=f"{path}.limits", hint="leave one of the two out")
    seen = []
    for i, text in enumerate(nic.forward):
        rule = forward.parse(text, f"{path}.forward[{i}]")
        way = (rule.protocol, rule.address, rule.host_port)
        if way in seen:
            raise SpecError(f"{rule.protocol} port {rule.host_port} is there twice", path=f"{path}.forward[{i}]")
        seen.append(way)


def _check_nic_io(nic: NicSpec, path: str) -> None:
    assigned = nic.io in (NicIo.PASSTHROUGH, NicIo.SRIOV)
    emulated = nic.model not in (None, NicModel.VIRTIO) or (nic.model is None and nic.io is NicIo.EMULATED)
    if nic.model is not None and (assigned or (nic.io is not NicIo.AUTO and emulated != (nic.io is NicIo.EMULATED))):
        raise SpecError(
            f"io says {nic.io.value}, and the model {nic.model.value} is not",
            path=f"{path}.model",
            hint="one of the two fields is enough",
        )
    virtio = not assigned and not emulated
    if nic.vhost is not Vhost.AUTO and not virtio and not nic.failover:
        raise SpecError("only virtio has vhost", path=f"{path}.vhost", hint="io: virtio, or leave it out")
    if nic.queues is not None and not virtio:
        raise SpecError("only virtio's queues can be set", path=f"{path}.queues", hint="io: virtio, or leave it out")
    between(nic.queues, 1, MAX_QUEUES, f"{path}.queues")


def _check_assigned(nic: NicSpec, path: str) -> None:
    if nic.io is NicIo.PASSTHROUGH:
        if nic.device is None:
            raise SpecError("passthrough of what?", path=f"{path}.device", hint="device: 0000:01:00.0, from lspci -D")
        check_pci(nic.device, f"{path}.device")
    elif nic.device is not None:
        raise SpecError("only a passthrough NIC has one", path=f"{path}.device", hint="add io: passthrough")
    if nic.io is not NicIo.SRIOV:
        plain = NicSpec()
        for field in ("pf", "vlan", "max_tx_rate", "spoofcheck", "trust", "failover"):
            if getattr(nic, field) != getattr(plain, field):
                raise SpecError("only a virtual function has this", path=f"{path}.{field}", hint="add io: sriov")
        return
    if nic.pf is not None and not _INTERFACE.match(nic.pf):
        raise SpecError(f"{quoted(nic.pf)} is no interface's name", path=f"{path}.pf", hint="as ip link prints it")
    between(nic.vlan, 1, 4094, f"{path}.vlan", "leave it out for none")
    between(nic.max_tx_rate, 1, 1_000_000, f"{path}.max_tx_rate", "Mbit/s; leave it out for no limit")
    if nic.failover and nic.network in ("none", "user"):
        raise SpecError(
            f"the virtio NIC of a failover pair cannot be on '{nic.network}'",
            path=f"{path}.network",
            hint="a libvirt network or bridge:NAME that reaches the same network as the PF",
        )


def check_nic_limits(limits: NicLimits, path: str) -> None:
    """Refuse a NIC's limits that libvirt would not take.

    Raises:
        SpecError: a rate is out of range.
    """
    for field in ("inbound", "outbound"):
        between(getattr(limits, field), Bytes(1024), MAX_NIC_RATE, f"{path}.{field}", "bytes a second, like 10M")


def check_limits(limits: LimitsSpec, path: str) -> None:
    """Refuse limits of a VM that libvirt or the kernel would not take.

    Shares: cgroup version 2 takes 1 to 10000, version 1 takes 2 to 262144 (libvirt's vircgroupv2.c; Linux'
    sched/sched.h); what both take is allowed. Quota: at least 1 ms of each 100 ms (libvirt's QEMU_SCHED_MIN_QUOTA; the
    kernel's min_cfs_quota_period). I/O weight: libvirt's documentation, 'Block I/O Tuning'.

    Raises:
        SpecError: one of them is out of range.
    """
    between(limits.cpu_shares, 2, 10_000, f"{path}.cpu_shares", "100 is what every VM has by default")
    between(limits.cpu_quota, 0.01, 8192, f"{path}.cpu_quota", "a number of CPUs, like 1.5")
    between(limits.memory, Bytes(16 << 20), Bytes(1 << 50), f"{path}.memory", "write it like 512M or 2G")
    between(limits.io_weight, 10, 1000, f"{path}.io_weight", "100 is what every VM has by default")
