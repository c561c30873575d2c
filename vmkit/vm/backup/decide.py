"""Whether a backup is a full or an incremental one, and what is asked of libvirt for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from vmkit.errors import ConflictError, RefusedError, UnsupportedError
from vmkit.plan import Choice, Plan, Rejected, Step
from vmkit.vm.backup.manifest import Backup, Extent, Listed
from vmkit.vm.backup.marks import PREFIX
from vmkit.vm.describe import Disk


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """A VM before its backup, and what there is of it already.

    Attributes:
        name, uuid, uri: which VM, and where.
        driver: libvirt's: 'QEMU', ...
        active: whether it is on.
        busy: whether a job runs on it.
        disks: every disk and drive.
        checkpoints: names of those that libvirt knows.
        repository: the folder of its backups.
        listed: the backups there, oldest first.
    """

    name: str
    uuid: str
    uri: str
    driver: str
    active: bool
    busy: bool
    disks: tuple[Disk, ...]
    checkpoints: tuple[str, ...]
    repository: str
    listed: tuple[Listed, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """A backup that is to be made.

    Attributes:
        extent: full or incremental.
        parent: what an incremental one rests upon.
        disks: what goes in, by the guest's names.
        left_out: other drives.
        marks: whether a checkpoint is made, from which the next one can count.
        old: checkpoints of earlier backups here, which are of no use after this one.
        plan: all of it in words.
    """

    extent: Extent
    parent: Backup | None
    disks: tuple[str, ...]
    left_out: tuple[str, ...]
    marks: bool
    old: tuple[str, ...]
    plan: Plan


def decide(facts: BackupFacts, *, full: bool = False) -> Decision:
    """Decide how to make a backup.

    Args:
        facts: of the VM and of its repository.
        full: make a full one in any case.

    Raises:
        RefusedError: it cannot be made; says why.
    """
    if facts.driver != "QEMU":
        raise UnsupportedError(
            f"libvirt's driver for {facts.driver} makes no backups", hint="take a host with QEMU: -c qemu:///system"
        )
    if not facts.active:
        raise ConflictError(
            f"{facts.name} is off, and libvirt makes backups of running VMs only",
            hint=f"vmkit start {facts.name}; a VM that shall not change can be paused: vmkit pause {facts.name}",
        )
    if facts.busy:
        raise ConflictError(f"another operation works on {facts.name}", hint="vmkit jobs")
    disks = tuple(d for d in facts.disks if d.kind == "disk" and not d.readonly and d.source)
    if not disks:
        raise RefusedError(
            f"{facts.name} has no disk that could be backed up",
            hint=f"read-only and empty drives are left out; see its disks: vmkit show {facts.name}",
        )
    left = tuple(d.device for d in facts.disks if d not in disks and d.device)
    raw = [d.device for d in disks if d.format != "qcow2"]
    against = _against_incremental(facts, disks, raw, full=full)
    parent = None if against else facts.listed[-1].backup
    own = {x.backup.mark for x in facts.listed if x.backup.uuid == facts.uuid}
    old = tuple(c for c in facts.checkpoints if c in own or c.startswith(mark_of(facts.repository, "")))
    if parent:
        choice = Choice(
            "backup",
            Extent.INCREMENTAL.value,
            f"libvirt still counts what changed since {parent.id}",
            (Rejected(Extent.FULL.value, "--full makes one"),),
        )
    else:
        choice = Choice("backup", Extent.FULL.value, against or "")
    extent = Extent.INCREMENTAL if parent else Extent.FULL
    what = ", ".join(d.device for d in disks)
    steps = [
        Step("freeze", "the guest's file systems for a moment", "if its agent can; else they are as after a power cut"),
        Step("copy", f"{'what changed on ' if parent else ''}{what} to {facts.repository}", "the guest goes on"),
        Step("check", "what was written", "a backup without a manifest does not count"),
    ]
    warnings: tuple[str, ...] = ()
    if raw:
        warnings = (f"the next one will be a full one too: {', '.join(raw)} is not qcow2 and keeps no marks",)
    plan = Plan(f"backup of {facts.name}", (choice,), tuple(steps), warnings)
    return Decision(extent, parent, tuple(d.device for d in disks), left, not raw, old, plan)


def _against_incremental(facts: BackupFacts, disks: Sequence[Disk], raw: Sequence[str], *, full: bool) -> str | None:
    if full:
        return "it was asked for"
    if not facts.listed:
        return "it is the first one here"
    last = facts.listed[-1]
    if last.backup.uuid != facts.uuid:
        return f"the last one here, {last.backup.id}, is of another VM of this name"
    if last.problem:
        return f"the last one here, {last.backup.id}, is damaged: {last.problem}"
    if raw:
        return f"{', '.join(raw)} is not qcow2 and keeps no marks"
    if last.backup.mark is None or last.backup.mark not in facts.checkpoints:
        return f"nothing counts what changed since {last.backup.id}: a revert, or another host, lost the mark"
    before = {d.device for d in last.backup.disks}
    if before != {d.device for d in disks}:
        return f"the disks are not those of {last.backup.id}"
    return None


def mark_of(repository: str, backup_id: str) -> str:
    """Name of the checkpoint of a backup. Its middle says which repository it is for."""
    import hashlib

    return f"{PREFIX}{hashlib.sha256(repository.encode()).hexdigest()[:8]}-{backup_id}"


def backup_xml(decision: Decision, targets: dict[str, str]) -> str:
    """The <domainbackup>; `targets` are the files to write, by device."""
    root = ET.Element("domainbackup", mode="push")
    if decision.parent:
        ET.SubElement(root, "incremental").text = decision.parent.mark
    disks = ET.SubElement(root, "disks")
    for device in decision.disks:
        disk = ET.SubElement(disks, "disk", name=device, backup="yes", type="file")
        ET.SubElement(disk, "target", file=targets[device])
        ET.SubElement(disk, "driver", type="qcow2")
    for device in decision.left_out:
        ET.SubElement(disks, "disk", name=device, backup="no")
    return ET.tostring(root, encoding="unicode")


def checkpoint_xml(decision: Decision, mark: str) -> str:
    """The <domaincheckpoint>."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = mark
    disks = ET.SubElement(root, "disks")
    for device in decision.disks:
        ET.SubElement(disks, "disk", name=device, checkpoint="bitmap")
    for device in decision.left_out:
        ET.SubElement(disks, "disk", name=device, checkpoint="no")
    return ET.tostring(root, encoding="unicode")


def side_files(xml: str) -> tuple[tuple[str, str], ...]:
    """Role and path of each file that a VM needs beside its disks."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    found = [(role, path) for role in ("kernel", "initrd", "nvram") if (path := root.findtext(f"os/{role}"))]
    for disk in root.iterfind("devices/disk"):
        source = disk.find("source")
        fixed = disk.get("device", "disk") != "disk" or disk.find("readonly") is not None
        if fixed and source is not None and (path := source.get("file")):
            found.append(("drive", path))
    return tuple(found)
