"""Memory: size, NUMA nodes, huge pages, swap, and what the kernel does to pages behind one's back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vmkit.host.tree import Tree, cpu_list, integer, pairs

_POOL = re.compile(r"hugepages-(\d{1,12})kB/nr_hugepages\Z")
_NODE = re.compile(r"/sys/devices/system/node/node(\d{1,5})/")
_CHOSEN = re.compile(r"\[(\w+)\]")
_EXABYTE: Final = 2**60


@dataclass(frozen=True, slots=True)
class HugePages:
    """A pool of huge pages.

    Attributes:
        size: bytes of one page.
        total: pages in the pool.
        free: those that nobody uses; None if it does not say.
    """

    size: int
    total: int
    free: int | None


@dataclass(frozen=True, slots=True)
class NumaNode:
    """A NUMA node: its number, its CPUs, its memory in bytes (None if unknown), its share of huge pages."""

    number: int
    cpus: tuple[int, ...]
    memory: int | None
    huge_pages: tuple[HugePages, ...]


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Memory of a host. Sizes are bytes.

    Attributes:
        total: what the kernel has; None if unknown.
        available: what can be had without swapping; None if unknown.
        swap: all swap areas together; None if unknown.
        zram: whether the swap is compressed memory; None where there is no swap.
        zswap: whether pages are compressed on their way to the swap; None if unknown.
        page_size: of an ordinary page; None if unknown.
        huge_pages: pools of the whole host, by size.
        nodes: NUMA nodes.
        thp: mode of transparent huge pages: 'always', 'madvise', 'never'; None if unknown or not built in.
        ksm: whether equal pages are being merged; None if unknown.
        userfaultfd: who may use it, which post-copy needs: 'all', 'privileged', 'none' (not built in); None if unknown.
    """

    total: int | None
    available: int | None
    swap: int | None
    zram: bool | None
    zswap: bool | None
    page_size: int | None
    huge_pages: tuple[HugePages, ...]
    nodes: tuple[NumaNode, ...]
    thp: str | None
    ksm: bool | None
    userfaultfd: str | None


def read(tree: Tree) -> MemoryFacts:
    """The memory facts of a captured host."""
    info = pairs(tree.text("/proc/meminfo"))
    swap, zram = _swap(tree)
    chosen = _CHOSEN.search(tree.line("/sys/kernel/mm/transparent_hugepage/enabled") or "")
    running = tree.number("/sys/kernel/mm/ksm/run")
    return MemoryFacts(
        total=_kib(info.get("MemTotal")),
        available=_kib(info.get("MemAvailable")),
        swap=swap,
        zram=zram,
        zswap=tree.switch("/sys/module/zswap/parameters/enabled"),
        page_size=tree.number("@pagesize"),
        huge_pages=_pools(tree, "/sys/kernel/mm/hugepages/"),
        nodes=_nodes(tree),
        thp=chosen[1] if chosen else None,
        ksm=None if running is None else running == 1,
        userfaultfd=_userfaultfd(tree),
    )


def _kib(text: str | None) -> int | None:
    number = integer(text)
    return number * 1024 if number is not None and number * 1024 < _EXABYTE else None


def _swap(tree: Tree) -> tuple[int | None, bool | None]:
    if "/proc/swaps" not in tree.files:
        return None, None
    rows = [line.split() for line in tree.text("/proc/swaps").splitlines()[1:]]
    areas = [(r[0], size) for r in rows if len(r) >= 4 and (size := _kib(r[2])) is not None]
    if not areas:
        return 0, None
    return sum(size for _, size in areas), all("zram" in name for name, _ in areas)


def _pools(tree: Tree, folder: str) -> tuple[HugePages, ...]:
    found = []
    for path in tree.below(folder, "/nr_hugepages"):
        match, total = _POOL.search(path), tree.number(path)
        if match and total is not None:
            free = tree.number(path.removesuffix("nr_hugepages") + "free_hugepages")
            found.append(HugePages(int(match[1]) * 1024, total, free))
    return tuple(sorted(found, key=lambda p: p.size))


def _nodes(tree: Tree) -> tuple[NumaNode, ...]:
    numbers = sorted({int(m[1]) for p in tree.files if (m := _NODE.match(p))})
    found = []
    for number in numbers:
        base = f"/sys/devices/system/node/node{number}/"
        total = re.search(r"MemTotal:\s*(\d{1,18}) kB", tree.text(base + "meminfo"), re.ASCII)
        found.append(
            NumaNode(
                number,
                cpu_list(tree.line(base + "cpulist")),
                _kib(total[1]) if total else None,
                _pools(tree, base + "hugepages/"),
            )
        )
    return tuple(found)


def _userfaultfd(tree: Tree) -> str | None:
    """The setting is there since Linux 5.2 where userfaultfd is built in (Documentation/admin-guide/sysctl/vm.rst)."""
    path = "/proc/sys/vm/unprivileged_userfaultfd"
    value = tree.switch(path)
    if value is not None:
        return "all" if value else "privileged"
    config = tree.text("@config")
    if "CONFIG_USERFAULTFD=y" in config:
        return "privileged"
    return "none" if tree.has(path) is False and _since_5_2(tree.line("@release") or "") else None


def _since_5_2(release: str) -> bool:
    major, _, rest = release.partition(".")
    return (integer(major) or 0, integer(rest) or 0) >= (5, 2)
