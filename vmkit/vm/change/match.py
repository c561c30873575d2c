"""Which part of a new spec is which part of the old one, where neither has a name. Pure.

Disks and NICs are lists. Whoever deletes an entry in the middle has not turned each of those behind it into another:
equal ones are found first, wherever they stand, then similar ones; what is left came or goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from vmkit.vm.change.shape import backing_of
from vmkit.vm.spec import VmSpec
from vmkit.vm.spec_parts import DiskIo, DiskLimits, DiskSpec, NicIo, NicLimits, NicSpec

T = TypeVar("T")

EQUAL = 3
ALIKE = 2
POSSIBLE = 1
NEVER = 0


def pairs(have: Sequence[T], want: Sequence[T], score: Callable[[int, int], int]) -> dict[int, int]:
    """For each entry of `want` that is an entry of `have`: its number there. The best score goes first, then order."""
    found: dict[int, int] = {}
    for level in (EQUAL, ALIKE, POSSIBLE):
        left = [h for h in range(len(have)) if h not in found.values()]
        for w in range(len(want)):
            if w in found:
                continue
            candidates = [h for h in left if score(h, w) >= level]
            if candidates:
                best = w if w in candidates else candidates[0]
                found[w] = best
                left.remove(best)
    return found


def disk_score(
    old: VmSpec, have: Sequence[DiskSpec], new: VmSpec, want: Sequence[DiskSpec], *, image_disk: bool
) -> Callable[[int, int], int]:
    """How well a disk of `want` can be one of `have`."""

    def score(h: int, w: int) -> int:
        a, b = have[h], want[w]
        if (a.io is DiskIo.PASSTHROUGH) != (b.io is DiskIo.PASSTHROUGH) or a.source != b.source:
            return NEVER
        if backing_of(old, a, h, image_disk=image_disk) != backing_of(new, b, w, image_disk=image_disk):
            return NEVER
        if a == b:
            return EQUAL
        plain = [msgspec.structs.replace(d, size=None, limits=DiskLimits(), image=None) for d in (a, b)]
        # A smaller size is no sign of another disk: the smaller one is refused, and no disk is taken for another.
        return ALIKE if plain[0] == plain[1] else POSSIBLE

    return score


def nic_score(
    have: Sequence[NicSpec], macs: Sequence[str | None], want: Sequence[NicSpec]
) -> Callable[[int, int], int]:
    """How well a NIC of `want` can be one of `have`, whose MAC addresses are `macs`."""

    def score(h: int, w: int) -> int:
        a, b = have[h], want[w]
        assigned = (NicIo.PASSTHROUGH, NicIo.SRIOV)
        if (a.io in assigned or b.io in assigned) and (a.io, a.device, a.pf) != (b.io, b.device, b.pf):
            return NEVER
        if b.mac is not None and macs[h]:
            return EQUAL if b.mac.lower() == macs[h] else NEVER
        if a == b:
            return EQUAL
        plain = [msgspec.structs.replace(n, limits=NicLimits(), mac=None) for n in (a, b)]
        return ALIKE if plain[0] == plain[1] or a.network == b.network else POSSIBLE

    return score
