"""What became of a migration: a pure decision from what both hosts say.

It never guesses. A guest whose vCPUs stand still is let go only where it is certain that no other copy ran after it
stopped; where that is not certain the verdict is UNKNOWN and says what to look at.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vmkit.hypervisor.migration import Sighting


class Seen(enum.Enum):
    """One host's view of the VM, as far as it matters here."""

    UNREACHABLE = "the host does not answer"
    ABSENT = "not there"
    DEFINED = "defined, shut off"
    RUNNING = "running"
    PAUSED = "paused by someone"
    HALTED = "paused by the migration"
    BUSY = "in a migration"
    CRASHED = "crashed"
    HANDED = "handed over by post-copy"
    PULLING = "running, with a part of its memory still at the source"
    BROKEN = "cut off in post-copy"

    @property
    def active(self) -> bool:
        """Whether there is a guest."""
        return self not in (Seen.UNREACHABLE, Seen.ABSENT, Seen.DEFINED)


_ALIVE: Final = frozenset({Seen.RUNNING, Seen.PAUSED, Seen.CRASHED})
"""It is the VM, all right or not, and no half of a migration. (Someone may pause it at any time.)"""


class Action(enum.Enum):
    """What brings both hosts in order."""

    REMOVE_INCOMING = "remove the incoming copy at the target"
    FORGET_TARGET = "remove the definition at the target"
    RESUME_SOURCE = "let the guest at the source run again"
    STOP_SOURCE = "remove the stopped copy at the source"
    DEFINE_TARGET = "define it at the target"
    FORGET_SOURCE = "remove the definition at the source"


class Place(enum.Enum):
    """Where the VM is."""

    SOURCE = "source"
    TARGET = "target"
    NOWHERE = "nowhere"
    WAIT = "not settled yet"
    SPLIT = "split between both hosts"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Intent:
    """What was there before.

    Attributes:
        was_paused: the guest stood still because someone had paused it.
        persistent: it was defined at the source.
        target_defined: the target already held an inactive definition of it.
        touched: whether the transfer may have begun.
        cold: it was shut off, so that its definition is all that libvirt moves.
    """

    was_paused: bool
    persistent: bool
    target_defined: bool
    touched: bool = True
    cold: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where the VM is, what is left to do, and why that is certain (or why not)."""

    place: Place
    actions: tuple[Action, ...]
    why: str


def classify(seen: Sighting | None) -> Seen:
    """Read one host's answer."""
    from vmkit.hypervisor.domain import DomainState

    if seen is None:
        return Seen.ABSENT
    if seen.reason == "post-copy failed":
        return Seen.BROKEN
    if seen.migrating:
        return Seen.BUSY
    if seen.reason == "post-copy":
        return Seen.HANDED if seen.state is DomainState.PAUSED else Seen.PULLING
    match seen.state:
        case DomainState.RUNNING | DomainState.BLOCKED | DomainState.PMSUSPENDED | DomainState.SHUTDOWN:
            return Seen.RUNNING
        case DomainState.PAUSED:
            return Seen.HALTED if seen.reason in ("migration", "starting up") else Seen.PAUSED
        case DomainState.SHUTOFF:
            return Seen.DEFINED
        case _:
            return Seen.CRASHED


def decide(source: Seen, target: Seen, intent: Intent) -> Verdict:
    """Where the VM is, from what both hosts say. The order of the cases is the order of certainty."""
    if not intent.touched:
        return Verdict(Place.SOURCE, (), "the transfer had not begun, so nothing was touched")
    if Seen.UNREACHABLE in (source, target):
        which = "source" if source is Seen.UNREACHABLE else "target"
        other = target if source is Seen.UNREACHABLE else source
        place = "target" if source is Seen.UNREACHABLE else "source"
        return Verdict(Place.UNKNOWN, (), f"the {which} does not answer; at the {place} it is {other.value}")
    if intent.cold:
        return _cold(source, target, intent)
    if Seen.BROKEN in (source, target):
        return _broken(source, target)
    if Seen.BUSY in (source, target) or target is Seen.PULLING:
        return Verdict(Place.WAIT, (), "libvirt is still at work on it")
    if source is Seen.PULLING:
        return Verdict(Place.UNKNOWN, (), "the source says that it is itself the target of a post-copy")
    if source in _ALIVE and target in _ALIVE:
        return Verdict(Place.UNKNOWN, (), f"it is {source.value} at the source and {target.value} at the target")
    if source in _ALIVE:
        return _at_source(source, target, intent)
    if target in _ALIVE:
        return _at_target(source, intent)
    return _neither(source, target, intent)


