"""The PCI functions of a host, read from what templates/devices.sh printed of it. Pure: text in, values out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vmkit.device.claim import Claim, read_claim
from vmkit.errors import EffectError

VFIO: Final = "vfio-pci"
"""The driver under which a function can be given to a guest."""
ADDRESS: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]\Z", re.ASCII)
_IN_PATH: Final = re.compile(r"/([0-9a-f]{4,8}:[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7])(?=/|\Z)", re.ASCII)
_CLASSES: Final = {
    0x01: "storage", 0x02: "network", 0x03: "display", 0x04: "multimedia", 0x05: "memory", 0x06: "bridge",
    0x07: "serial", 0x08: "system", 0x0B: "processor", 0x0C: "bus", 0x0D: "wireless", 0x10: "crypto",
    0x11: "signal", 0x12: "accelerator",
}  # fmt: skip
"""PCI base classes (PCI Code and ID Assignment Specification)."""
_FUNCTION_BRIDGES: Final = frozenset([0x0600, 0x0604, 0x0609])
"""Host bridge and both kinds of PCI bridge: they stay with the host (Linux, Documentation/driver-api/vfio.rst)."""


@dataclass(frozen=True, slots=True)
class Function:
    """One PCI function.

    Attributes:
        address: as in '0000:01:00.0'.
        id: vendor and device, as in '8086:10c9'.
        name: vendor and product by the host's pci.ids; '' where that is not installed.
        kind: its base class in one word: 'network', 'storage', 'bridge', ...; 'other'.
        code: class and subclass, 0x0200 for Ethernet.
        driver: what drives it; None if nothing does.
        override: the only driver that may take it, as set in sysfs; None for any.
        modalias: what modprobe takes to load its drivers.
        group: IOMMU group; None where no IOMMU is in use.
        numa: NUMA node; None if the firmware does not say.
        pf: address of the physical function it belongs to; None if it is no virtual function.
        number: of a virtual function, from 0.
        total_vfs: how many virtual functions it can have; 0 if it has no SR-IOV.
        vfs: those that it has, by number.
        nets: its network interfaces in the host's own network namespace.
        needed: what the host itself does with it, as in "default route by eth0": reasons not to take it away.
    """

    address: str
    id: str
    name: str
    kind: str
    code: int
    driver: str | None
    override: str | None
    modalias: str
    group: str | None
    numa: int | None
    pf: str | None
    number: int | None
    total_vfs: int
    vfs: tuple[str, ...]
    nets: tuple[str, ...]
    needed: tuple[str, ...]

    @property
    def stays(self) -> bool:
        """A bridge: it stays with the host when its group is given away."""
        return self.code in _FUNCTION_BRIDGES


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a VFIO group open."""

    pid: int
    name: str


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The PCI functions of a host at one moment.

    Attributes:
        host: its own name for itself.
        boot: identity of this boot.
        functions: by address.
        up: network interfaces that are up.
        holders: processes that have a VFIO group open, by group.
        claims: what vmkit has noted about functions that it lent out, by address.
    """

    host: str
    boot: str
    functions: Mapping[str, Function]
    up: frozenset[str] = frozenset()
    holders: Mapping[str, tuple[Holder, ...]] = field(default_factory=dict)
    claims: Mapping[str, Claim] = field(default_factory=dict)

    def group(self, number: str) -> tuple[Function, ...]:
        """Every function of an IOMMU group."""
        return tuple(f for f in self.functions.values() if f.group == number)

    def physical(self) -> tuple[Function, ...]:
        """Every function with SR-IOV."""
        return tuple(f for f in self.functions.values() if f.total_vfs)


def parse(text: str) -> DeviceFacts:
    """Read what the script printed.

    Raises:
        EffectError: it did not come to its end.
    """
    parts = _sections(text)
    if "end" not in parts:
        raise EffectError("the list of PCI devices is not complete", hint="see that the host's shell is a POSIX sh")
    host, boot, *_ = [*parts.get("host", []), "", ""]
    files = _files(parts.get("files", []))
    links = _links(parts.get("links", []))
    names = {k: f"{v} {d}" for k, v, d in (s.split("|", 2) for s in parts.get("names", []) if s.count("|") >= 2)}
    nets = {n: a for n, a in ((n, _last_address(p)) for n, p in _words(parts.get("nets", []))) if a}
    needed = _needed(parts, nets)
    functions = {a: _function(a, files[a], links.get(a, {}), names, nets, needed) for a in sorted(files)}
    return DeviceFacts(
        host=host,
        boot=boot,
        functions=_numbered(functions),
        up=frozenset(m[1] for s in parts.get("states", []) if (m := re.match(r"([^/]+)/operstate:up\Z", s))),
        holders=_holders(parts.get("vfio", [])),
        claims={c.address: c for s in parts.get("claims", []) if (c := read_claim(s.partition(":{")[2], "{"))},
    )


def _sections(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("@"):
            lines = found.setdefault(line[1:].strip(), [])
        elif line:
            lines.append(line)
    return found


def _files(lines: list[str]) -> dict[str, dict[str, str]]:
    """`0000:01:00.0/numa_node:-1` and `.../uevent:DRIVER=igb` as texts by address and name."""
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        address, _, rest = line.partition("/")
        name, _, text = rest.partition(":")
        if not ADDRESS.match(address):
            continue
        if name == "uevent":
            name, _, text = text.partition("=")
        found.setdefault(address, {})[name] = text.strip()
    return found


def _links(lines: list[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for path, target in _words(lines):
        address, _, name = path.partition("/")
        found.setdefault(address, {})[name] = target.rpartition("/")[2]
    return found


def _words(lines: list[str]) -> list[tuple[str, str]]:
    return [(a, b) for a, _, b in (s.partition(" ") for s in lines) if b]


def _last_address(path: str) -> str | None:
    """The function at the end of a path through sysfs: the one that a disk or an interface hangs on."""
    found = _IN_PATH.findall(path)
    return found[-1] if found else None


def _function(
    address: str,
    files: Mapping[str, str],
    links: Mapping[str, str],
    names: Mapping[str, str],
    nets: Mapping[str, str],
    needed: Mapping[str, tuple[str, ...]],
) -> Function:
    code = int(files.get("PCI_CLASS") or "0", 16) >> 8
    identity = files.get("PCI_ID", "").lower()
    override = files.get("driver_override", "(null)")
    numa = files.get("numa_node", "-1")
    virtual = sorted(((int(k[6:]), v) for k, v in links.items() if re.fullmatch(r"virtfn\d+", k)))
    return Function(
        address=address,
        id=identity,
        name=names.get(identity, ""),
        kind=_CLASSES.get(code >> 8, "other"),
        code=code,
        driver=links.get("driver"),
        override=None if override in ("(null)", "") else override,
        modalias=files.get("MODALIAS", ""),
        group=links.get("iommu_group"),
        numa=int(numa) if numa.isdigit() else None,
        pf=links.get("physfn"),
        number=None,
        total_vfs=int(files.get("sriov_totalvfs") or 0),
        vfs=tuple(v for _, v in virtual),
        nets=tuple(sorted(n for n, a in nets.items() if a == address)),
        needed=needed.get(address, ()),
    )


def _numbered(functions: dict[str, Function]) -> dict[str, Function]:
    from dataclasses import replace

    numbers = {v: i for f in functions.values() for i, v in enumerate(f.vfs)}
    return {a: replace(f, number=numbers[a]) if a in numbers else f for a, f in functions.items()}


def _needed(parts: Mapping[str, list[str]], nets: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Why the host would miss a function: what is mounted from it, and what goes through its network interfaces."""
    found: dict[str, dict[str, None]] = {}

    def add(address: str | None, why: str) -> None:
        if address:
            found.setdefault(address, {})[why] = None

    for point, path in _words(parts.get("mounts", [])):
        add(_last_address(path), "swap" if point == "swap" else f"mounted at {point}")
    lower = _lower(parts.get("lower", []))
    session = (parts.get("ssh") or [""])[0].split()
    for line in parts.get("addresses", []):
        words = line.split()
        device, address = words[1].partition("@")[0], words[3].partition("/")[0]
        for net in _below(device, lower):
            if session[2:3] == [address]:
                add(nets.get(net), f"your ssh session by {device}")
            add(nets.get(net), f"address {address} on {device}")
    for line in parts.get("routes", []):
        if match := re.search(r"\bdev (\S+)", line):
            for net in _below(match[1], lower):
                add(nets.get(net), f"default route by {match[1]}")
    for upper, below in lower.items():
        for net in below:
            add(nets.get(net), f"{net} is part of {upper}")
    return {a: tuple(sorted(why, key=_weight)) for a, why in found.items()}


