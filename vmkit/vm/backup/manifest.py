"""What is written down about one backup, and what follows from several. Pure.

A repository is a folder `DIR/VM` on the VM's host. In it is a folder for each backup, named by its id, with a qcow2
file for each disk and `backup.json`, and a folder `files` with what rarely changes (kernel, seed), shared by all. An
incremental backup's files hold what changed, and name those of the backup before as their backing files, relatively:
the folder can be moved, and `qemu-img` alone reads it.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from vmkit.errors import EffectError, NotFoundError, RefusedError
from vmkit.values import quoted

FORMAT: Final = 1
MANIFEST: Final = "backup.json"


class Extent(enum.Enum):
    """How much a backup's own files hold."""

    FULL = "full"
    INCREMENTAL = "incremental"


@dataclass(frozen=True, slots=True)
class DiskCopy:
    """One disk in a backup.

    Attributes:
        device: the guest's name for it: 'vda'.
        file: name in the backup's folder.
        capacity: bytes that the guest sees.
        size: bytes of the file.
        sha256: of the file.
    """

    device: str
    file: str
    capacity: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file that the VM needs beside its disks.

    Attributes:
        role: 'kernel', 'initrd', 'nvram', or 'drive' for what is in a drive.
        path: where it was.
        file: name in the folder `files`; begins with its digest.
        sha256: of the file.
    """

    role: str
    path: str
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup.

    Attributes:
        id: unique in its repository, and in the order of time: '20261121T101500Z-3f9a2c'.
        vm, uuid: whose.
        created: UTC, ISO 8601: the moment whose state the disks are in.
        extent: full or incremental.
        parent: the backup that an incremental one rests upon.
        mark: the checkpoint from which the next one can count; None where the disks cannot keep one.
        consistency: 'filesystem' where the guest held its file systems still, 'crash' where not, 'paused' where it
            stood still.
        disks, side: its files.
        xml: definition of the VM.
    """

    id: str
    vm: str
    uuid: str
    created: str
    extent: Extent
    parent: str | None
    mark: str | None
    consistency: str
    disks: tuple[DiskCopy, ...]
    side: tuple[SideFile, ...]
    xml: str

    @property
    def size(self) -> int:
        """Bytes of its own files of disks."""
        return sum(d.size for d in self.disks)


@dataclass(frozen=True, slots=True)
class Listed:
    """A backup as it lies in its folder. `problem` says what is wrong with its files at first sight; '' if nothing."""

    backup: Backup
    problem: str


def to_json(backup: Backup) -> str:
    """As it is written down."""
    return json.dumps({"format": FORMAT, **asdict(backup), "extent": backup.extent.value}, indent=1)


def parse(text: str, *, where: str) -> Backup:
    """Read what `to_json` wrote.

    Raises:
        EffectError: it is damaged, or a later version wrote it.
    """
    try:
        b: dict[str, Any] = json.loads(text)
        if b.pop("format") != FORMAT:
            raise EffectError(f"{where}: written by a later version of vmkit", hint="use that version here, too")
        b["extent"] = Extent(b["extent"])
        b["disks"] = tuple(DiskCopy(**d) for d in b["disks"])
        b["side"] = tuple(SideFile(**s) for s in b["side"])
        return Backup(**b)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise EffectError(
            f"{where} is damaged: {quoted(str(e))}", hint="see what can still be restored: vmkit backup verify"
        ) from e


def judged(backups: Sequence[Backup], sizes: dict[str, int]) -> tuple[Listed, ...]:
    """Each with what is wrong with it, oldest first.

    Args:
        backups: of one repository.
        sizes: bytes of every file there, by its path below the repository.
    """
    found: dict[str, Listed] = {}
    for one in sorted(backups, key=lambda b: b.id):
        wrong = [d.file for d in one.disks if sizes.get(f"{one.id}/{d.file}") != d.size]
        wrong += [s.file for s in one.side if f"files/{s.file}" not in sizes]
        problem = f"missing or cut off: {', '.join(wrong)}" if wrong else ""
        if one.parent and not problem:
            before = found.get(one.parent)
            if before is None or before.problem:
                problem = f"what it rests upon, {one.parent}, is {'gone' if before is None else 'damaged'}"
        found[one.id] = Listed(one, problem)
    return tuple(found.values())


def chain(listed: Sequence[Listed], at: str | None, *, where: str) -> tuple[Backup, ...]:
    """A backup and all that it rests upon, the full one first.

    Args:
        listed: all of the repository.
        at: id, or its beginning; None for the newest.
        where: the repository, for messages.

    Raises:
        NotFoundError: there is none, or none of this id. RefusedError: it is damaged, or the id means several.
    """
    chosen = [x for x in listed if at is None or x.backup.id.startswith(at)]
    if not chosen:
        what = f"no backup {quoted(at)}" if at else "no backup"
        raise NotFoundError(
            f"{what} in {where}", hint=f"see what there is: vmkit backup list {where.rpartition('/')[0]}"
        )
    if at is not None and len(chosen) > 1 and all(x.backup.id != at for x in chosen):
        raise RefusedError(
            f"{quoted(at)} begins several backups: {', '.join(x.backup.id for x in chosen)}", hint="give more of it"
        )
    one = next((x for x in chosen if x.backup.id == at), chosen[-1])
    if one.problem:
        good = [x.backup.id for x in listed if not x.problem]
        hint = f"the last one that is whole: --at {good[-1]}" if good else None
        raise RefusedError(f"the backup {one.backup.id} in {where} is damaged: {one.problem}", hint=hint)
    by_id = {x.backup.id: x.backup for x in listed}
    links = [one.backup]
    while parent := links[-1].parent:
        links.append(by_id[parent])
    return tuple(reversed(links))


def resting_upon(listed: Sequence[Listed], ids: set[str]) -> tuple[str, ...]:
    """Ids of the backups that would be useless without these."""
    lost = set(ids)
    for one in listed:  # oldest first, so parents come before
        if one.backup.parent in lost:
            lost.add(one.backup.id)
    return tuple(x.backup.id for x in listed if x.backup.id in lost - ids)