def _cold(source: Seen, target: Seen, intent: Intent) -> Verdict:
    """Where a VM is that was shut off. Its disks at the target are whole before its definition comes there."""
    moving = [s for s in (source, target) if s.active and s not in _ALIVE]
    if moving or (source.active and target.active):
        return Verdict(Place.UNKNOWN, (), f"it is {source.value} at the source and {target.value} at the target")
    if target.active:
        forget = (Action.FORGET_SOURCE,) if source is Seen.DEFINED else ()
        return Verdict(Place.TARGET, forget, "somebody has started it at the target")
    if source is not Seen.ABSENT:
        left_over = target is Seen.DEFINED and not intent.target_defined
        forget = (Action.FORGET_TARGET,) if left_over else ()
        return Verdict(Place.SOURCE, forget, f"it is {source.value} at the source")
    if target is Seen.DEFINED:
        return Verdict(Place.TARGET, (), "it is defined at the target, and not at the source any more")
    return Verdict(Place.UNKNOWN, (), "neither host has it")


def _broken(source: Seen, target: Seen) -> Verdict:
    """Post-copy was cut off: each host has a part of the memory, and the newest state is at the target."""
    parts = (Seen.BROKEN, Seen.HANDED, Seen.BUSY)
    if source in parts and (target in parts or target in (Seen.PULLING, Seen.HALTED)):
        why = "post-copy was cut off: a part of its memory is at the source and the rest at the target"
        return Verdict(Place.SPLIT, (), why)
    if target in _ALIVE:
        return Verdict(Place.UNKNOWN, (), f"it is {target.value} at the target, and {source.value} at the source")
    if source is Seen.BROKEN:
        return Verdict(Place.UNKNOWN, (), "post-copy was cut off, and the copy at the target, which had run, is gone")
    return Verdict(
        Place.UNKNOWN, (), "post-copy was cut off, and the part of its memory that was at the source is gone"
    )


def _at_source(source: Seen, target: Seen, intent: Intent) -> Verdict:
    why = f"it is {source.value} at the source"
    match target:
        case Seen.HALTED:
            return Verdict(Place.SOURCE, (Action.REMOVE_INCOMING,), f"{why}; the target has a copy that never ran")
        case Seen.DEFINED if not intent.target_defined:
            return Verdict(Place.SOURCE, (Action.FORGET_TARGET,), f"{why}; the target has a definition of it left over")
        case _:
            return Verdict(Place.SOURCE, (), why)


def _at_target(source: Seen, intent: Intent) -> Verdict:
    actions = [Action.DEFINE_TARGET] if intent.persistent else []
    if source in (Seen.HALTED, Seen.HANDED):
        actions.append(Action.STOP_SOURCE)
    if intent.persistent and source is not Seen.ABSENT:
        actions.append(Action.FORGET_SOURCE)
    return Verdict(Place.TARGET, tuple(actions), "it runs at the target")


def _neither(source: Seen, target: Seen, intent: Intent) -> Verdict:
    """No copy runs: the source stands still for the migration, or has ended."""
    if source is Seen.HANDED:
        gone = target in (Seen.ABSENT, Seen.DEFINED)
        what = "the copy at the target, which may have run, is gone" if gone else f"the target's is {target.value}"
        return Verdict(Place.UNKNOWN, (), f"it was handed over by post-copy, and {what}")
    if source is Seen.HALTED and target in (Seen.ABSENT, Seen.DEFINED):
        # Before a copy at the target runs, libvirt defines it there (PERSIST_DEST, in the finish phase; seen with
        # 11.3). So the absence of a definition shows that none ran. For a transient VM, or one that the target had
        # defined before, nothing shows it.
        if target is Seen.ABSENT and intent.persistent:
            actions = () if intent.was_paused else (Action.RESUME_SOURCE,)
            return Verdict(Place.SOURCE, actions, "the target has no copy and never ran one")
        return Verdict(
            Place.UNKNOWN, (), "it stands still at the source, and whether a copy ran at the target is not known"
        )
    if source is Seen.HALTED:
        return Verdict(Place.WAIT, (), "it stands still on both hosts, and libvirt has not removed the incoming copy")
    if target is Seen.HALTED:
        if source is Seen.DEFINED:
            return Verdict(
                Place.NOWHERE, (Action.REMOVE_INCOMING,), "the guest ended at the source during the transfer"
            )
        return Verdict(Place.UNKNOWN, (), "it is gone from the source and stands still at the target")
    if source is Seen.DEFINED:
        forget = (Action.FORGET_TARGET,) if target is Seen.DEFINED and not intent.target_defined else ()
        return Verdict(Place.NOWHERE, forget, "the guest ended at the source during the transfer")
    if target is Seen.DEFINED and not intent.target_defined:
        return Verdict(Place.NOWHERE, (), "it moved to the target and was shut off there since")
    if intent.persistent:
        return Verdict(Place.UNKNOWN, (), "neither host runs it, and its definition is gone from the source")
    return Verdict(Place.NOWHERE, (), "the guest has ended")