def _weight(why: str) -> tuple[int, str]:
    first = ("mounted", "swap", "your ssh", "default route", "address")
    return next((i for i, word in enumerate(first) if why.startswith(word)), len(first)), why


def _lower(lines: list[str]) -> dict[str, set[str]]:
    """Interfaces that others lie on: bridges, bonds and VLANs, with what is below each."""
    found: dict[str, set[str]] = {}
    for path, target in _words(lines):
        upper, _, name = path.partition("/")
        if name == "master":
            found.setdefault(target.rpartition("/")[2], set()).add(upper)
        else:
            found.setdefault(upper, set()).add(name.removeprefix("lower_"))
    return found


def _below(name: str, lower: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [name]
    while todo:
        if (one := todo.pop()) not in seen:
            seen.add(one)
            todo += lower.get(one, ())
    return seen


def _holders(lines: list[str]) -> dict[str, tuple[Holder, ...]]:
    """`/proc/812 /dev/vfio/8 qemu-system-x86` as processes by group."""
    found: dict[str, tuple[Holder, ...]] = {}
    for line in lines:
        words = line.split(" ", 2)
        pid, group = words[0].rpartition("/")[2], words[1].rpartition("/")[2] if len(words) == 3 else ""
        if pid.isdigit() and group.isdigit():
            found[group] = (*found.get(group, ()), Holder(int(pid), words[2]))
    return found
