"""Measuring, before a migration, what its prediction rests on: the guest's memory, and how it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkit.errors import VmkitError
from vmkit.migrate.facts import GuestFacts
from vmkit.migrate.predict import Measured, Point, Range
from vmkit.migrate.record import Learned

if TYPE_CHECKING:
    from vmkit.hypervisor.dirty import InUse, Sample
    from vmkit.hypervisor.domain import Domain

WINDOWS_S: Final = (0.2, 1.0)
"""A short one for the rate, a long one to see where the guest begins to write the same pages again."""
OWN_BYTES: Final = 64 * 2**20
"""What a QEMU process takes beside the guest's memory, about; measured 60 to 90 MiB with QEMU 10.0."""
ASSUMED: Final = Range(30e6, 117e6, 1.2e9)
"""Bandwidth where nothing is known: 1 Gbit/s, and from 1/4 of that to 10 Gbit/s."""


def measure(domain: Domain, guest: GuestFacts, limit: int | None, learned: Learned) -> Measured:
    """Watch the guest for about a second, and put that together with what earlier migrations told.

    Args:
        domain: the VM at its source; nothing of it is changed.
        guest: its facts.
        limit: bytes a second that the user allows; None for no limit.
        learned: from the record.
    """
    from vmkit.hypervisor.dirty import memory_in_use

    points, how = _dirty(domain, guest)
    return put_together(guest, memory_in_use(domain), points, how, limit, learned)


def put_together(
    guest: GuestFacts, use: InUse, points: tuple[Point, ...], how: str, limit: int | None, learned: Learned
) -> Measured:
    """The acting half's findings as one value. Pure."""
    used, used_from = _used(guest.memory, use, learned)
    free = learned.bandwidth or learned.link
    link = learned.link or ASSUMED
    if limit is None:
        bandwidth = free or ASSUMED
        way = "earlier migrations between these hosts" if free else "nothing: 1 Gbit/s is assumed"
    else:
        bandwidth = Range(min(limit * 0.95, link.low), min(limit, link.likely), min(limit * 1.05, link.high))
        way = "the limit"
    if learned.link is None:
        link = Range(bandwidth.low, max(bandwidth.likely, ASSUMED.likely), max(bandwidth.high, ASSUMED.high))
    sources = (
        ("used", used_from),
        ("dirty", how),
        ("bandwidth", way),
        ("link", "earlier migrations between these hosts" if learned.link else "nothing: 1 Gbit/s is assumed"),
    )
    plain = Measured(guest.memory, used, points, bandwidth, link, sources=sources)
    return Measured(
        guest.memory,
        used,
        points,
        bandwidth,
        link,
        learned.setup or plain.setup,
        learned.extra or plain.extra,
        sources,
    )


def _dirty(domain: Domain, guest: GuestFacts) -> tuple[tuple[Point, ...], str]:
    from vmkit.hypervisor.dirty import sample

    if guest.paused:
        return (Point(1.0, 0.0),), "it is paused"
    kvm = guest.virt_type == "kvm"
    try:
        seen = [sample(domain, w, guest.memory, bitmap=kvm) for w in WINDOWS_S]
        if kvm and not any(s.bytes for s in seen):  # an idle guest, or a log that counts nothing: ask the other way
            kvm, seen = False, [sample(domain, w, guest.memory, bitmap=False) for w in WINDOWS_S]
    except VmkitError as e:
        return (), e.message
    how = "the hypervisor's dirty log" if kvm else f"a sample of {seen[0].pages} pages"
    return curve(seen), how


def curve(samples: list[Sample]) -> tuple[Point, ...]:
    """Distinct dirty pages over time: never falling, and never bent upwards (which only noise can do)."""
    points: list[Point] = []
    for s in sorted(samples, key=lambda s: s.seconds):
        value = float(s.bytes)
        if points:
            value = max(points[-1].bytes, min(value, points[-1].bytes * s.seconds / points[-1].seconds))
            if not points[-1].bytes:
                value = float(s.bytes)
        points.append(Point(s.seconds, value))
    return tuple(points)


def _used(memory: int, use: InUse, learned: Learned) -> tuple[Range, str]:
    """What holds more than zeros. What the VM used in an earlier migration is a lower bound: it may have grown."""
    inside = None if use.unused is None or use.available is None else float(max(0, use.available - use.unused))
    if use.resident is None:
        if learned.used:
            u, top = learned.used, float(memory)
            return Range(min(u.low, top), min(u.likely, top), top), "earlier migrations of this VM"
        low = inside or 0.1 * memory
        return Range(low, max(low, 0.7 * memory), float(memory)), "nothing: most of it is taken to be in use"
    touched = float(min(memory, max(inside or 0.0, use.resident - OWN_BYTES)))
    low = 0.4 * touched  # pages that were touched and hold zeros again cross as a few bytes
    if learned.used:
        low = min(touched, max(low, 0.9 * learned.used.low))
    return Range(low, max(low, 0.9 * touched), touched), "what the QEMU process has in memory"
