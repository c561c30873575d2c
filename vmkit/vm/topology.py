"""CPUs, NUMA nodes and huge pages of a host, from libvirt's capabilities XML. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET


@dataclass(frozen=True, slots=True)
class Cpu:
    """A logical CPU that is online: its number, its NUMA node, and the core that it is a thread of."""

    number: int
    node: int
    core: str


@dataclass(frozen=True, slots=True)
class Pool:
    """Huge pages of one size on one node: all of them, and those that nobody uses."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Topology:
    """A host's CPUs and memory nodes.

    Attributes:
        cpus: those that are online, by number.
        nodes: numbers of the NUMA nodes.
        pages: huge pages in all, by node, then by bytes of a page. A size that is missing does not exist there.
    """

    cpus: tuple[Cpu, ...] = ()
    nodes: tuple[int, ...] = ()
    pages: Mapping[int, Mapping[int, int]] | None = None

    @property
    def numbers(self) -> frozenset[int]:
        """Numbers of the CPUs that are online."""
        return frozenset(c.number for c in self.cpus)

    def cores(self, node: int | None = None) -> list[tuple[int, ...]]:
        """Threads of each core, the core with the lowest CPU number first; of one node, or of all."""
        found: dict[str, list[int]] = {}
        for cpu in self.cpus:
            if node is None or cpu.node == node:
                found.setdefault(f"{cpu.node}/{cpu.core}", []).append(cpu.number)
        return sorted((tuple(sorted(threads)) for threads in found.values()), key=lambda t: t[0])

    def node_of(self, cpus: frozenset[int]) -> int | None:
        """The node that holds all of these CPUs; None if there is none."""
        nodes = {c.node for c in self.cpus if c.number in cpus}
        return nodes.pop() if len(nodes) == 1 else None


def read(capabilities: str) -> Topology:
    """The topology in capabilities XML. CPUs that are offline have no core there, and are left out."""
    root = ET.fromstring(capabilities)  # noqa: S314 - libvirt's own answer
    cpus: list[Cpu] = []
    nodes: list[int] = []
    pages: dict[int, dict[int, int]] = {}
    for cell in root.iterfind("host/topology/cells/cell"):
        node = int(cell.get("id", "0"))
        nodes.append(node)
        for cpu in cell.iterfind("cpus/cpu"):
            if cpu.get("core_id") is not None:
                core = "/".join(cpu.get(k) or "0" for k in ("socket_id", "die_id", "cluster_id", "core_id"))
                cpus.append(Cpu(int(cpu.get("id", "0")), node, core))
        sizes = {_kib(p): int(p.text or 0) for p in cell.iterfind("pages")}
        pages[node] = {size: count for size, count in sizes.items() if size > 1 << 16}
    known = {_kib(p) for p in root.iterfind("host/cpu/pages")}
    for node in nodes:
        for size in known - set(pages[node]):
            if size > 1 << 16:
                pages[node].setdefault(size, 0)
    return Topology(tuple(sorted(cpus, key=lambda c: c.number)), tuple(sorted(nodes)), pages)


def pinned_in(domain: str) -> frozenset[int]:
    """Host CPUs that a domain's vCPUs are pinned to, from its XML; every CPU of the list of each."""
    from vmkit.host.tree import cpu_list

    root = ET.fromstring(domain)  # noqa: S314 - libvirt's own answer
    return frozenset(n for pin in root.iterfind("cputune/vcpupin") for n in cpu_list(pin.get("cpuset")))


def _kib(pages: ET.Element) -> int:
    return int(pages.get("size", "0")) * 1024
