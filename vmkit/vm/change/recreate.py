"""A VM made anew from its spec. The old one is put aside until the new one runs; disks without an image go over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmkit.errors import CancelledError, ConflictError, EffectError, VmkitError
from vmkit.hypervisor import alter, snapshot
from vmkit.hypervisor.host import Host
from vmkit.image.place import POOL
from vmkit.system.interrupts import deferred
from vmkit.system.journal import Entry, journalled, records, taken_over
from vmkit.vm import create
from vmkit.vm.change import match
from vmkit.vm.change.report import Applied, Row
from vmkit.vm.change.restart import started_again
from vmkit.vm.change.shape import Have, backing_of, disks_of, effective_disks
from vmkit.vm.machine import Vm
from vmkit.vm.volume_names import with_free_volumes

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain
    from vmkit.progress import Reporter
    from vmkit.vm.change.report import Options
    from vmkit.vm.create import Prepared
    from vmkit.vm.spec import VmSpec


def recreate(
    domain: Domain, have: Have, want: VmSpec, rows: tuple[Row, ...], options: Options, reporter: Reporter
) -> Applied:
    """Make a VM anew.

    Raises:
        ConflictError: it has snapshots. RefusedError, SpecError, ...: as `create`; nothing was touched.
        EffectError: a step failed; the old VM is back as it was.
    """
    host, name = domain.host, domain.name
    if snapshot.snapshots(domain):
        raise ConflictError(f"{name} has snapshots, which would be lost", hint=f"vmkit snapshot list {name}")
    carried, left = _data_disks(have, want)
    prepared = _prepared(host, want, carried, reporter)
    kept = {*carried.values(), *(() if options.delete_disks else left)}
    drop = [v for v in have.volumes if v not in kept]
    runs = domain.state().active
    aside = _aside(host, name)
    data = {"uri": host.uri, "uuid": domain.uuid, "name": name, "aside": aside, "runs": runs, "drop": drop}
    with journalled("apply", name, "recreate", **data) as entry, deferred():
        try:
            if runs:
                Vm(domain).stop(deadline=max(60.0, options.deadline))
            _grow(domain, have, prepared, carried)
            alter.rename(domain, aside)
            made = create.build(host, prepared, reporter)
        except VmkitError as e:
            back = _put_back(host, entry)
            if isinstance(e, CancelledError):
                raise CancelledError(f"{e.message}; {back}") from e
            raise EffectError(e.message, left=back, hint=e.hint, details=e.details) from e
        entry.advance("remove")
        _remove(host, entry.record.data)
    ready = Vm(made).wait(deadline=options.deadline, reporter=reporter) if options.wait else None
    return Applied(
        name,
        "vm",
        "re-created",
        rows,
        kept=tuple(v for v in left if v in kept),
        deleted=tuple(v for v in drop if v in left),
        accelerator=prepared.design.accelerator,
        seconds=ready.seconds if ready else None,
        password=prepared.password,
    )


def recover(host: Host, entry: Entry, reporter: Reporter) -> str:
    """Settle a re-creation that was cut off: the new VM stays if it was started, else the old one is put back."""
    from vmkit.vm.recovery import recover as settle

    data = entry.record.data
    for record in records("create"):
        if record.subject == data["name"] and record.orphaned:
            with taken_over(record) as other:
                if other is not None:
                    settle(other, reporter)
    new = next((d for d in host.domains() if d.name == data["name"] and d.uuid != data["uuid"]), None)
    if new is not None and (entry.record.phase == "remove" or new.state().active):
        _remove(host, data)
        return "the new VM runs, the old one was removed"
    if new is not None:
        new.undefine()
    return _put_back(host, entry, patient=True)


def _data_disks(have: Have, want: VmSpec) -> tuple[dict[int, str], list[str]]:
    """Volumes without an image: by the number of the disk of the new VM that they become, and those that are left."""
    old = effective_disks(have.spec, image_disk=have.image_disk)
    new = effective_disks(want, image_disk=have.image_disk)
    shapes = disks_of(have.spec, old, have.config)
    score = match.disk_score(have.spec, old, want, new, image_disk=have.image_disk)
    pairs = match.pairs(old, new, score)
    volumes: dict[int, str] = {}
    for i, (disk, shape) in enumerate(zip(old, shapes, strict=True)):
        name = (shape.source or "").rpartition("/")[2] if shape else ""
        if name in have.volumes and backing_of(have.spec, disk, i, image_disk=have.image_disk) is None:
            volumes[i] = name
    carried = {w: volumes[h] for w, h in pairs.items() if h in volumes}
    return carried, [v for v in volumes.values() if v not in carried.values()]


def _prepared(host: Host, want: VmSpec, carried: dict[int, str], reporter: Reporter) -> Prepared:
    prepared = create.prepare(host, want, reporter, again=True)
    disks = tuple(replace(d, volume=carried.get(i, d.volume)) for i, d in enumerate(prepared.design.disks))
    kept = frozenset(carried.values())
    design = with_free_volumes(host, replace(prepared.design, disks=disks), keep=kept)
    return replace(prepared, design=design, kept=kept)


def _grow(domain: Domain, have: Have, prepared: Prepared, carried: dict[int, str]) -> None:
    """While nothing uses them: a larger disk does no harm to the old VM, should it come back."""
    there = {(d.source or "").rpartition("/")[2]: d for d in have.config.disks}
    for i, volume in carried.items():
        size, disk = prepared.design.disks[i].size, there[volume]
        if size > have.sizes.get(disk.device, size):
            alter.grow_volume(domain, disk.source or "", size)


def _aside(host: Host, name: str) -> str:
    taken = {d.name for d in host.domains()}
    return next(n for i in range(1, len(taken) + 2) if (n := f"{name[:50]}.old{i}") not in taken)


def _put_back(host: Host, entry: Entry, *, patient: bool = False) -> str:
    """`patient`: it may have been asked to shut down by a command that was killed, and do so in a moment."""
    data = entry.record.data
    try:
        old = next((d for d in host.domains() if d.uuid == data["uuid"]), None)
        if old is None:
            return "the old VM is gone"
        if old.name != data["name"]:
            alter.rename(old, data["name"])
            old = host.domain(data["name"])
        started = data["runs"] and (started_again(old) if patient else Vm(old).start())
    except VmkitError as e:
        entry.keep = True
        return f"the old VM is not back yet, the next vmkit command tries again: {e.message}"
    return "the old VM is back as it was" + (", started anew" if started else "")


def _remove(host: Host, data: dict[str, Any]) -> None:
    """The old VM, without its console log, which is the new one's by now."""
    old = next((d for d in host.domains() if d.uuid == data["uuid"]), None)
    if old is not None and old.name == data["aside"]:
        old.undefine()
    pool = host.pool(POOL)
    for volume in data["drop"]:
        pool.delete(volume)
