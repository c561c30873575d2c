"""Backups of a host's VMs, as the Python API and the command line see them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkit.errors import RefusedError
from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter, silent

if TYPE_CHECKING:
    from vmkit.plan import Plan
    from vmkit.vm.backup.manifest import Listed


@dataclass(frozen=True, slots=True)
class Row:
    """One backup, as `vmkit backup list` shows it. `size` is the bytes of its own files of disks."""

    vm: str
    id: str
    created: str
    extent: str
    size: int
    disks: tuple[str, ...]
    consistency: str
    parent: str | None
    problem: str


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was made; `seconds` in all, `plan` with the reason for full or incremental."""

    backup: Row
    seconds: float
    plan: Plan


@dataclass(frozen=True, slots=True)
class Restored:
    """A VM that was made from a backup; it is shut off unless it was asked to be started."""

    name: str
    uuid: str
    backup: str
    volumes: tuple[str, ...]
    state: str
    plan: Plan


class Backups:
    """Backups of the VMs of one host, in directories of that host.

    Args:
        connect: returns the open connection to it.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def plan_create(self, vm: str, directory: str, *, full: bool = False) -> Plan:
        """What `create` would choose and do. Raises as it does before anything is touched."""
        from vmkit.vm.backup import decide, store, take

        host = self._connect()
        domain = host.domain(vm)
        return decide.decide(take.gather(domain, store.Repository.of(host, directory, domain.name)), full=full).plan

    def create(self, vm: str, directory: str, *, full: bool = False, reporter: Reporter = silent) -> Made:
        """Back up the disks of a running VM, all as they are at one moment.

        Args:
            vm: which VM. It runs on meanwhile; its agent, if it has one, holds its file systems still for that moment.
            directory: on the VM's host. The first backup there is a full one, later ones hold what changed.
            full: make a full one in any case.
            reporter: told how far it is.

        Raises:
            SpecError, RefusedError: nothing was touched.
            EffectError, CancelledError: nothing is left of it.
        """
        from vmkit.vm.backup import decide, store, take
        from vmkit.vm.backup.manifest import Listed

        host = self._connect()
        domain = host.domain(vm)
        repository = store.Repository.of(host, directory, domain.name)
        facts = take.gather(domain, repository)
        outcome = take.take(domain, repository, facts, decide.decide(facts, full=full), reporter)
        return Made(_row(Listed(outcome.backup, "")), outcome.seconds, outcome.decision.plan)

    def list(self, directory: str, vm: str | None = None) -> builtins.list[Row]:
        """The backups in a directory of the host, of one VM or of all, oldest first."""
        from vmkit.vm.backup import store

        host = self._connect()
        names = [vm] if vm else store.vms_in(host, directory)
        return [_row(x) for name in names for x in store.Repository.of(host, directory, name).listing()]

    def verify(self, directory: str, vm: str, *, at: str | None = None, reporter: Reporter = silent) -> tuple[str, ...]:
        """Read every byte of a backup and of what it rests upon; returns their ids, the full one first.

        Args:
            directory: on the host, as it was given to `create`.
            vm: whose backups.
            at: id of one, or its beginning; None for the newest.
            reporter: told how far it is.

        Raises:
            NotFoundError: there is none. RefusedError: it is damaged; says where.
        """
        from vmkit.vm.backup import manifest, restore, store

        repository = store.Repository.of(self._connect(), directory, vm)
        links = manifest.chain(repository.listing(), at, where=repository.folder)
        restore.check(repository, links, reporter)
        return tuple(b.id for b in links)

    def plan_restore(self, directory: str, vm: str, *, at: str | None = None, name: str | None = None) -> Plan:
        """What `restore` would do. Raises as it does before anything is touched."""
        from vmkit.vm.backup import restore, store

        host = self._connect()
        return restore.prepare(host, store.Repository.of(host, directory, vm), at=at, name=name).plan

    def restore(
        self,
        directory: str,
        vm: str,
        *,
        at: str | None = None,
        name: str | None = None,
        start: bool = False,
        reporter: Reporter = silent,
    ) -> Restored:
        """Make a VM from a backup. Its files are checked before, and its disks compared byte for byte afterwards.

        Args:
            directory: on the host, as it was given to `create`.
            vm: whose backups.
            at: id of one, or its beginning; None for the newest.
            name: of the VM that is made; None for that in the backup. A VM of another name, or beside the one that was
                backed up, gets a uuid and MAC addresses of its own.
            start: boot it.
            reporter: told how far it is.

        Raises:
            SpecError, RefusedError: nothing was touched.
            EffectError, CancelledError: nothing is left of it.
        """
        from vmkit.vm.backup import restore, store
        from vmkit.vm.machine import Vm

        host = self._connect()
        repository = store.Repository.of(host, directory, vm)
        prepared = restore.prepare(host, repository, at=at, name=name)
        domain = restore.restore(host, repository, prepared, reporter)
        if start:
            Vm(domain).start(reporter=reporter)
        return Restored(
            domain.name,
            domain.uuid,
            prepared.backup.id,
            tuple(prepared.volumes.values()),
            domain.state().value,
            prepared.plan,
        )

    def delete(self, directory: str, vm: str, ids: Sequence[str]) -> tuple[str, ...]:
        """Delete backups; returns their ids.

        Raises:
            NotFoundError: there is none of an id. RefusedError: others rest upon them; nothing was touched.
        """
        from vmkit.vm.backup import manifest, store

        repository = store.Repository.of(self._connect(), directory, vm)
        listed = repository.listing()
        known = {x.backup.id for x in listed}
        doomed = {i if i in known else manifest.chain(listed, i, where=repository.folder)[-1].id for i in ids}
        if resting := manifest.resting_upon(listed, doomed):
            raise RefusedError(
                f"these rest upon what would be deleted: {', '.join(resting)}",
                hint=f"name them too, or keep all: vmkit backup list {directory}",
            )
        order = sorted(doomed, reverse=True)
        repository.remove(*order)
        return tuple(order)


def _row(listed: Listed) -> Row:
    one = listed.backup
    devices = tuple(d.device for d in one.disks)
    return Row(
        one.vm, one.id, one.created, one.extent.value, one.size, devices, one.consistency, one.parent, listed.problem
    )
