"""Where a snapshot's state shall lie: inside the disks or beside them. Pure.

The two kinds are never mixed on one VM: a revert to an internal snapshot writes into the very file that an external one
rests upon, and libvirt lets that happen (seen with libvirt 11.3: the older state of the disk under a newer memory).
"""

from __future__ import annotations

from typing import Final

from vmkit.errors import UnsupportedError
from vmkit.plan import Choice, Rejected
from vmkit.vm.describe import Disk
from vmkit.vm.snapshot.facts import SnapshotFacts
from vmkit.vm.snapshot.model import Kind

EXTERNAL_SINCE: Final = (10, 0, 0)
"""libvirt that goes back to external snapshots; older ones only make them (qemu_snapshot.c, August 2023)."""
NVRAM_SINCE: Final = (10, 9, 0)
"""libvirt that keeps UEFI variables in qcow2 inside internal snapshots of a running VM."""


def choose(facts: SnapshotFacts, *, memory: bool) -> tuple[Kind, Choice]:
    """The kind of a new snapshot, and why.

    Raises:
        UnsupportedError: neither can be; says what is against each.
    """
    disks = held(facts)
    internal, external = _against_internal(facts, disks, memory=memory), _against_external(facts, disks)
    if internal is None:
        text = "every disk is qcow2, which holds its own snapshots" if disks else "the driver knows no other"
        also = "no second file slows the disks down, and any snapshot can be deleted"
        rejected = (Rejected(Kind.EXTERNAL.value, external or also),)
        return Kind.INTERNAL, Choice("snapshot", Kind.INTERNAL.value, text, rejected)
    if external is None:
        rejected = (Rejected(Kind.INTERNAL.value, internal),)
        return Kind.EXTERNAL, Choice("snapshot", Kind.EXTERNAL.value, "files beside the disks hold it", rejected)
    raise UnsupportedError(
        f"no snapshot of {facts.name} can be made",
        details=(f"internal: {internal}", f"external: {external}"),
        hint=_way_out(facts),
    )


def held(facts: SnapshotFacts) -> tuple[Disk, ...]:
    """The disks that a snapshot holds: those that the guest can write to."""
    return tuple(d for d in facts.disks if d.kind == "disk" and not d.readonly and d.source)


def _against_internal(facts: SnapshotFacts, disks: tuple[Disk, ...], *, memory: bool) -> str | None:
    if facts.driver == "TEST":
        return None
    if any(s.kind is Kind.EXTERNAL for s in facts.snapshots):
        return "there are external ones, and going back to an internal one would change the files that they rest upon"
    if facts.state.active and not memory:
        return "QEMU puts the disks of a running VM into one only together with its memory"
    if not disks:
        return "there is no disk to keep it in"
    if wrong := next((d for d in disks if d.format != "qcow2"), None):
        return f"{wrong.device} is {wrong.format or 'of an unknown format'}, which holds no snapshots"
    if facts.state.active and facts.nvram == "raw":
        return "the UEFI variables are in a raw file, which holds no snapshots"
    if facts.state.active and facts.nvram and facts.libvirt < NVRAM_SINCE:
        return f"libvirt {_dotted(facts.libvirt)} takes none of a VM with UEFI ({_dotted(NVRAM_SINCE)} does)"
    return None


def _against_external(facts: SnapshotFacts, disks: tuple[Disk, ...]) -> str | None:
    if facts.driver != "QEMU":
        return f"libvirt's driver for {facts.driver} has none"
    if facts.libvirt < EXTERNAL_SINCE:
        return f"libvirt {_dotted(facts.libvirt)} cannot go back to one ({_dotted(EXTERNAL_SINCE)} can)"
    if any(s.kind is Kind.INTERNAL for s in facts.snapshots):
        return "there are internal ones, and going back to one of them would change the files that this one rests upon"
    if wrong := next((d for d in disks if not (d.source or "").startswith("/")), None):
        return f"{wrong.device} is not a file or a device of the host"
    if not disks and not facts.state.active:
        return "there is no disk to put a file upon"
    return None


def _way_out(facts: SnapshotFacts) -> str:
    if facts.snapshots:
        return f"delete those that are there first: vmkit snapshot list {facts.name}"
    if facts.state.active:
        return f"shut it down first: vmkit stop {facts.name}"
    return "put its disks into qcow2 files"


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
