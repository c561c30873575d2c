"""Which VMs move where, in which order: pure. Never over a host's capacity, and with the fewest moves that are found.

While a VM moves it takes its memory and its vCPUs on both hosts. The moves are in an order in which they can be carried
out one after the other; `may_start` says when the next one may begin beside those that are under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

EXTRA: Final = 2
"""At most so many VMs of other hosts are moved out of the way."""
TRIES: Final = 20_000
"""Placements that are tried before the search ends: well below a second."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a VM takes: bytes of memory (as much as it may ever have), and vCPUs."""

    name: str
    memory: int
    vcpus: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a host can give to VMs in all: bytes of memory, and vCPUs."""

    memory: int
    vcpus: int


@dataclass(frozen=True, slots=True)
class Move:
    """One migration, and why it is in the plan."""

    vm: str
    source: str
    target: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many migrations at once: of one host (in or out), and from one host to one other."""

    host: int = 2
    link: int = 2


@dataclass(frozen=True, slots=True)
class Fleet:
    """Hosts and the VMs on them.

    Attributes:
        rooms: host -> what it has.
        at: host -> its VMs.
        bans: (VM, host): that VM cannot go there.
        loads: host -> what its VMs take; follows from `at`.
    """

    rooms: Mapping[str, Room]
    at: Mapping[str, tuple[Need, ...]]
    bans: frozenset[tuple[str, str]] = frozenset()
    loads: Mapping[str, Room] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.loads:
            loads = {h: Room(sum(v.memory for v in vms), sum(v.vcpus for v in vms)) for h, vms in self.at.items()}
            object.__setattr__(self, "loads", loads)

    def used(self, host: str) -> Room:
        """What the VMs of a host take."""
        return self.loads[host]

    def fits(self, vm: Need, host: str, beside: Iterable[Need] = ()) -> bool:
        """Whether a host has room for a VM, with those of `beside` on it too."""
        used, more = self.used(host), [vm, *beside]
        memory = used.memory + sum(v.memory for v in more)
        vcpus = used.vcpus + sum(v.vcpus for v in more)
        return memory <= self.rooms[host].memory and vcpus <= self.rooms[host].vcpus

    def takes(self, vm: Need, host: str) -> bool:
        """Whether a VM can go to a host now."""
        return (vm.name, host) not in self.bans and self.fits(vm, host)

    def moved(self, vm: Need, source: str, target: str) -> Fleet:
        """The same after one move."""
        at = {**self.at, source: tuple(v for v in self.at[source] if v != vm), target: (*self.at[target], vm)}
        out, into = self.loads[source], self.loads[target]
        changed = {
            source: Room(out.memory - vm.memory, out.vcpus - vm.vcpus),
            target: Room(into.memory + vm.memory, into.vcpus + vm.vcpus),
        }
        return Fleet(self.rooms, at, self.bans, {**self.loads, **changed})

    def share(self, host: str) -> float:
        """How full a host is: the larger one of the parts of its memory and of its vCPUs."""
        used, room = self.used(host), self.rooms[host]
        return max(used.memory / max(1, room.memory), used.vcpus / max(1, room.vcpus))

    @property
    def spread(self) -> float:
        """How far the fullest host and the emptiest are apart."""
        shares = [self.share(h) for h in self.rooms]
        return max(shares) - min(shares)


@dataclass(slots=True)
class _Budget:
    left: int = TRIES

    def spend(self) -> bool:
        self.left -= 1
        return self.left >= 0


def drain(fleet: Fleet, host: str) -> tuple[Move, ...] | None:
    """Moves that leave a host without VMs; None if none were found.

    Every VM of the host moves once. Where they find no room, VMs of the others are moved out of the way first, as few
    as will do, and at most EXTRA.
    """
    budget = _Budget()
    for extra in range(EXTRA + 1):
        for cleared, ahead in _cleared(fleet, host, extra, budget):
            vms = sorted(fleet.at[host], key=lambda v: (-v.memory, -v.vcpus, v.name))
            if (moves := _placed(cleared, host, vms, budget)) is not None:
                return (*ahead, *moves)
    return None


def _cleared(fleet: Fleet, host: str, extra: int, budget: _Budget) -> Iterator[tuple[Fleet, tuple[Move, ...]]]:
    """The fleet after every choice of so many moves between the other hosts."""
    if extra == 0:
        yield fleet, ()
        return
    others = [h for h in fleet.rooms if h != host]
    for source in others:
        for vm in sorted(fleet.at[source], key=lambda v: (v.memory, v.name)):
            for target in others:
                if target != source and fleet.takes(vm, target) and budget.spend():
                    move = Move(vm.name, source, target, "to make room")
                    for after, rest in _cleared(fleet.moved(vm, source, target), host, extra - 1, budget):
                        yield after, (move, *rest)


