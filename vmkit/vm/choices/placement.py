"""Where on the host the VM runs: its NUMA node, and the CPUs of each vCPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkit.errors import RefusedError, SpecError
from vmkit.plan import Rejected
from vmkit.values import Bytes
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.design import Pinning
from vmkit.vm.facts import HostFacts
from vmkit.vm.families import Defaults
from vmkit.vm.spec_checks import cpu_numbers

if TYPE_CHECKING:
    from vmkit.vm.spec import VmSpec


@dataclass(frozen=True, slots=True)
class Place:
    """NUMA node, and the host CPUs of the vCPUs; None for what is left to the kernel.

    Attributes:
        node: where the memory is taken from.
        pinning: CPUs of each vCPU.
        topology: sockets, cores and threads that the guest sees.
        cpuset: CPUs of the node, which vCPUs that are not pinned keep to.
    """

    node: int | None = None
    pinning: Pinning | None = None
    topology: tuple[int, int, int] | None = None
    cpuset: tuple[int, ...] = ()


def place(spec: VmSpec, defaults: Defaults, facts: HostFacts, memory: Bytes, why: Reasons) -> Place:
    """Where it runs.

    Raises:
        SpecError: a CPU or node that this host has not, or that is offline.
        RefusedError: pinning was asked for, and there are not enough cores that nobody is pinned to.
    """
    if facts.driver != "QEMU":
        _refuse_elsewhere(spec, facts)
        return Place()
    wished = spec.pinning if spec.pinning is not None else ("auto" if defaults.pinning else "none")
    explicit = _explicit(spec, facts) if isinstance(wished, tuple) else None
    node = _node(spec, defaults, facts, memory, explicit, why, pin=wished == "auto")
    if explicit is not None:
        pinning = Pinning(explicit, _rest(facts, frozenset(n for cpus in explicit for n in cpus)))
        why.chose("pinning", _shown(pinning), ASKED, rejected=_FLOATING)
        return Place(node, pinning)
    if wished == "none":
        given = spec.pinning is not None
        reason = ASKED if given else "the host's scheduler moves vCPUs to whatever CPU is idle"
        why.chose("pinning", "none", reason, rejected=(Rejected("auto", "takes cores away from every other VM"),))
        return _floating(facts, node)
    return _automatic(spec, facts, node, why)


_FLOATING = (Rejected("none", "the scheduler moves vCPUs about, and caches are cold after each move"),)


def _refuse_elsewhere(spec: VmSpec, facts: HostFacts) -> None:
    asked = [("pinning", spec.pinning not in (None, "none")), ("numa", spec.numa_node is not None)]
    for field, there in asked:
        if there:
            raise SpecError(f"is for QEMU hosts, {facts.uri} is {facts.driver}", path=field, hint="leave it out")


def _explicit(spec: VmSpec, facts: HostFacts) -> tuple[tuple[int, ...], ...]:
    online = facts.topology.numbers
    found = []
    for i, text in enumerate(spec.pinning or ()):
        cpus = cpu_numbers(text, f"pinning[{i}]")
        if online and (wrong := [n for n in cpus if n not in online]):
            raise SpecError(
                f"{facts.uri} has no CPU {wrong[0]} that is online",
                path=f"pinning[{i}]",
                hint=f"there are: {ranges(online)}",
            )
        found.append(cpus)
    return tuple(found)


def _node(
    spec: VmSpec,
    defaults: Defaults,
    facts: HostFacts,
    memory: Bytes,
    explicit: tuple[tuple[int, ...], ...] | None,
    why: Reasons,
    *,
    pin: bool,
) -> int | None:
    nodes = facts.topology.nodes
    if (asked := spec.numa_node) is not None:
        if asked not in nodes:
            there = ", ".join(map(str, nodes)) or "unknown"
            raise SpecError(f"{facts.uri} has no NUMA node {asked}", path="numa", hint=f"there is: {there}")
        why.chose("numa", asked, ASKED)
        return asked
    if spec.numa == "none":
        why.chose("numa", "none", ASKED)
        return None
    if len(nodes) < 2:
        return None  # nothing to choose, and nothing to say
    if explicit is not None:
        node = facts.topology.node_of(frozenset(n for cpus in explicit for n in cpus))
        if node is None:
            why.warn("the vCPUs are pinned to several NUMA nodes, and share memory across them")
            return None
        why.chose("numa", node, "the node of the CPUs that the vCPUs are pinned to", rejected=_REMOTE)
        return node
    if not (defaults.numa or pin):
        reason = f"the kernel balances over {len(nodes)} nodes"
        why.chose("numa", "none", reason, rejected=(Rejected("one node", "its memory may run out while others have"),))
        return None
    best = max(nodes, key=lambda n: (_fits(n, spec, facts, memory), facts.node_free.get(n, 0), -n))
    why.chose("numa", best, "room for all of it, and the most free memory; no access crosses nodes", rejected=_REMOTE)
    return best


_REMOTE = (Rejected("none", "memory of another node answers later"),)


def _fits(node: int, spec: VmSpec, facts: HostFacts, memory: Bytes) -> tuple[int, int]:
    """Preferred are nodes with enough cores for the vCPUs, then those with huge pages for the memory."""
    cores = len(_free_cores(facts, node))
    pages = any(pool.free * size >= memory for size, pool in facts.huge_pages.get(node, {}).items())
    return min(cores, spec.vcpus), int(pages)


def _free_cores(facts: HostFacts, node: int | None) -> list[tuple[int, ...]]:
    """Cores that a VM may have to itself: none of their threads is another VM's, and the host keeps its first core."""
    every = facts.topology.cores()
    kept = set(every[0]) if every else set()
    return [c for c in facts.topology.cores(node) if not (set(c) & (kept | set(facts.pinned)))]


