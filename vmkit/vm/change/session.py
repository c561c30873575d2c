"""Bringing a change about: what is needed is made ready, then what runs, then the definition; or all of it set back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from vmkit.errors import CancelledError, DeadlineError, EffectError, NotFoundError, VmkitError
from vmkit.hypervisor import alter, hotplug, tuning
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.migration import adopt
from vmkit.image.place import POOL, ensure_pool, place
from vmkit.progress import Note, Reporter, Started, silent
from vmkit.system.interrupts import deferred
from vmkit.system.journal import Entry, journalled
from vmkit.values import Bytes
from vmkit.vm import limiting, reservations, xml_devices, xml_limits
from vmkit.vm.change import plug, rollback
from vmkit.vm.change.designing import design_of, dimm, limit_change, text_of, whole
from vmkit.vm.change.edit import SCSI_CONTROLLER, Parts, edited, rewired
from vmkit.vm.change.look import element_of, remembered
from vmkit.vm.change.model import (
    AddDisk,
    AddNic,
    Delta,
    GrowDisk,
    MoveNic,
    RebuildDisk,
    Redesign,
    RemoveDisk,
    RemoveNic,
    ReplaceNic,
    SetAutostart,
    SetLimits,
    SetSize,
)
from vmkit.vm.change.shape import Have, disks_of, effective_disks, nics_of
from vmkit.vm.metadata import NAMESPACE, to_text
from vmkit.vm.spec import dump
from vmkit.vm.xml_volumes import volume_xml

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmkit.hypervisor.domain import Domain
    from vmkit.image.manifest import Image
    from vmkit.vm.design import Design
    from vmkit.vm.limit_plan import Decision

_DESIGNED = (AddDisk, RebuildDisk, AddNic, MoveNic, ReplaceNic, Redesign)


@dataclass(frozen=True, slots=True)
class Ready:
    """A change that could be made now.

    Attributes:
        delta: what is done.
        design: the VM as it would be if it were made anew; None where that is not needed.
        before: the same of the old spec, where parts outside of disks and NICs change.
        images: those that new disks overlay.
        limits: what is decided about limits; None where they stay.
    """

    delta: Delta
    design: Design | None
    before: Design | None
    images: dict[str, Image]
    limits: Decision | None


def prepare(domain: Domain, have: Have, delta: Delta, reporter: Reporter = silent) -> Ready:
    """See whether a change can be made. Nothing is touched.

    Raises:
        NotFoundError, SpecError, UnsupportedError, RefusedError: it cannot.
    """
    acts = [c.act for c in delta.changes]
    design = before = None
    images: dict[str, Image] = {}
    if any(isinstance(a, _DESIGNED) for a in acts):
        design, images = design_of(domain.host, delta.spec, reporter)
    if any(isinstance(a, Redesign) for a in acts):
        before, _ = design_of(domain.host, have.spec, reporter)
    limits = None
    if any(isinstance(a, SetLimits) for a in acts):
        limits = limiting.plan(domain, limit_change(have, delta), live=False, config=False)
    return Ready(delta, design, before, images, limits)


def carry_out(
    domain: Domain, have: Have, ready: Ready, *, delete: Sequence[str] = (), reporter: Reporter = silent
) -> list[str]:
    """Make the change.

    Args:
        domain: the VM.
        have: as it was looked at.
        ready: from `prepare`.
        delete: volumes of disks that go, which are deleted in the end.
        reporter: told of what the guest has to do itself.

    Returns:
        What was deleted.

    Raises:
        EffectError, DeadlineError: a part failed; everything is as it was, or the message says what is not.
        CancelledError: Ctrl-C or a signal came; everything is as it was.
    """
    before = rollback.snapshot(domain, have.live)
    with journalled("apply", domain.name, "begin", **before) as entry, deferred() as interrupted:

        def checkpoint() -> None:
            if by := interrupted():
                raise CancelledError(f"the change of {domain.name} was stopped by {by}")

        try:
            reporter(Started(domain.name, "changing"))
            _Session(domain, have, ready, entry, checkpoint, reporter).run()
            checkpoint()
        except VmkitError as e:
            left = _back(domain, entry)
            grown = [c.path for c in ready.delta.changes if isinstance(c.act, GrowDisk)]
            left += f"; {', '.join(grown)} may have grown already, which cannot be taken back" if grown else ""
            if isinstance(e, CancelledError):
                raise CancelledError(f"{e.message}; {left}") from e
            kind = DeadlineError if isinstance(e, DeadlineError) else None
            if kind:
                raise DeadlineError(f"{e.message}; {left}", hint=e.hint, details=e.details) from e
            raise EffectError(e.message, left=left, hint=e.hint, details=e.details) from e
        entry.advance("delete", delete=list(delete))
        return delete_volumes(domain.host, delete)


def delete_volumes(host: Host, names: Sequence[str]) -> list[str]:
    """Delete volumes of the pool `vmkit`; those that are gone already do not count."""
    if not names:
        return []
    pool = host.pool(POOL)
    return [v for v in names if pool.delete(v)]


def recover(entry: Entry, reporter: Reporter) -> str:
    """Undo a change that was cut off, or finish it where only deletions were left; returns what was found and done.

    Raises:
        UnreachableError: the host does not answer; the entry is kept.
    """
    from vmkit.vm.change import recreate, rename

    record = entry.record
    what = f"a change of {record.subject} was cut off"
    with Host.connect(record.data["uri"]) as host:
        if record.phase == "rename":
            return f"a renaming of {record.subject} was cut off; {rename.recover(host, entry)}"
        if record.phase in ("recreate", "remove"):
            return f"a re-creation of {record.subject} was cut off; {recreate.recover(host, entry, reporter)}"
        if record.phase == "delete":
            gone = delete_volumes(host, record.data["delete"])
            return f"{what} at its end; " + (f"deleted {', '.join(gone)}" if gone else "nothing was left to do")
        try:
            domain = host.domain(record.data["uuid"])
        except NotFoundError:
            gone = delete_volumes(host, record.data["made"])
            return f"{what}; the VM is gone" + (f", deleted {', '.join(gone)}" if gone else "")
        back = rollback.restore(domain, record.data)
    done = f"set back: {', '.join(back.done)}" if back.done else "nothing of it had been done"
    if back.failed:
        entry.keep = True
        return f"{what}; {done}; not yet: {'; '.join(back.failed)}"
    return f"{what}; {done}"


def _back(domain: Domain, entry: Entry) -> str:
    try:
        back = rollback.restore(domain, entry.record.data)
    except VmkitError:
        entry.keep = True
        return "the next vmkit command sets back what was changed"
    if back.failed:
        entry.keep = True
        return f"it could not all be set back, the next vmkit command tries again: {'; '.join(back.failed)}"
    return "everything is as it was"


class _Session:
    """The steps of one change. What can fail by the guest's will comes last, so that little has to be set back."""

    def __init__(
        self,
        domain: Domain,
        have: Have,
        ready: Ready,
        entry: Entry,
        checkpoint: Callable[[], None],
        reporter: Reporter,
    ) -> None:
        self.domain, self.have, self.ready, self.entry = domain, have, ready, entry
        self.checkpoint, self.reporter = checkpoint, reporter
        self.acts = [c.act for c in ready.delta.changes if c.act is not None]
        self.memory = remembered(domain, inactive=True)
        self.disks: dict[int, str] = {}
        self.nics: dict[int, str] = {}
        self.volumes = list(self.memory.volumes)

    def run(self) -> None:
        """All steps; raises at the first that fails."""
        self._make_parts()
        self.checkpoint()
        self.entry.advance("live")
        self._plug()
        self.checkpoint()
        self._grow()
        self.entry.advance("definition")
        self._define()
        self._limits()
        self.entry.advance("unplug")
        self._unplug()
        for act in self.acts:
            if isinstance(act, SetAutostart):
                self.domain.set_autostart(act.on)
        self._remember()
        reservations.sync(self.domain)

    # -- getting ready

    def _make_parts(self) -> None:
        design = self.ready.design
        if design is None:
            return
        shapes = {d.device: d for d in self.have.config.disks}
        for act in self.acts:
            match act:
                case AddDisk(index, device, live):
                    disk = replace(design.disks[index], device=device)
                    if disk.volume:
                        disk = replace(disk, volume=self._make_volume(index, disk.size, disk.backing))
                    path = str(ensure_pool(self.domain.host).folder / disk.volume) if disk.volume else ""
                    if live and not self._has_thread(disk.iothread):
                        disk = replace(disk, iothread=None)
                    self.disks[index] = text_of(xml_devices.disk(disk, path))
                case RebuildDisk(index, device):
                    disk = design.disks[index]
                    same = disk.bus.value == shapes[device].bus
                    name = device if same else self._free_name(disk.device)
                    self.disks[index] = text_of(xml_devices.disk(replace(disk, device=name), ""))
                case AddNic(index, mac):
                    self.nics[index] = self._nic(index, mac)
                case MoveNic(index, mac):
                    self.nics[index] = self._nic(index, mac)
                case ReplaceNic(index, _, mac):
                    self.nics[index] = self._nic(index, mac)
                case _:
                    pass

    def _nic(self, index: int, mac: str) -> str:
        assert self.ready.design is not None  # noqa: S101 - a NIC that comes has been designed
        design = next(n for n in self.ready.design.nics if n.index == index)
        return text_of(xml_devices.nic(replace(design, mac=mac), {}))

    def _has_thread(self, number: int | None) -> bool:
        root = ET.fromstring(self.domain.xml())  # noqa: S314 - libvirt's own answer
        return number is None or number <= int(root.findtext("iothreads") or 0)

    def _free_name(self, wish: str) -> str:
        from vmkit.vm.change.shape import next_device

        taken = self.have.config.targets
        return wish if wish not in taken else next_device(wish[:2], taken)

    def _make_volume(self, index: int, size: int, backing: str | None) -> str:
        host = self.domain.host
        pool = ensure_pool(host)
        pool.refresh()
        there = {*pool.names(), *self.volumes}
        numbers = range(index, index + len(there) + 1)
        name = next(n for i in numbers if (n := f"{self.domain.name}-{i}.qcow2") not in there)
        base = place(host, self.ready.images[backing], self.reporter).disk if backing else None
        self.entry.advance("volumes", made=[*self.entry.record.data["made"], name])
        pool.create(volume_xml(name, size, base))
        self.volumes.append(name)
        return name

    # -- what runs

    def _plug(self) -> None:
        domain = self.domain
        vcpus = False
        blocks: int | None = 0
        for act in self.acts:
            match act:
                case AddDisk(index, device, True):
                    if device.startswith("sd") and not plug.has_scsi(domain):
                        # It stays if the change is set back: the guest sees a controller without disks.
                        hotplug.attach(domain, SCSI_CONTROLLER, live=True, config=False)
                    hotplug.attach(domain, self.disks[index], live=True, config=False)
                case AddNic(index, _, True):
                    hotplug.attach(domain, self.nics[index], live=True, config=False)
                case MoveNic(index, mac) if self.have.live:
                    alter.update_device(domain, rewired(self._live_nic(mac), self.nics[index]), live=True, config=False)
                case SetSize(_, _, Bytes() as add, _):
                    known = plug.memory_blocks(domain)
                    hotplug.attach(domain, dimm(add), live=True, config=False)
                    blocks = None if known is None else known + add // (128 << 20)
                case _:
                    continue
            self.checkpoint()
        # Last, since an emulated guest's vCPUs cannot be taken away again.
        wanted = next((a.vcpus for a in self.acts if isinstance(a, SetSize) and a.vcpus), 0)
        if wanted > plug.shape(domain).size.vcpus:
            plug.set_vcpus(domain, wanted)
            vcpus = True
        if (vcpus or blocks != 0) and (todo := plug.bring_online(domain, vcpus=vcpus, blocks=blocks)):
            self.reporter(Note(todo, warning=True))

    def _live_nic(self, mac: str) -> str:
        return next(n.xml for n in plug.shape(self.domain).nics if n.mac == mac)

    def _grow(self) -> None:
        for act in self.acts:
            if isinstance(act, GrowDisk):
                if self.have.live is not None:
                    alter.grow_disk(self.domain, act.device, act.size)
                else:
                    alter.grow_volume(self.domain, act.source, act.size)

    def _unplug(self) -> None:
        domain = self.domain
        there = plug.shape(domain)
        disks, nics = {d.device: d.xml for d in there.disks}, {n.mac: n.xml for n in there.nics}
        for act in self.acts:
            self.checkpoint()
            match act:
                case ReplaceNic(index, mac) if self.have.live is not None and mac in nics:
                    plug.unplug(domain, f"NIC {mac}", nics[mac], plug.has_nic(mac))
                    hotplug.attach(domain, self.nics[index], live=True, config=False)
                case RemoveNic(mac, True) if mac in nics:
                    plug.unplug(domain, f"NIC {mac}", nics[mac], plug.has_nic(mac))
                case RemoveDisk(device, _, True) if device in disks:
                    plug.unplug(domain, f"disk {device}", disks[device], plug.has_disk(device))
                case SetSize(_, count, _, remove):
                    if count and count < there.size.vcpus:
                        plug.set_vcpus(domain, count)
                    for piece in remove:
                        plug.unplug(domain, "added memory", piece, plug.has_memory(piece))
                case _:
                    pass

    # -- the definition, and what is remembered

    def _define(self) -> None:
        delta, before = self.ready.delta, self.ready.before
        old_disks = effective_disks(self.have.spec, image_disk=self.have.image_disk)
        shapes = disks_of(self.have.spec, old_disks, self.have.config)
        cards = nics_of(self.have.spec.nics, self.have.config)
        parts = Parts(
            disks=self.disks,
            nics=self.nics,
            before=whole(before) if before else None,
            after=whole(self.ready.design) if before and self.ready.design else None,
            devices=[s.device if s else None for s in shapes],
            macs=[s.mac if s else None for s in cards if s is not None],
        )
        text = edited(
            self.domain.xml(inactive=True, secure=True), delta.changes, parts, self._memory_text(dump(delta.spec))
        )
        if self.ready.limits is not None and self.ready.limits.config is not None:
            now = xml_limits.read(self.domain.xml(inactive=True))
            text = xml_limits.write(text, now, self.ready.limits.config)
        adopt(self.domain.host, text)

    def _memory_text(self, spec: dict[str, Any]) -> str:
        gone = {(a.source or "").rpartition("/")[2] for a in self.acts if isinstance(a, RemoveDisk)}
        kept = tuple(v for v in self.volumes if v not in gone)
        return to_text(replace(self.memory, spec=spec, volumes=kept))

    def _limits(self) -> None:
        if self.ready.limits is not None and self.ready.limits.live is not None:
            limiting.reach(self.domain, self.ready.limits.live)

    def _remember(self) -> None:
        if self.ready.delta.running is None:
            return
        text = self._memory_text(dump(self.ready.delta.running))
        tuning.set_element(self.domain, NAMESPACE, "vmkit", element_of(text), live=True, config=False)
