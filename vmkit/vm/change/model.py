"""A difference between a VM and its spec, how it can be brought about, and what has to be done for it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkit.values import Bytes

if TYPE_CHECKING:
    from vmkit.vm.spec import VmSpec
    from vmkit.vm.xml_size import Size


class Effect(enum.Enum):
    """When a change takes effect."""

    LIVE = "live"
    NEXT_START = "at next start"
    REBOOT = "needs reboot"
    RECREATE = "needs re-creation"


@dataclass(frozen=True, slots=True)
class SetSize:
    """vCPUs and memory: of the definition, and of what runs (None: not touched there).

    Attributes:
        size: of the definition.
        vcpus: vCPUs of what runs.
        add: bytes of memory that are added to what runs.
        remove: XML of the memory that is taken from what runs.
    """

    size: Size
    vcpus: int | None = None
    add: Bytes | None = None
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AddDisk:
    """A new disk: its number in the spec, its name in the VM, whether it goes into what runs."""

    index: int
    device: str
    live: bool


@dataclass(frozen=True, slots=True)
class RemoveDisk:
    """A disk that goes: its name in the VM, its file on the host, whether it is taken from what runs."""

    device: str
    source: str | None
    live: bool


@dataclass(frozen=True, slots=True)
class GrowDisk:
    """A disk that gets larger."""

    device: str
    source: str
    size: Bytes


@dataclass(frozen=True, slots=True)
class RebuildDisk:
    """A disk that is attached in another way at the next start: its number in the spec, its present name."""

    index: int
    device: str


@dataclass(frozen=True, slots=True)
class AddNic:
    """A new NIC: its number in the spec, its MAC address, whether it goes into what runs."""

    index: int
    mac: str
    live: bool


@dataclass(frozen=True, slots=True)
class RemoveNic:
    """A NIC that goes: its MAC address, whether it is taken from what runs."""

    mac: str
    live: bool


@dataclass(frozen=True, slots=True)
class MoveNic:
    """A NIC that is plugged into another network, its card untouched."""

    index: int
    mac: str


@dataclass(frozen=True, slots=True)
class ReplaceNic:
    """A NIC that is taken out and put in again in another form, with the same MAC address unless `new` differs."""

    index: int
    mac: str
    new: str


@dataclass(frozen=True, slots=True)
class Redesign:
    """Parts of the definition outside of disks and NICs are decided anew."""


@dataclass(frozen=True, slots=True)
class SetLimits:
    """Limits of the VM, its disks and NICs become those of the spec."""


@dataclass(frozen=True, slots=True)
class SetAutostart:
    """It starts with its host, or not."""

    on: bool


Act = (
    SetSize
    | AddDisk
    | RemoveDisk
    | GrowDisk
    | RebuildDisk
    | AddNic
    | RemoveNic
    | MoveNic
    | ReplaceNic
    | Redesign
    | SetLimits
    | SetAutostart
)


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        path: of the field, as in `disks[1].size`.
        old, new: in words; '' where there is none.
        effect: when it takes effect.
        reason: why then, or what happens.
        act: what is done; None where only the spec that vmkit remembers changes, or the VM is made anew.
    """

    path: str
    old: str
    new: str
    effect: Effect
    reason: str = ""
    act: Act | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """All that has to be done about one VM that exists.

    Attributes:
        name: of the VM.
        changes: what differs.
        spec: what its definition will have been made from.
        running: what the process that runs will correspond to; None if it is shut off.
        pending: fields that were changed earlier, and take effect when it is shut down and started.
    """

    name: str
    changes: tuple[Change, ...]
    spec: VmSpec
    running: VmSpec | None
    pending: tuple[str, ...] = ()

    @property
    def recreate(self) -> bool:
        """Whether the VM would have to be made anew."""
        return any(c.effect is Effect.RECREATE for c in self.changes)

    @property
    def reboot(self) -> bool:
        """Whether something waits for its being shut down and started."""
        return bool(self.pending) or any(c.effect is Effect.REBOOT for c in self.changes)
