"""Making a VM: facts, plan, then the steps under a journal entry."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmkit.errors import CancelledError, ConflictError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.settle import undo_or_keep
from vmkit.hypervisor.volume import Pool
from vmkit.image.place import POOL, ensure_pool, place
from vmkit.image.qcow2 import virtual_size
from vmkit.plan import Plan
from vmkit.progress import Reporter, silent
from vmkit.system.interrupts import deferred
from vmkit.system.journal import Entry, journalled
from vmkit.system.templates import template
from vmkit.vm import devices, reservations, seeding, xml
from vmkit.vm.choices.decide import decide
from vmkit.vm.console_log import log_name, remove
from vmkit.vm.design import Design
from vmkit.vm.facts import gather
from vmkit.vm.metadata import Remembered
from vmkit.vm.spec import VmSpec, remembered_form
from vmkit.vm.volume_names import with_free_volumes
from vmkit.vm.xml_volumes import volume_xml

if TYPE_CHECKING:
    from vmkit.device.plan import Pick, Wish
    from vmkit.image.manifest import Image
    from vmkit.image.place import Placed


@dataclass(frozen=True, slots=True)
class Prepared:
    """A VM that could be made now: what was asked for, what was decided, and from which images.

    `kept` are volumes that are there already, and become disks of it as they are.
    """

    spec: VmSpec
    design: Design
    plan: Plan
    images: Mapping[str, Image]
    seed: seeding.Wanted | None = None
    kept: frozenset[str] = frozenset()

    @property
    def password(self) -> str | None:
        """The password that was made up for this VM; it is kept nowhere."""
        return self.seed.password if self.seed else None


def prepare(host: Host, spec: VmSpec, reporter: Reporter = silent, *, again: bool = False) -> Prepared:
    """Gather facts and decide. Nothing is changed, but for the KVM probe guest that runs once a boot.

    Args:
        host: where it would be made.
        spec: what to make.
        reporter: told of the probe.
        again: decide also where a VM of that name exists. Such a plan is for reading only.

    Raises:
        NotFoundError, ConflictError, RefusedError, SpecError: as `choices.decide`, and where an image is missing.
    """
    from vmkit.image.api import Images

    store = Images()
    names = {spec.image, *(d.image for d in spec.disks)} - {None, ""}
    images = {name: store.get(name) for name in sorted(n for n in names if n)}
    facts = gather(host, spec, reporter)
    if again:
        facts = replace(facts, domains=facts.domains - {spec.name})
    sizes = {name: virtual_size(image.disk.path) for name, image in images.items() if image.disk}
    design, plan = decide(spec, facts, images, sizes)
    seed = seeding.wanted(spec, images[spec.image] if spec.image else None)
    design, plan = seeding.planned(seed, design, plan)
    design = with_free_volumes(host, design)
    return Prepared(spec, design, devices.planned(host, spec, design, plan), images, seed)


def build(host: Host, prepared: Prepared, reporter: Reporter = silent, *, start: bool = True) -> Domain:
    """Carry the plan out: place images, make volumes, define, start.

    After a failure everything that was made is removed again, but for placed images, which other VMs share. Where that
    cannot be done either, the journal entry stays and the next command does it.

    Raises:
        CancelledError: Ctrl-C or a signal came; what was made is removed.
    """
    name = prepared.design.name
    log = _log(host, name)
    facts: dict[str, Any] = {"uri": host.uri, "uuid": str(uuids.uuid4()), "volumes": [], "log": log}
    with journalled("create", name, "begin", **facts) as entry, deferred() as interrupted, ExitStack() as lendings:

        def checkpoint() -> None:
            if by := interrupted():
                raise CancelledError(f"the creation of {name} was stopped by {by}")

        try:
            domain = _make(host, prepared, entry, checkpoint, reporter, lendings, start=start)
            checkpoint()
        except BaseException as e:
            left = undo_or_keep(host, entry, undo)
            if by := interrupted():  # which also ends the ssh below a connection: the error is only its echo
                raise CancelledError(f"the creation of {name} was stopped by {by}; {left}") from e
            raise
    return domain


def _log(host: Host, name: str) -> str | None:
    """The volume that the console will be logged to; None where it is not."""
    if host.driver == "Xen":
        from vmkit.vm import xen_console

        return xen_console.log_name(host, name)
    return log_name(name) if host.driver == "QEMU" else None


def _make(
    host: Host,
    prepared: Prepared,
    entry: Entry,
    checkpoint: Callable[[], None],
    reporter: Reporter,
    lendings: ExitStack,
    *,
    start: bool,
) -> Domain:
    """The steps. What is lent is given back when `lendings` closes after a failure: when the domain is gone again."""
    design, spec, log = prepared.design, prepared.spec, entry.record.data["log"]
    pool = ensure_pool(host) if design.volumes or log else None
    placed = {}
    for name, image in prepared.images.items():
        placed[name] = place(host, image, reporter)
        checkpoint()
    paths = _make_volumes(pool, design, placed, entry, prepared.kept) if pool else {}
    access = None
    uuid = entry.record.data["uuid"]
    if design.seed or any(n.reserve for n in design.nics):
        design = seeding.with_addresses(design, uuid)
    if pool and design.seed and prepared.seed:
        volume = design.seed.volume
        _claim(pool, volume, entry)
        paths[volume], access = seeding.make(pool, volume, prepared.seed, design, spec, uuid)
    main = placed.get(spec.image or "")
    checkpoint()
    wishes = devices.wishes_of(spec, design)
    picks = lendings.enter_context(_lent(host, wishes, entry, reporter, start=start))
    placement = xml.Placement(
        kernel=main.kernel if main else None,
        initrd=main.initrd if main else None,
        volumes=paths,
        console_log=str(pool.folder / log) if pool and log else None,
        hostdevs=devices.addresses(picks, design),
    )
    remembered = Remembered(remembered_form(spec), spec.image, design.volumes, log, access)
    base = template("domain.xml").read_text()
    checkpoint()
    kept = reservations.of_design(design)
    if kept:
        entry.advance("reserve", reserved=reservations.plain(kept))
        reservations.make(host, kept)
        checkpoint()
    entry.advance("define")
    domain = host.define(xml.domain_xml(base, design, placement, remembered, entry.record.data["uuid"]))
    if wishes:
        devices.remember(domain, wishes)
    if spec.autostart:
        domain.set_autostart(True)
    if log:
        remove(host, log)  # of an earlier VM of this name
    checkpoint()
    if start:
        entry.advance("start")
        domain.start()
    return domain


def _lent(
    host: Host, wishes: Sequence[Wish], entry: Entry, reporter: Reporter, *, start: bool
) -> AbstractContextManager[tuple[Pick, ...]]:
    """Lend what the VM is to have. The entry says so first, for whoever has to clean up."""
    name = entry.record.subject
    if wishes and start:
        entry.advance("lend", lends=True)
    return devices.lent(
        host, wishes, vm=name, uuid=entry.record.data["uuid"], work=f"create {name}", start=start, reporter=reporter
    )


def undo(host: Host, data: Mapping[str, object]) -> list[str]:
    """Remove what a creation that did not come to its end has made; returns what it removed."""
    removed: list[str] = []
    identity = str(data["uuid"])
    for domain in host.domains():
        if domain.uuid == identity:
            if domain.state().active:
                domain.destroy()
            domain.undefine()
            removed.append(f"domain {domain.name}")
    volumes = data["volumes"]
    assert isinstance(volumes, list)  # noqa: S101 - written by this module
    if volumes or data["log"]:
        pool = host.pool(POOL)
        removed += [f"volume {v}" for v in volumes if pool.delete(v)]
        if data["log"]:
            pool.delete(str(data["log"]))
    reserved = data.get("reserved")
    return [*removed, *reservations.undo(host, reserved)] if isinstance(reserved, list) else removed


def _make_volumes(
    pool: Pool, design: Design, placed: Mapping[str, Placed], entry: Entry, kept: frozenset[str]
) -> dict[str, str]:
    """Make each disk. A volume is journalled just before it is made, and only if it was not there before."""
    paths: dict[str, str] = {}
    for disk in design.disks:
        if not disk.volume:
            continue  # a block device of the host
        if disk.volume in kept:
            paths[disk.volume] = str(pool.folder / disk.volume)
            continue
        backing = placed[disk.backing].disk if disk.backing else None
        _claim(pool, disk.volume, entry)
        paths[disk.volume] = pool.create(volume_xml(disk.volume, disk.size, backing))
    return paths


def _claim(pool: Pool, volume: str, entry: Entry) -> None:
    """Journal that a volume will be made.

    Raises:
        ConflictError: there is one of that name, which is left alone.
    """
    if pool.path(volume) is not None:
        raise ConflictError(
            f"there is a volume {volume} in {pool.folder} that belongs to no VM of this name",
            hint="rename it or delete it, or give the VM another name",
        )
    entry.advance("volumes", volumes=[*entry.record.data["volumes"], volume])