def _automatic(spec: VmSpec, facts: HostFacts, node: int | None, why: Reasons) -> Place:
    nodes: list[int | None] = [node] if node is not None else [*facts.topology.nodes] or [None]
    for candidate in nodes:
        cores = _free_cores(facts, candidate)
        if len(cores) >= spec.vcpus:
            pinning = _pinned(facts, tuple((c[0],) for c in cores[: spec.vcpus]), [n for c in cores for n in c])
            why.chose(
                "pinning",
                _shown(pinning),
                "a core of its own for each vCPU; the host, QEMU and other VMs keep off them",
                rejected=(*_FLOATING, *_siblings(cores)),
            )
            return Place(node, pinning, (1, spec.vcpus, 1))
        threads = [n for c in cores if len(c) == 2 for n in c]
        if spec.vcpus % 2 == 0 and len(threads) >= spec.vcpus:
            pinning = _pinned(facts, tuple((n,) for n in threads[: spec.vcpus]), threads)
            why.chose(
                "pinning",
                _shown(pinning),
                "whole cores, a thread for each vCPU: there are too few cores for one each",
                rejected=_FLOATING,
            )
            return Place(node, pinning, (1, spec.vcpus // 2, 2))
    most = max(len(_free_cores(facts, n)) for n in nodes)
    reason = (
        f"{spec.vcpus} vCPUs need as many cores of one node that nobody is pinned to, and {most} of them "
        f"{'is' if most == 1 else 'are'} there (the host keeps its first)"
    )
    if spec.pinning == "auto":
        raise RefusedError(f"pinning: {reason}", hint="take fewer vCPUs, name CPUs yourself, or pinning: none")
    why.chose("pinning", "none", reason, rejected=(Rejected("auto", "would put two vCPUs on a core"),))
    return _floating(facts, node)


def _floating(facts: HostFacts, node: int | None) -> Place:
    """Not pinned: the vCPUs go where the scheduler has them, on the CPUs of the memory's node if that was chosen."""
    if node is None:
        return Place()
    near = {c.number for c in facts.topology.cpus if c.node == node}
    return Place(node, cpuset=tuple(sorted(near - facts.pinned or near)))


def _siblings(cores: list[tuple[int, ...]]) -> tuple[Rejected, ...]:
    if all(len(c) == 1 for c in cores):
        return ()
    return (Rejected("two vCPUs on a core", "threads of a core share its units; there are cores enough"),)


def _pinned(facts: HostFacts, vcpus: tuple[tuple[int, ...], ...], taken: list[int]) -> Pinning:
    used = {n for cpus in vcpus for n in cpus}
    # Siblings of the cores in use stay idle: nothing else is put there.
    used |= {n for c in facts.topology.cores() if set(c) & used for n in c} & set(taken)
    return Pinning(vcpus, _rest(facts, frozenset(used)))


def _rest(facts: HostFacts, used: frozenset[int]) -> tuple[int, ...]:
    """CPUs for QEMU's other threads: those that no vCPU is pinned to, or the first core where none is left."""
    left = sorted(facts.topology.numbers - used - set(facts.pinned))
    every = facts.topology.cores()
    return tuple(left) if left else every[0] if every else ()


def _shown(pinning: Pinning) -> str:
    vcpus = " ".join(f"{i}->{ranges(frozenset(cpus))}" for i, cpus in enumerate(pinning.vcpus))
    return f"{vcpus} rest->{ranges(frozenset(pinning.rest))}" if pinning.rest else vcpus


def ranges(cpus: frozenset[int]) -> str:
    """CPU numbers as the kernel lists them: `0-3,8`."""
    parts: list[list[int]] = []
    for n in sorted(cpus):
        if parts and parts[-1][-1] == n - 1:
            parts[-1] = [parts[-1][0], n]
        else:
            parts.append([n])
    return ",".join("-".join(map(str, p)) for p in parts)
