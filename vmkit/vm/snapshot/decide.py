"""What taking, going back to and deleting a snapshot come down to. Pure: facts in, decisions with plans out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.errors import ConflictError, NotFoundError, RefusedError, UnsupportedError
from vmkit.hypervisor.domain import DomainState
from vmkit.plan import Plan, Step
from vmkit.values import check_name, quoted
from vmkit.vm.backup.marks import split_marks
from vmkit.vm.describe import Disk
from vmkit.vm.snapshot.choose import choose, held
from vmkit.vm.snapshot.facts import SnapshotFacts
from vmkit.vm.snapshot.model import Kind, Snapshot, descendants, sources

_RIGHT: Final = (DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF, DomainState.BLOCKED)


@dataclass(frozen=True, slots=True)
class Take:
    """A snapshot that is to be made.

    Attributes:
        name, description: of the snapshot.
        kind: where its state goes.
        memory: whether the memory goes in.
        overlays: new file for each disk, by device; none for an internal one.
        memory_file: where the memory goes; None for an internal one, or without memory.
        left_out: drives and disks that it does not hold.
        forget: marks of backups that are in the way.
        plan: all of it in words.
    """

    name: str
    description: str
    kind: Kind
    memory: bool
    overlays: dict[str, str]
    memory_file: str | None
    left_out: tuple[str, ...]
    forget: tuple[str, ...]
    plan: Plan


@dataclass(frozen=True, slots=True)
class Revert:
    """A snapshot that is to be gone back to.

    Attributes:
        snapshot: which.
        state: that the VM is in afterwards.
        start: whether it is booted, since the snapshot holds no memory.
        forget: marks of backups, which would be wrong afterwards.
        drop_saved: whether memory that was saved is thrown away.
        sources: disks of the VM when the snapshot was taken, by device.
        plan: all of it in words.
    """

    snapshot: Snapshot
    state: DomainState
    start: bool
    forget: tuple[str, ...]
    drop_saved: bool
    sources: dict[str, str]
    plan: Plan


@dataclass(frozen=True, slots=True)
class Removal:
    """Snapshots that are to be deleted, in this order."""

    names: tuple[str, ...]
    plan: Plan


def take(facts: SnapshotFacts, name: str | None, *, memory: bool = True, description: str = "") -> Take:
    """Decide how to take a snapshot.

    Args:
        facts: of the VM.
        name: of the snapshot; None for the first free one of 'snap1', 'snap2', ...
        memory: hold the memory too, where the VM is on.
        description: one line.

    Raises:
        SpecError: that is no name. RefusedError: it cannot be done; says why.
    """
    name = check_name(name, path="snapshot") if name else _free_name(facts)
    if facts.find(name):
        raise ConflictError(
            f"{facts.name} has a snapshot '{name}'",
            hint=f"take another name, or delete it: vmkit snapshot delete {facts.name} {name}",
        )
    _check_whole(facts, "taken")
    if facts.saved:
        raise ConflictError(
            f"{facts.name} has saved memory, which goes with its disks",
            hint=f"vmkit restore {facts.name}, or throw it away: vmkit save --drop {facts.name}",
        )
    with_memory = memory and facts.state.active
    if with_memory and facts.assigned:
        raise UnsupportedError(
            f"{facts.name} has devices of the host, whose state QEMU cannot keep",
            hint=f"take it without memory: vmkit snapshot create {facts.name} --no-memory",
        )
    kind, choice = choose(facts, memory=with_memory)
    disks = held(facts)
    overlays = {d.device: _overlay(facts, d, name) for d in disks} if kind is Kind.EXTERNAL else {}
    file = f"{_folder(facts)}/{facts.name}-{name}.mem" if with_memory and kind is Kind.EXTERNAL else None
    forget: tuple[str, ...] = ()
    if kind is Kind.EXTERNAL and not facts.state.active:
        forget = _marks_in_the_way(facts)
    steps = [*_forgetting(forget, "libvirt takes no external snapshot of a VM that is off while there are any")]
    what = f"{', '.join(d.device for d in disks) or 'no disk'}{' and memory' if with_memory else ''}"
    stands = "the guest stands still meanwhile" if with_memory else "the guest goes on"
    steps.append(Step("take", f"snapshot {name} of {what}", stands if facts.state.active else "the VM is off"))
    left = tuple(d.device for d in facts.disks if d not in disks and d.device)
    warnings = []
    if kind is Kind.EXTERNAL and facts.nvram:
        warnings.append("the UEFI variables are not in an external snapshot; a revert leaves them as they are then")
    if facts.state.active and not with_memory:
        warnings.append("without memory the disks are as after a power cut, unless the guest's agent holds them still")
    plan = Plan(f"snapshot {name} of {facts.name}", (choice,), tuple(steps), tuple(warnings))
    return Take(name, description, kind, with_memory, overlays, file, left, forget, plan)


def revert(facts: SnapshotFacts, name: str, *, start: bool = False) -> Revert:
    """Decide how to go back to a snapshot.

    Raises:
        NotFoundError: there is none of this name. RefusedError: it cannot be done; says why.
    """
    one = find(facts, name)
    _check_whole(facts, "gone back to")
    if facts.state.active and facts.assigned:
        raise ConflictError(
            f"{facts.name} runs with devices of the host, which a revert would tear away",
            hint=f"vmkit stop {facts.name}",
        )
    forget = _marks_in_the_way(facts)
    files = facts.files[name].before
    state = DomainState(one.state) if one.memory else (DomainState.RUNNING if start else DomainState.SHUTOFF)
    steps = list(_forgetting(forget, "what changed on the disks is not what they count; the next backup is a full one"))
    if facts.saved:
        steps.append(Step("drop", "the saved memory", "it goes with the disks as they are now"))
    after = "memory and disks come back" if one.memory else "disks come back, memory was not held"
    steps.append(Step("revert", f"{facts.name} to {name} of {one.created}", after))
    reason = "as it was then" if one.memory else ("as asked for" if start else "a snapshot without memory is a VM off")
    steps.append(Step("verify", f"{facts.name} is {state.value}, on the disks of {name}", reason))
    warnings = [f"what happened since {'the snapshot that is current' if facts.snapshots else name} is lost"]
    now = sources(facts.disks)
    gone = [f"{device} ({path})" for device, path in now.items() if device not in files]
    if gone:
        warnings.append(f"not in the VM then, and taken out of it; the files stay: {', '.join(gone)}")
    plan = Plan(f"revert {facts.name} to {name}", (), tuple(steps), tuple(warnings))
    return Revert(one, state, start and not one.memory, forget, facts.saved, files, plan)


def remove(facts: SnapshotFacts, names: Sequence[str], *, children: bool = False) -> Removal:
    """Decide in which order to delete snapshots.

    Args:
        facts: of the VM.
        names: which.
        children: also all that came after them; else these stay, and what they rest upon is merged.

    Raises:
        NotFoundError: there is none of a name. RefusedError: libvirt cannot delete it; says why.
    """
    wanted = [find(facts, name).name for name in names]
    doomed = {*wanted}
    if children:
        for name in wanted:
            doomed |= {*descendants(facts.snapshots, name)}
    order = [s.name for s in reversed(facts.snapshots) if s.name in doomed]
    _check_whole(facts, "deleted")
    left = list(facts.snapshots)
    here = next((s.name for s in left if s.current), None)
    steps = []
    for name in order:
        one = find(facts, name)
        kids = [s.name for s in left if s.parent == name]
        if one.kind is Kind.EXTERNAL:
            _check_mergeable(facts, left, name, here)
        left = [s for s in left if s.name != name]
        here = one.parent if here == name else here
        text = f"{', '.join(kids)} and the VM go on from its parent" if kids else "nothing rests upon it but the VM"
        steps.append(Step("delete", f"snapshot {name}", text))
    return Removal(tuple(order), Plan(f"delete snapshots of {facts.name}", (), tuple(steps)))


def snapshot_xml(decision: Take) -> str:
    """The <domainsnapshot> of a decision."""
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = decision.name
    if decision.description:
        ET.SubElement(root, "description").text = decision.description
    memory = ET.SubElement(root, "memory", snapshot=decision.kind.value if decision.memory else "no")
    if decision.memory_file:
        memory.set("file", decision.memory_file)
    disks = ET.SubElement(root, "disks")
    for device, path in decision.overlays.items():
        disk = ET.SubElement(disks, "disk", name=device, snapshot="external", type="file")
        ET.SubElement(disk, "driver", type="qcow2")
        ET.SubElement(disk, "source", file=path)
    for device in decision.left_out:
        ET.SubElement(disks, "disk", name=device, snapshot="no")
    return ET.tostring(root, encoding="unicode")


def find(facts: SnapshotFacts, name: str) -> Snapshot:
    """The snapshot of this name; NotFoundError names similar ones."""
    one = facts.find(name)
    if one is None:
        near = difflib.get_close_matches(name, [s.name for s in facts.snapshots], n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"see what there is: vmkit snapshot list {facts.name}"
        raise NotFoundError(f"{facts.name} has no snapshot {quoted(name)}", hint=hint)
    return one


def _check_whole(facts: SnapshotFacts, verb: str) -> None:
    """See that libvirt could do anything with snapshots of this VM now."""
    if facts.driver not in ("QEMU", "TEST"):
        raise UnsupportedError(
            f"libvirt's driver for {facts.driver} has no snapshots", hint="take a host with QEMU: -c qemu:///system"
        )
    if not facts.persistent:
        raise UnsupportedError(
            f"{facts.name} has no definition that outlives it, and so no snapshots",
            hint=f"give it one: virsh dumpxml {facts.name} >{facts.name}.xml; virsh define {facts.name}.xml",
        )
    if facts.busy or facts.reason in ("migration", "post-copy", "save", "snapshot", "starting up"):
        raise ConflictError(f"another operation works on {facts.name}", hint="vmkit jobs")
    if facts.state not in _RIGHT and verb == "taken":
        raise ConflictError(f"{facts.name} is {facts.state.value}", hint=f"vmkit stop --force {facts.name}")


def _check_mergeable(facts: SnapshotFacts, left: Sequence[Snapshot], name: str, here: str | None) -> None:
    """See that libvirt can merge the files of an external snapshot into what rests upon it (11.3 cannot always)."""
    kids = [s.name for s in left if s.parent == name]
    several = len(kids) > 1 or (kids and here == name)
    aside = kids and here is not None and here not in (name, *descendants(left, name))
    if several or aside:
        upon = ", ".join([*kids, *(["the VM as it is"] if here == name else [])])
        raise RefusedError(
            f"libvirt cannot merge the files of {name} into what rests upon it ({upon})",
            hint=f"delete those first (vmkit snapshot list --tree {facts.name})"
            if here == name
            else f"with all that came after it: vmkit snapshot delete {facts.name} {name} --children",
        )
    if facts.state is DomainState.PAUSED and facts.reason == "from snapshot":
        # QEMU holds disks that a migration stream brought along inactive until the vCPUs run (seen with QEMU 10.0).
        raise ConflictError(
            f"{facts.name} has not run since it came back from a snapshot, and its files cannot be merged so",
            hint=f"vmkit resume {facts.name}",
        )


def _marks_in_the_way(facts: SnapshotFacts) -> tuple[str, ...]:
    ours, foreign = split_marks(facts.checkpoints)
    if foreign:
        raise ConflictError(
            f"{facts.name} has checkpoints of another tool ({', '.join(foreign)}), which would be wrong afterwards",
            hint=f"its next backup has to be a full one: virsh checkpoint-delete {facts.name} {foreign[0]}",
        )
    return ours


def _forgetting(marks: Sequence[str], reason: str) -> list[Step]:
    return [Step("forget", "the marks for incremental backups", reason)] if marks else []


def _free_name(facts: SnapshotFacts) -> str:
    taken = {s.name for s in facts.snapshots}
    return next(f"snap{n}" for n in range(1, len(taken) + 2) if f"snap{n}" not in taken)


def _overlay(facts: SnapshotFacts, disk: Disk, name: str) -> str:
    """Where the guest's writes go from now on: beside the disk, or in the pool for a device of the host."""
    source = PurePosixPath(disk.source or "")
    if source.parts[:2] == ("/", "dev"):
        return f"{_folder(facts)}/{facts.name}-{disk.device}.{name}.qcow2"
    return str(source.with_name(f"{source.name.partition('.')[0]}.{name}.qcow2"))


def _folder(facts: SnapshotFacts) -> str:
    if facts.pool is None:
        raise RefusedError(f"the host of {facts.name} has no storage pool for it", hint="vmkit create makes one")
    return facts.pool
