"""Differences of disks and NICs. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from vmkit.device.plan import stable_mac
from vmkit.errors import SpecError
from vmkit.values import Bytes
from vmkit.vm.change import match
from vmkit.vm.change.model import (
    AddDisk,
    AddNic,
    Effect,
    GrowDisk,
    MoveNic,
    RebuildDisk,
    Redesign,
    RemoveDisk,
    RemoveNic,
    ReplaceNic,
    SetLimits,
)
from vmkit.vm.change.shape import (
    LETTERS,
    DiskShape,
    Have,
    NicShape,
    backing_of,
    bus_of,
    disks_of,
    effective_disks,
    next_device,
    nics_of,
)
from vmkit.vm.spec import VmSpec
from vmkit.vm.spec_parts import Bus, DiskSpec, NicIo, NicModel, NicSpec

Add = Callable[..., None]
"""Found.add: path, old, new, effect, reason, act."""
_HOT: Final = (Bus.VIRTIO, Bus.SCSI)
_HOT_NAMES: Final = tuple(b.value for b in _HOT)
_FORWARDS: Final = "a card that forwards ports is QEMU's own, and comes with its process"
_TAPS: Final = ("network", "bridge")
_NO_PORT: Final = "no PCI Express port of it is free"


def diff_disks(want: VmSpec, have: Have, add: Add) -> tuple[tuple[DiskSpec, ...], tuple[DiskSpec, ...]]:
    """Differences of the disks.

    Returns:
        The disks to remember for the definition, and those for what runs.

    Raises:
        SpecError: a disk would become smaller.
    """
    old = effective_disks(have.spec, image_disk=have.image_disk)
    new = effective_disks(want, image_disk=have.image_disk)
    shapes = disks_of(have.spec, old, have.config)
    pairs = match.pairs(old, new, match.disk_score(have.spec, old, want, new, image_disk=have.image_disk))
    by_old = {h: w for w, h in pairs.items()}
    boot = bool(old) and backing_of(have.spec, old[0], 0, image_disk=have.image_disk) is not None
    if boot and by_old.get(0) != 0:
        add("disks[0]", _disk(old[0]), _disk(new[0]) if new else "-", Effect.RECREATE, "it is the disk of the image")
        return want.disks, have.running.disks if have.running else ()
    after: list[DiskSpec] = []
    running: list[DiskSpec] = []
    for h, disk in enumerate(old):
        shape = shapes[h]
        if h not in by_old:
            stays = _gone(h, disk, shape, have, add)
            running += [disk] if stays else []
            continue
        changed = new[by_old[h]]
        if shape is None and changed != disk:
            raise _lost("disk", h, have)
        stays = shape is not None and _changed(by_old[h], len(after), disk, changed, shape, have, want, add)
        running.append(_with_hot_parts(disk, changed) if stays else changed)
        after.append(changed)
    taken = have.config.targets | (have.live.targets if have.live else frozenset())
    ports = have.live.ports if have.live else None
    for w, disk in enumerate(new):
        if w in pairs:
            continue
        bus = bus_of(want, disk, have.config)
        device = next_device(LETTERS[bus], taken)
        taken |= {device}
        live, reason = _pluggable(bus, have, ports)
        ports = ports - 1 if ports is not None and live and _takes_port(bus, have) else ports
        effect = Effect.LIVE if live or have.live is None else Effect.REBOOT
        add(f"disks[{w}]", "-", f"{device} {_disk(disk)}", effect, reason, AddDisk(len(after), device, live))
        after.append(disk)
        running += [disk] if live else []
    plain = tuple(after) if want.disks or len(after) != 1 or after[0] != DiskSpec() else ()
    return plain, tuple(running) if plain != tuple(running) else plain


def _gone(h: int, disk: DiskSpec, shape: DiskShape | None, have: Have, add: Add) -> bool:
    """A disk that goes. Whether what runs keeps it for now."""
    if shape is None:
        add(f"disks[{h}]", _disk(disk), "-", Effect.LIVE, "the VM has lost it already")
        return False
    live = have.live is not None and shape.bus in _HOT_NAMES and shape.device in {d.device for d in have.live.disks}
    effect = Effect.LIVE if live or have.live is None else Effect.REBOOT
    reason = "the guest has to let go of it" if live else f"a disk on {shape.bus} cannot go while it runs"
    act = RemoveDisk(shape.device, shape.source, live)
    add(f"disks[{h}]", f"{shape.device} {_disk(disk)}", "-", effect, reason, act)
    return effect is Effect.REBOOT


def _changed(
    w: int, index: int, old: DiskSpec, new: DiskSpec, shape: DiskShape, have: Have, want: VmSpec, add: Add
) -> bool:
    """A disk that stays, perhaps in another form. Whether what runs keeps the old form for now."""
    path = f"disks[{w}]"
    size = have.sizes.get(shape.device)
    if new.size is not None and size is not None and new.size != size and (new.size > size or new.size != old.size):
        if new.size < size:
            raise SpecError(
                f"{shape.device} of {have.name} has {Bytes(size)}: a disk cannot become smaller",
                path=f"{path}.size",
                hint=f"leave it at {Bytes(size)}, or add a new disk, copy the data, and remove this one",
            )
        act = GrowDisk(shape.device, shape.source or "", new.size)
        add(f"{path}.size", Bytes(size), new.size, Effect.LIVE, "cannot be taken back", act)
    if old.limits != new.limits:
        add(f"{path}.limits", old.limits, new.limits, Effect.LIVE, "", SetLimits())
    rest = [f for f in DiskSpec.__struct_fields__ if f not in ("size", "limits", "image")]
    differ = [f for f in rest if getattr(old, f) != getattr(new, f)]
    for i, name in enumerate(differ):
        reason = "QEMU takes it at its start"
        if name in ("bus", "io") and bus_of(have.spec, old, have.config) is not bus_of(want, new, have.config):
            reason = "the guest finds the disk under another name then"
        rebuild = RebuildDisk(index, shape.device) if i == 0 else None
        add(f"{path}.{name}", getattr(old, name), getattr(new, name), Effect.REBOOT, reason, rebuild)
    if old.size != new.size and size is not None and (new.size is None or new.size == size):
        add(f"{path}.size", old.size or "-", new.size or "-", Effect.LIVE, "it has that size already")
    return bool(differ) and have.live is not None


def _with_hot_parts(old: DiskSpec, new: DiskSpec) -> DiskSpec:
    """What runs until the next start: the old form, with what could be changed at once."""
    return msgspec.structs.replace(old, size=new.size, limits=new.limits)


def _pluggable(bus: Bus, have: Have, ports: int | None) -> tuple[bool, str]:
    if have.live is None:
        return False, ""
    if bus not in _HOT:
        return False, f"a disk on {bus.value} cannot be added while it runs"
    if ports == 0 and _takes_port(bus, have):
        return False, _NO_PORT
    return True, ""


def _takes_port(bus: Bus, have: Have) -> bool:
    on_scsi = any(d.bus == "scsi" for d in have.live.disks) if have.live else False
    return bus is Bus.VIRTIO or (bus is Bus.SCSI and not on_scsi)


def diff_nics(want: VmSpec, have: Have, add: Add) -> tuple[tuple[NicSpec, ...], tuple[NicSpec, ...]]:
    """Differences of the NICs: what to remember for the definition, and for what runs."""
    old, new = have.spec.nics, want.nics
    shapes = nics_of(old, have.config)
    macs = [s.mac if s else None for s in shapes]
    pairs = match.pairs(old, new, match.nic_score(old, macs, new))
    by_old = {h: w for w, h in pairs.items()}
    after: list[NicSpec] = []
    running: list[NicSpec] = []
    for h, nic in enumerate(old):
        shape = shapes[h]
        if h not in by_old:
            running += [nic] if _nic_gone(h, nic, shape, have, add) else []
            continue
        changed = new[by_old[h]]
        stays = changed != nic and _nic_changed(by_old[h], len(after), nic, changed, shape, have, add)
        running.append(msgspec.structs.replace(nic, limits=changed.limits) if stays else changed)
        after.append(changed)
    ports = have.live.ports if have.live else None
    ports = None if ports is None else ports - _ports_of_disks(want, have)
    taken = {s.mac for s in have.config.nics} | {s.mac for s in (have.live.nics if have.live else ())}
    for w, nic in enumerate(new):
        if w in pairs:
            continue
        stays, ports = _nic_new(w, len(after), nic, have, ports, taken, add)
        after.append(nic)
        running += [] if stays else [nic]
    return tuple(after), tuple(running)


def _nic_gone(h: int, nic: NicSpec, shape: NicShape | None, have: Have, add: Add) -> bool:
    if nic.forward:
        add(f"nics[{h}]", _nic(nic), "-", Effect.RECREATE, _FORWARDS)
        return True
    if nic.io in (NicIo.PASSTHROUGH, NicIo.SRIOV):
        reason = "vmkit device detach takes it away while it runs"
        add(f"nics[{h}]", _nic(nic), "-", Effect.RECREATE, reason)
        return True
    live = shape is not None and have.live is not None and shape.mac in {n.mac for n in have.live.nics}
    act = RemoveNic(shape.mac, live) if shape is not None else None
    add(f"nics[{h}]", _nic(nic), "-", Effect.LIVE, "the guest has to let go of it" if live else "", act)
    return False


def _nic_changed(w: int, index: int, old: NicSpec, new: NicSpec, shape: NicShape | None, have: Have, add: Add) -> bool:
    """A NIC that stays, perhaps in another form. Whether what runs keeps the old form for now."""
    path = f"nics[{w}]"
    differ = [f for f in NicSpec.__struct_fields__ if getattr(old, f) != getattr(new, f)]
    assigned = {old.io, new.io} & {NicIo.PASSTHROUGH, NicIo.SRIOV}
    stays = False
    hard: list[str] = []
    for name in differ:
        a, b = getattr(old, name), getattr(new, name)
        if name == "limits":
            add(f"{path}.limits", a, b, Effect.LIVE, "", SetLimits())
        elif name in ("address", "gateway"):
            stays = _address(f"{path}.{name}", a, b, have, add) or stays
        elif name == "mac" and (b is None or (shape is not None and b.lower() == shape.mac)):
            add(f"{path}.mac", a or "-", b or "-", Effect.LIVE, "it has that address already")
        elif old.forward or new.forward:
            add(f"{path}.{name}", a or "-", b or "-", Effect.RECREATE, _FORWARDS)
        elif assigned or "none" in (old.network, new.network):
            add(f"{path}.{name}", a, b, Effect.RECREATE, "vmkit device attach and detach change it while it runs")
        else:
            hard.append(name)
    if not hard:
        return stays
    if shape is None:
        raise _lost("NIC", w, have)
    move = hard == ["network"] and shape.kind in _TAPS and new.network not in ("auto", "user")
    mac = new.mac.lower() if new.mac else shape.mac
    act = MoveNic(index, shape.mac) if move else ReplaceNic(index, shape.mac, mac)
    reason = "the card stays, its cable is moved" if move else "the card is taken out and put in again"
    for i, name in enumerate(hard):
        add(f"{path}.{name}", getattr(old, name), getattr(new, name), Effect.LIVE, reason, act if i == 0 else None)
    return stays


def _address(path: str, old: object, new: object, have: Have, add: Add) -> bool:
    if have.config.kernel:
        add(path, old or "-", new or "-", Effect.REBOOT, "given to the guest on the kernel command line", Redesign())
        return have.live is not None
    add(path, old or "-", new or "-", Effect.RECREATE, "the guest reads it at its first boot")
    return True


def _nic_new(
    w: int, index: int, nic: NicSpec, have: Have, ports: int | None, taken: set[str], add: Add
) -> tuple[bool, int | None]:
    """A NIC that comes. Whether what runs has to do without it for now, and the ports that are left."""
    path = f"nics[{w}]"
    if nic.forward:
        add(path, "-", _nic(nic), Effect.RECREATE, _FORWARDS)
        return True, ports
    if nic.io in (NicIo.PASSTHROUGH, NicIo.SRIOV):
        add(path, "-", _nic(nic), Effect.RECREATE, "vmkit device attach adds it while it runs")
        return True, ports
    if nic.network == "none":
        add(path, "-", _nic(nic), Effect.LIVE, "no card")
        return False, ports
    mac = nic.mac.lower() if nic.mac else _free_mac(have, taken)
    taken.add(mac)
    live, reason = have.live is not None, ""
    if live and nic.model not in (None, NicModel.VIRTIO, NicModel.E1000E) and ports is not None:
        live, reason = False, f"an {nic.model.value} needs a PCI bridge that is there from the start"
    elif live and ports is not None and ports < 1:
        live, reason = False, _NO_PORT
    effect = Effect.LIVE if live or have.live is None else Effect.REBOOT
    add(path, "-", f"{_nic(nic)} {mac}", effect, reason, AddNic(index, mac, live))
    return effect is Effect.REBOOT, ports - 1 if ports is not None and live else ports


def _free_mac(have: Have, taken: set[str]) -> str:
    return next(m for i in range(512, 1024) if (m := stable_mac(f"{have.uri}/{have.name}", i)) not in taken)


def _ports_of_disks(want: VmSpec, have: Have) -> int:
    """Ports that disks which come at the same time take."""
    old = effective_disks(have.spec, image_disk=have.image_disk)
    new = effective_disks(want, image_disk=have.image_disk)
    pairs = match.pairs(old, new, match.disk_score(have.spec, old, want, new, image_disk=have.image_disk))
    return sum(1 for w, d in enumerate(new) if w not in pairs and _takes_port(bus_of(want, d, have.config), have))


def _lost(what: str, number: int, have: Have) -> SpecError:
    return SpecError(
        f"{have.name} has lost its {what} {number} by another tool; it cannot be changed",
        hint=f"see what there is: vmkit show {have.name}",
    )


def _disk(disk: DiskSpec) -> str:
    words = [str(disk.size) if disk.size else "", f"of image {disk.image}" if disk.image else ""]
    words += [disk.source or "", f"on {disk.bus.value}" if disk.bus else ""]
    return " ".join(w for w in words if w) or "disk of the image"


def _nic(nic: NicSpec) -> str:
    return nic.network if nic.model is None else f"{nic.network} {nic.model.value}"
