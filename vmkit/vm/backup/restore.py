"""A VM made anew from a backup: every file checked before, every disk compared after, then defined."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmkit.errors import CancelledError, ConflictError, EffectError, RefusedError
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.migration import adopt
from vmkit.hypervisor.settle import undo_or_keep
from vmkit.image.place import ensure_pool
from vmkit.plan import Plan, Step
from vmkit.progress import Finished, Reporter, Started
from vmkit.system.clock import stopwatch
from vmkit.system.interrupts import deferred
from vmkit.system.journal import Entry, journalled
from vmkit.values import check_name
from vmkit.vm.backup.manifest import Backup, chain
from vmkit.vm.backup.rewrite import Rewrite, rewritten
from vmkit.vm.backup.store import Repository
from vmkit.vm.console_log import log_name
from vmkit.vm.create import undo

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkit.hypervisor.domain import Domain


@dataclass(frozen=True, slots=True)
class Prepared:
    """A VM that could be made from a backup now.

    Attributes:
        links: the backup and what it rests upon, the full one first.
        name: of the VM that is to be.
        uuid: its own, or that of the VM in the backup where that one is gone.
        same: whether it takes the place of the VM in the backup: same name, uuid and MAC addresses.
        volumes: names of the volumes to make, by device.
        side: where each file beside the disks goes, by its path in the backup.
        plan: all of it in words.
    """

    links: tuple[Backup, ...]
    name: str
    uuid: str
    same: bool
    volumes: dict[str, str]
    side: dict[str, str]
    plan: Plan

    @property
    def backup(self) -> Backup:
        """What is restored."""
        return self.links[-1]


def prepare(host: Host, repository: Repository, *, at: str | None, name: str | None) -> Prepared:
    """Decide; the host's pool is made where there is none, and nothing else is changed.

    Raises:
        NotFoundError, RefusedError, ConflictError: it cannot be done; says why.
    """
    links = chain(repository.listing(), at, where=repository.folder)
    backup = links[-1]
    new = check_name(name) if name else backup.vm
    domains = host.domains()
    if any(d.name == new for d in domains):
        raise ConflictError(
            f"there is a VM named {new} on {host.uri}",
            hint=f"restore under another name: --as {new}-restored; or delete it first: vmkit delete {new}",
        )
    same = new == backup.vm and all(d.uuid != backup.uuid for d in domains)
    pool = ensure_pool(host)
    folder, there = str(pool.folder), {*pool.names()}
    volumes = {d.device: f"{new}-{i}.qcow2" for i, d in enumerate(backup.disks)}
    if taken := [v for v in volumes.values() if v in there]:
        raise ConflictError(
            f"there is a volume {taken[0]} in {folder} that belongs to no VM of this name",
            hint="rename it or delete it, or restore under another name: --as NAME",
        )
    side = {}
    for one in backup.side:
        base = one.path.rpartition("/")[2]
        if one.role in ("nvram", "drive") and base.startswith(f"{backup.vm}-"):
            base = f"{new}-{base.removeprefix(f'{backup.vm}-')}"
        side[one.path] = f"{folder}/{base}"
    held = f"{len(links)} backup{'s' if len(links) > 1 else ''} from {links[0].id} on"
    steps = [
        Step("check", held, "every file has to be what it was when it was written"),
        *(Step("write", f"{d.device} as {volumes[d.device]}", "then compared byte for byte") for d in backup.disks),
        *(Step("put back", path, "the VM needs it beside its disks") for path in side.values()),
        Step("define", f"{new}, shut off", "with its own uuid and MAC addresses" if same else "as a VM of its own"),
    ]
    plan = Plan(f"restore {backup.id} of {backup.vm} as {new}", (), tuple(steps))
    return Prepared(links, new, backup.uuid if same else str(uuids.uuid4()), same, volumes, side, plan)


def restore(host: Host, repository: Repository, prepared: Prepared, reporter: Reporter) -> Domain:
    """Make the VM. It is left shut off.

    Raises:
        RefusedError: a file of the backup is not what it was; nothing was touched.
        EffectError: it failed, or a disk is not byte for byte what the backup says; what was made is removed.
        CancelledError: Ctrl-C or a signal came; what was made is removed.
    """
    check(repository, prepared.links, reporter)
    data: dict[str, Any] = {"uri": host.uri, "uuid": prepared.uuid, "volumes": [], "log": None}
    with journalled("create", prepared.name, "begin", **data) as entry, deferred() as interrupted:
        try:
            return _make(host, repository, prepared, entry, interrupted, reporter)
        except BaseException as e:
            left = undo_or_keep(host, entry, undo)
            if by := interrupted():
                raise CancelledError(f"the restore of {prepared.name} was stopped by {by}; {left}") from e
            if isinstance(e, EffectError):
                raise EffectError(e.message, left=left, hint=e.hint, details=e.details) from e
            raise


def check(repository: Repository, links: Sequence[Backup], reporter: Reporter) -> None:
    """Read every byte of these backups and see that it is what was written.

    Raises:
        RefusedError: it is not; names the files.
    """
    reporter(Started("check", repository.folder))
    seconds = stopwatch()
    if wrong := repository.differing(links):
        raise RefusedError(
            f"damaged in {repository.folder}: {', '.join(wrong)}",
            hint="restore an earlier one with --at, if that is whole; the next backup of this VM should be --full",
        )
    reporter(Finished("check", seconds(), repository.folder))


def _make(
    host: Host,
    repository: Repository,
    prepared: Prepared,
    entry: Entry,
    interrupted: Callable[[], str | None],
    reporter: Reporter,
) -> Domain:
    pool = ensure_pool(host)
    made: list[str] = []
    paths = {}
    for disk in prepared.backup.disks:
        volume = prepared.volumes[disk.device]
        made.append(volume)
        entry.advance("volumes", volumes=list(made))
        reporter(Started(f"write {disk.device}", volume))
        seconds = stopwatch()
        paths[disk.device] = f"{pool.folder}/{volume}"
        repository.write_out(repository.path(prepared.backup.id, disk.file), paths[disk.device])
        reporter(Finished(f"write {disk.device}", seconds(), volume))
        if interrupted():
            raise CancelledError("stopped")
    own = {p.rpartition("/")[2] for p in prepared.side.values() if p.rpartition("/")[2].startswith(f"{prepared.name}-")}
    entry.advance("volumes", volumes=[*made, *sorted(own)])
    for one in prepared.backup.side:
        repository.copy_out(one, prepared.side[one.path])
    pool.refresh()
    entry.advance("define")
    change = Rewrite(
        name=prepared.name,
        old=prepared.backup.vm,
        uuid=prepared.uuid,
        same=prepared.same,
        disks=paths,
        side=prepared.side,
        volumes=(*made, *sorted(own)),
        console_log=f"{pool.folder}/{log_name(prepared.name)}",
    )
    return adopt(host, rewritten(prepared.backup.xml, change))
