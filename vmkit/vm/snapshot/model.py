"""What a snapshot is, read from libvirt's XML, and the tree that snapshots make. Pure.

Format: https://libvirt.org/formatsnapshot.html.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from vmkit.vm.describe import Disk, describe


class Kind(enum.Enum):
    """Where the state of a snapshot is kept."""

    INTERNAL = "internal"
    EXTERNAL = "external"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot.

    Attributes:
        name: unique among those of its VM.
        parent: the snapshot that was current when it was taken; None for a first one.
        created: UTC, ISO 8601.
        state: of the VM at that moment: 'running', 'paused', 'shut off'.
        memory: whether it holds the VM's memory.
        kind: whether its state lies inside the disks' own files or in files beside them.
        current: whether the VM's state comes after this one.
        description: what its maker wrote.
        disks: devices that it holds, as in 'vda'.
    """

    name: str
    parent: str | None
    created: str
    state: str
    memory: bool
    kind: Kind
    current: bool
    description: str
    disks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SnapshotFiles:
    """The files that a snapshot is made of.

    Attributes:
        before: the VM's disks when it was taken, by device: what a revert goes back to.
        overlays: files that the VM wrote to from then on, by device; none for an internal one.
        memory: file that holds the memory; None where it is inside a disk, or is not held.
    """

    before: dict[str, str]
    overlays: dict[str, str]
    memory: str | None


def parse(xml: str, *, current: bool = False) -> Snapshot:
    """Read a <domainsnapshot>."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    disks = [d for d in root.iterfind("disks/disk") if d.get("snapshot") in ("internal", "external")]
    memory = root.find("memory")
    held = memory.get("snapshot", "no") if memory is not None else "no"
    external = held == "external" or any(d.get("snapshot") == "external" for d in disks)
    state = root.findtext("state", "")
    when = datetime.fromtimestamp(int(root.findtext("creationTime", "0")), UTC)
    return Snapshot(
        name=root.findtext("name", ""),
        parent=root.findtext("parent/name"),
        created=when.isoformat(timespec="seconds"),
        state={"shutoff": "shut off", "disk-snapshot": "running"}.get(state, state),
        memory=held != "no",
        kind=Kind.EXTERNAL if external else Kind.INTERNAL,
        current=current,
        description=root.findtext("description", ""),
        disks=tuple(d.get("name", "") for d in disks),
    )


def files_of(xml: str) -> SnapshotFiles:
    """The files of a snapshot, from its <domainsnapshot>."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    domain = root.find("domain")
    before = sources(describe(ET.tostring(domain, encoding="unicode")).disks) if domain is not None else {}
    overlays = {}
    for disk in root.iterfind("disks/disk[@snapshot='external']"):
        source = disk.find("source")
        if source is not None and (path := source.get("file") or source.get("dev")):
            overlays[disk.get("name", "")] = path
    memory = root.find("memory")
    return SnapshotFiles(before, overlays, memory.get("file") if memory is not None else None)


def sources(disks: Sequence[Disk]) -> dict[str, str]:
    """The file or device of each disk, by the guest's name for it."""
    return {d.device: d.source for d in disks if d.source and d.kind == "disk"}


def in_order(snapshots: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
    """Each after its parent, and brothers by age."""
    known = {s.name for s in snapshots}
    found: list[Snapshot] = []

    def add(parent: str | None) -> None:
        mine = [s for s in snapshots if (s.parent if s.parent in known else None) == parent]
        for one in sorted(mine, key=lambda s: (s.created, s.name)):
            found.append(one)
            add(one.name)

    add(None)
    return tuple(found)


def tree(snapshots: Sequence[Snapshot]) -> tuple[str, ...]:
    """The snapshots as lines of a tree; where the VM is now is shown as a leaf of its own."""
    ordered = in_order(snapshots)
    known = {s.name for s in ordered}
    lines: list[str] = []

    def children(parent: str | None) -> list[Snapshot | None]:
        found: list[Snapshot | None] = [s for s in ordered if (s.parent if s.parent in known else None) == parent]
        here = next((s.name for s in ordered if s.current), None)
        return [*found, None] if here == parent else found

    def draw(one: Snapshot | None, lead: str, mark: str, below: str) -> None:
        lines.append(f"{lead}{mark}{_label(one)}")
        if one is None:
            return
        inner = children(one.name)
        for i, child in enumerate(inner, 1):
            last = i == len(inner)
            draw(child, lead + below, "└─ " if last else "├─ ", "   " if last else "│  ")

    for root in children(None):
        draw(root, "", "", "")
    return tuple(lines)


def descendants(snapshots: Sequence[Snapshot], name: str) -> tuple[str, ...]:
    """Names of everything that comes after a snapshot, each after its parent."""
    below: set[str] = {name}
    found = []
    for one in in_order(snapshots):
        if one.parent in below:
            below.add(one.name)
            found.append(one.name)
    return tuple(found)


def _label(one: Snapshot | None) -> str:
    if one is None:
        return "(now)"
    what = f"{one.state}, {'with' if one.memory else 'without'} memory" if one.state != "shut off" else one.state
    text = f"{one.name}  {one.created}  {what}"
    return f"{text}  {one.description}" if one.description else text
