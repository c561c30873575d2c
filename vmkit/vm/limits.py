"""What a VM may take from its host: reading what is asked for, merging it with what is set, judging it. Pure.

Who holds a limit: CPU, memory and I/O weight the kernel's cgroup of the whole QEMU process; a disk's rates QEMU itself
(docs/throttle.txt of its sources); a NIC's rates tc(8) on the host's end of the tap. So a disk's and a NIC's limits
need no cgroups, and hold under emulation too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from vmkit.errors import NotFoundError, SpecError
from vmkit.values import Bytes, quoted
from vmkit.vm.spec_checks import check_disk_limits, check_limits, check_nic_limits
from vmkit.vm.spec_parts import DiskLimits, LimitsSpec, NicLimits

PERIOD: Final = 100_000
"""Microseconds in which a CPU quota is counted: the kernel's default (Documentation/admin-guide/cgroup-v2.rst)."""
KILOBYTE: Final = 1000
"""libvirt hands a NIC's rate to tc as 'kbps', which are 1000 bytes a second (tc(8), RATES)."""
PROCESS_NEEDS: Final = 64 << 20
"""Bytes that a QEMU process needs beside its guest's memory: 40 to 60 MiB resident for small guests (QEMU 10.0)."""
PAGE_TABLES: Final = 100
"""A hundredth of the guest's memory on top: page tables of 4 KiB pages take 1/512 of it in each of two levels of
paging, dirty bitmaps 1/32768 each."""
IO_WEIGHT: Final = 100
"""The weight that every cgroup of version 2 begins with (Documentation/admin-guide/cgroup-v2.rst, io.weight)."""
SHAPED: Final = frozenset(["network", "bridge", "direct", "ethernet"])
"""Kinds of interfaces whose rate libvirt can limit (virNetDevSupportsBandwidth)."""
DISK_FIELDS: Final = DiskLimits.__struct_fields__
DISK_KEYS: Final = {
    "read-bps": "read_bytes_sec",
    "write-bps": "write_bytes_sec",
    "total-bps": "total_bytes_sec",
    "bps": "total_bytes_sec",
    "read-iops": "read_iops_sec",
    "write-iops": "write_iops_sec",
    "total-iops": "total_iops_sec",
    "iops": "total_iops_sec",
}
"""Words of the command line for a disk's limits."""
NIC_KEYS: Final = {"in": "inbound", "out": "outbound"}
VM_KINDS: Final = {
    "cpus": "cpu_quota",
    "cpu-shares": "cpu_shares",
    "memory-cap": "memory",
    "io-weight": "io_weight",
}
"""Words of the command line for the VM's own limits."""


@dataclass(frozen=True, slots=True)
class OfDisk:
    """Limits of a disk; `device` is its name in the VM: 'vda'."""

    device: str
    limits: DiskLimits


@dataclass(frozen=True, slots=True)
class OfNic:
    """Limits of a NIC: the number of it, its MAC address, its kind as libvirt has it ('network', 'user', ...)."""

    index: int
    mac: str | None
    kind: str
    limits: NicLimits


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of a VM at one moment. Disks and NICs are all there, also those without a limit."""

    vm: LimitsSpec
    disks: tuple[OfDisk, ...]
    nics: tuple[OfNic, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What shall be different.

    Attributes:
        vm: fields of LimitsSpec and their new values; None takes a limit away.
        disks: the same for disks, by device.
        nics: the same for NICs, by number.
        none: kinds whose limits are taken away first: a key of VM_KINDS, 'disk', 'disk:vda', 'nic', 'nic:0', 'all'.
    """

    vm: Mapping[str, Any] = field(default_factory=dict)
    disks: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)
    nics: Mapping[int, Mapping[str, int | None]] = field(default_factory=dict)
    none: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.vm or self.disks or self.nics or self.none)


@dataclass(frozen=True, slots=True)
class Setting:
    """One limit that differs: its name as the command line has it, and its old and new value."""

    subject: str
    old: LimitsSpec | OfDisk | OfNic
    new: LimitsSpec | OfDisk | OfNic

    @property
    def text(self) -> str:
        """'cpus 1.5 (was none)'."""
        return f"{self.subject} {show(self.subject, self.new)} (was {show(self.subject, self.old)})"


def quota_of(cpus: float) -> int:
    """Microseconds of CPU time in each PERIOD."""
    return round(cpus * PERIOD)