def _placed(fleet: Fleet, host: str, vms: Sequence[Need], budget: _Budget) -> tuple[Move, ...] | None:
    """A place for each VM, the largest first, each on the emptiest host that leads to a solution."""
    if not vms:
        return ()
    vm, *rest = vms
    for target in sorted((h for h in fleet.rooms if h != host), key=lambda h: (fleet.share(h), h)):
        if not fleet.takes(vm, target):
            continue
        if not budget.spend():
            return None
        after = fleet.moved(vm, host, target)
        if (found := _placed(after, host, rest, budget)) is not None:
            return (Move(vm.name, host, target, "it leaves that host"), *found)
    return None


def stuck(fleet: Fleet, host: str) -> list[Need]:
    """VMs of a host that no other host would take even if it were the only one to come, largest first."""
    others = [h for h in fleet.rooms if h != host]
    found = [v for v in fleet.at[host] if not any(fleet.takes(v, h) for h in others)]
    return sorted(found, key=lambda v: (-v.memory, -v.vcpus, v.name))


def rebalance(fleet: Fleet, tolerance: float) -> tuple[Move, ...]:
    """Moves after which the shares of all hosts are within `tolerance` of each other, or as near as can be had.

    One and two moves are tried in every combination, as far as the search may go, so that no more are made where they
    would do. Beyond that each move is the one that helps most. Empty if nothing helps, or nothing has to be done.
    """
    if fleet.spread <= tolerance:
        return ()
    budget = _Budget()
    for depth in (1, 2):
        if (moves := _evened(fleet, tolerance, depth, budget)) is not None:
            return moves
    found: list[Move] = []
    while fleet.spread > tolerance:
        best = min(_steps(fleet), key=lambda step: (_unevenness(step[1]), step[0].vm), default=None)
        if best is None or _unevenness(best[1]) >= _unevenness(fleet) - 1e-12:
            break
        found.append(best[0])
        fleet = best[1]
    return tuple(found)


def _evened(fleet: Fleet, tolerance: float, depth: int, budget: _Budget) -> tuple[Move, ...] | None:
    if fleet.spread <= tolerance:
        return ()
    if depth == 0:
        return None
    steps = []
    for step in _steps(fleet):
        if not budget.spend():
            return None
        steps.append(step)
    for move, after in sorted(steps, key=lambda step: (_unevenness(step[1]), step[0].vm)):
        if (rest := _evened(after, tolerance, depth - 1, budget)) is not None:
            return (move, *rest)
    return None


def _steps(fleet: Fleet) -> Iterator[tuple[Move, Fleet]]:
    """Every move from a fuller host to an emptier one."""
    for source in fleet.rooms:
        for target in fleet.rooms:
            if fleet.share(source) <= fleet.share(target):
                continue
            for vm in fleet.at[source]:
                if fleet.takes(vm, target):
                    why = f"{fleet.share(source):.0%} there and {fleet.share(target):.0%} here"
                    yield Move(vm.name, source, target, why), fleet.moved(vm, source, target)


def _unevenness(fleet: Fleet) -> float:
    """Sum of the squared distances of the shares from their mean."""
    shares = [fleet.share(h) for h in fleet.rooms]
    mean = sum(shares) / len(shares)
    return sum((s - mean) ** 2 for s in shares)


def may_start(fleet: Fleet, move: Move, under_way: Sequence[Move], limits: Limits) -> bool:
    """Whether a move may begin beside those under way, which have room on both hosts. `fleet` is as before them."""
    vms = {v.name: v for host in fleet.at.values() for v in host}
    hosts = [h for m in under_way for h in (m.source, m.target)]
    if any(hosts.count(h) >= limits.host for h in (move.source, move.target)):
        return False
    if sum((m.source, m.target) == (move.source, move.target) for m in under_way) >= limits.link:
        return False
    coming = [vms[m.vm] for m in under_way if m.target == move.target]
    return (move.vm, move.target) not in fleet.bans and fleet.fits(vms[move.vm], move.target, coming)


def carried_out(fleet: Fleet, moves: Sequence[Move], check: Callable[[Fleet], None] = lambda _fleet: None) -> Fleet:
    """The fleet after the moves, one after the other; `check` sees each state on the way.

    Raises:
        ValueError: one does not fit.
    """
    for move in moves:
        vm = next(v for v in fleet.at[move.source] if v.name == move.vm)
        if not fleet.takes(vm, move.target):
            raise ValueError(f"{move.vm} does not fit on {move.target}")
        fleet = fleet.moved(vm, move.source, move.target)
        check(fleet)
    return fleet