def kilobytes(rate: int) -> int:
    """Bytes a second in libvirt's unit for NICs, rounded up."""
    return -(-int(rate) // KILOBYTE)


def from_kilobytes(rate: int) -> Bytes:
    """The other way round. A multiple of 1 KiB that `kilobytes` rounded up comes back as it was."""
    most = rate * KILOBYTE
    for unit in (1 << 30, 1 << 20, 1 << 10):
        whole = most // unit * unit
        if whole and kilobytes(whole) == rate:
            return Bytes(whole)
    return Bytes(most)


def least_cap(memory: int) -> Bytes:
    """The smallest memory cap that a guest of `memory` bytes can live with."""
    whole = memory + memory // PAGE_TABLES + PROCESS_NEEDS
    return Bytes(-(-whole // (1 << 20)) << 20)


def parse_change(
    *,
    cpus: str | None = None,
    cpu_shares: int | None = None,
    memory_cap: str | None = None,
    io_weight: int | None = None,
    disks: Sequence[str] = (),
    nics: Sequence[str] = (),
    none: Sequence[str] = (),
) -> Change:
    """What the options of `vmkit limit` ask for.

    Raises:
        SpecError: one of them is not written as it should be; says which.
    """
    vm: dict[str, Any] = {}
    if cpus is not None:
        vm["cpu_quota"] = _cpus(cpus)
    if cpu_shares is not None:
        vm["cpu_shares"] = cpu_shares
    if memory_cap is not None:
        vm["memory"] = Bytes.parse(memory_cap, path="--memory-cap")
    if io_weight is not None:
        vm["io_weight"] = io_weight
    by_device = dict(_part(text, "--disk", DISK_KEYS) for text in disks)
    by_number = {_index(k, "--nic"): v for k, v in (_part(text, "--nic", NIC_KEYS) for text in nics)}
    return Change(vm, by_device, by_number, frozenset(_kind(k) for k in none))


def merge(current: Limits, change: Change) -> Limits:
    """The limits after a change.

    Raises:
        NotFoundError: a disk or NIC that the VM does not have. SpecError: a value is out of range, or excludes another.
    """
    everything = "all" in change.none
    gone = {VM_KINDS[k]: None for k in VM_KINDS if everything or k in change.none}
    vm = _replaced(current.vm, {**gone, **change.vm})
    check_limits(vm, "limits")
    known = {d.device for d in current.disks}
    wanted = {*change.disks, *(k.partition(":")[2] for k in change.none if k.startswith("disk:"))}
    if missing := sorted(wanted - known):
        raise NotFoundError(f"no disk '{missing[0]}'", hint=f"there is: {', '.join(sorted(known)) or 'none'}")
    numbers = {*change.nics, *(int(k[4:]) for k in change.none if k.startswith("nic:"))}
    if absent := sorted(n for n in numbers if n >= len(current.nics)):
        raise NotFoundError(f"no NIC {absent[0]}", hint=f"there are {len(current.nics)}, the first is 0")
    disks = []
    for disk in current.disks:
        bare = everything or bool({"disk", f"disk:{disk.device}"} & change.none)
        limits = _replaced(DiskLimits() if bare else disk.limits, change.disks.get(disk.device, {}))
        check_disk_limits(limits, f"disk {disk.device}")
        disks.append(replace(disk, limits=limits))
    nics = []
    for nic in current.nics:
        bare = everything or bool({"nic", f"nic:{nic.index}"} & change.none)
        rates = _replaced(NicLimits() if bare else nic.limits, change.nics.get(nic.index, {}))
        check_nic_limits(rates, f"nic {nic.index}")
        nics.append(replace(nic, limits=rates))
    return Limits(vm, tuple(disks), tuple(nics))


def without_defaults(limits: Limits, weight: int | None) -> Limits:
    """What runs, with weights that every cgroup begins with as none: a weight can be set there, and never unset.

    `weight` is what the CPU's begins with; None if unknown.
    """
    vm = limits.vm
    if vm.cpu_shares is not None and vm.cpu_shares == weight:
        vm = msgspec.structs.replace(vm, cpu_shares=None)
    if vm.io_weight == IO_WEIGHT:
        vm = msgspec.structs.replace(vm, io_weight=None)
    return replace(limits, vm=vm)


def settings(before: Limits, after: Limits) -> tuple[Setting, ...]:
    """What differs between two states of the same VM. Each is one call to the hypervisor."""
    found = [
        Setting(kind, before.vm, after.vm)
        for kind, name in VM_KINDS.items()
        if getattr(before.vm, name) != getattr(after.vm, name)
    ]
    disks = {d.device: d for d in before.disks}
    nics = {n.mac: n for n in before.nics}
    # A part that came or went meanwhile is nobody's business here.
    was_disk = ((disks[d.device], d) for d in after.disks if d.device in disks)
    was_nic = ((nics[n.mac], n) for n in after.nics if n.mac in nics)
    found += [Setting(f"disk:{new.device}", old, new) for old, new in was_disk if old.limits != new.limits]
    found += [Setting(f"nic:{new.index}", old, new) for old, new in was_nic if old.limits != new.limits]
    return tuple(found)


def rows(live: Limits | None, config: Limits | None) -> list[dict[str, str]]:
    """One line for each limit: its name, its value in what runs, and in the definition; '-' where there is none."""
    found = []
    for subject in subjects(live or config):
        values = [show(subject, v) if (v := _of(state, subject)) is not None else "-" for state in (live, config)]
        found.append({"limit": subject, "live": values[0], "config": values[1]})
    return found


def subjects(limits: Limits | None) -> list[str]:
    """Names of all limits that a VM can have."""
    if limits is None:
        return []
    return [*VM_KINDS, *(f"disk:{d.device}" for d in limits.disks), *(f"nic:{n.index}" for n in limits.nics)]


def _of(limits: Limits | None, subject: str) -> LimitsSpec | OfDisk | OfNic | None:
    if limits is None or subject in VM_KINDS:
        return limits.vm if limits else None
    parts = {f"disk:{d.device}": d for d in limits.disks} | {f"nic:{n.index}": n for n in limits.nics}
    return parts.get(subject)


def show(subject: str, value: LimitsSpec | OfDisk | OfNic) -> str:
    """A limit in the words in which it is asked for: '1.5', 'read-iops=200,write-bps=20M', 'none'."""
    if isinstance(value, LimitsSpec):
        one = getattr(value, VM_KINDS[subject])
        return "none" if one is None else f"{one:g}" if isinstance(one, float) else str(one)
    words: Mapping[str, str] = DISK_KEYS if isinstance(value, OfDisk) else NIC_KEYS
    named: dict[str, str] = {}
    for word, name in words.items():  # 'total-bps' stands before its short form
        named.setdefault(name, word)
    pairs = [(named[f], getattr(value.limits, f)) for f in value.limits.__struct_fields__]
    return ",".join(f"{w}={v}" for w, v in pairs if v is not None) or "none"


def _replaced(value: Any, fields: Mapping[str, Any]) -> Any:
    return msgspec.structs.replace(value, **fields) if fields else value


def _cpus(text: str) -> float:
    try:
        return round(float(text), 3)
    except ValueError:
        raise SpecError(f"{quoted(text)} is not a number of CPUs", path="--cpus", hint="write it like 1.5") from None


def _part(text: str, option: str, words: Mapping[str, str]) -> tuple[str, dict[str, int | None]]:
    name, colon, rest = text.partition(":")
    hint = "write it like vda:read-iops=200,write-bps=20M" if option == "--disk" else "write it like 0:in=10M,out=20M"
    if not colon or not name or not rest:
        raise SpecError(f"{quoted(text)} does not say what is limited", path=option, hint=hint)
    found: dict[str, int | None] = {}
    for pair in rest.split(","):
        key, _, value = pair.partition("=")
        if key not in words or not value:
            raise SpecError(f"{quoted(pair)} is no limit", path=option, hint=f"one of {', '.join(words)}; {hint}")
        found[words[key]] = _rate(value, words[key], f"{option} {name}:{key}")
    return name, found


def _rate(text: str, name: str, path: str) -> int | None:
    if text == "none":
        return None
    if not name.endswith("iops_sec"):
        return Bytes.parse(text, path=path)
    if not (text.isascii() and text.isdecimal() and len(text) < 17):
        raise SpecError(f"{quoted(text)} is not a number of operations a second", path=path, hint="like 200, or none")
    return int(text)


def _index(text: str, option: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 4):
        raise SpecError(f"{quoted(text)} is not the number of a NIC", path=option, hint="the first one is 0")
    return int(text)


def _kind(text: str) -> str:
    kind, _, rest = text.partition(":")
    if kind == "nic" and rest:
        return f"nic:{_index(rest, '--none')}"
    if text not in (*VM_KINDS, "disk", "nic", "all") and not (kind == "disk" and rest):
        known = ", ".join((*VM_KINDS, "disk", "disk:vda", "nic", "nic:0", "all"))
        raise SpecError(f"{quoted(text)} is no kind of limit", path="--none", hint=f"one of {known}")
    return text
