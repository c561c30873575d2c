"""What differs between a VM and its spec, and when each difference can take effect. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from vmkit.errors import SpecError
from vmkit.values import Bytes, to_plain
from vmkit.vm.change.devices import diff_disks, diff_nics
from vmkit.vm.change.model import Change, Delta, Effect, Redesign, SetAutostart, SetLimits, SetSize
from vmkit.vm.change.shape import Have
from vmkit.vm.spec import VmSpec, dump
from vmkit.vm.xml_size import SLOTS, Size

DIMM_STEP: Final = Bytes(128 << 20)
"""Linux adds memory in blocks of 128 MiB (x86-64: MIN_MEMORY_BLOCK_SIZE, 1 << SECTION_SIZE_BITS)."""
REDESIGNED: Final = frozenset(
    [
        *("family", "guest", "accel", "cpu", "pinning", "numa", "hugepages", "locked", "balloon", "cmdline"),
        *("qemu_args", "display"),
    ]
)
"""Fields that a new definition can take over, and a QEMU process that runs cannot."""
_SIZE: Final = frozenset(["vcpus", "max_vcpus", "memory", "max_memory"])
_LISTS: Final = frozenset(["disks", "nics"])
_REASONS: Final = {
    "image": "its first disk is made from the image",
    "machine": "another board: the guest would find all its devices elsewhere",
    "devices": "vmkit device attach and vmkit device detach change them while it runs",
    "cloud_init": "the guest reads it at its first boot",
}


@dataclass(slots=True)
class Found:
    """Differences as they are found, and the spec of what runs as it will be."""

    have: Have
    want: VmSpec
    changes: list[Change] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)

    def add(self, path: str, old: object, new: object, effect: Effect, reason: str = "", act: Any = None) -> None:
        """Note one. What runs takes it over at once, or keeps the old value of that field until it is started anew."""
        if effect is Effect.LIVE and self.have.live is None:
            effect = Effect.NEXT_START
        if effect is Effect.REBOOT and self.have.live is None:
            effect, reason = Effect.NEXT_START, ""
        if effect is Effect.REBOOT and self.have.running is not None and "[" not in path:
            self.kept[path] = getattr(self.have.running, path)
        self.changes.append(Change(path, _shown(old), _shown(new), effect, reason, act))


def compare(want: VmSpec, have: Have) -> Delta:
    """What has to be done so that the VM becomes what the spec says.

    Raises:
        SpecError: something that cannot be done to a VM that exists, such as a smaller disk.
    """
    found = Found(have, want)
    for name in VmSpec.__struct_fields__:
        old, new = getattr(have.spec, name), getattr(want, name)
        if name in _SIZE or name in _LISTS or name in ("name", "autostart") or old == new:
            continue
        if name == "labels":
            found.add(name, old, new, Effect.LIVE, "kept with the VM, the guest does not see it")
        elif name == "limits":
            found.add(name, old, new, Effect.LIVE, "", SetLimits())
        elif name in REDESIGNED:
            found.add(name, old, new, Effect.REBOOT, "QEMU takes it at its start", Redesign())
        else:
            found.add(name, old, new, Effect.RECREATE, _REASONS.get(name, "it is settled when a VM is made"))
    if want.autostart != have.autostart:
        found.add("autostart", have.autostart, want.autostart, Effect.LIVE, "", SetAutostart(want.autostart))
    _size(found)
    disks, running_disks = diff_disks(want, have, found.add)
    nics, running_nics = diff_nics(want, have, found.add)
    spec = msgspec.structs.replace(want, disks=disks, nics=nics)
    running = None
    if have.running is not None:
        kept = {k: v for k, v in found.kept.items() if k not in _LISTS}
        running = msgspec.structs.replace(spec, disks=running_disks, nics=running_nics, **kept)
        earlier = _pending(have)
        running = _older(running, have.running, earlier, {c.path.partition("[")[0] for c in found.changes})
    return Delta(have.name, tuple(found.changes), spec, running, _pending(have))


def _pending(have: Have) -> tuple[str, ...]:
    """Fields in which what runs is not yet what its definition was made from."""
    if have.running is None:
        return ()
    now, then = dump(have.running), dump(have.spec)
    return tuple(sorted(k for k in {*now, *then} if now.get(k) != then.get(k)))


def _older(running: VmSpec, before: VmSpec, pending: tuple[str, ...], changed: set[str]) -> VmSpec:
    """Fields that were waiting before, and are not touched now, still wait."""
    waiting = {f: getattr(before, f) for f in pending if f not in changed}
    return msgspec.structs.replace(running, **waiting) if waiting else running


def _size(found: Found) -> None:
    have, want = found.have, found.want
    now = have.config.size
    memory = _memory(found)
    most = want.max_memory if want.max_memory is not None and want.max_memory > memory else None
    vcpus = want.max_vcpus or max(now.max_vcpus, want.vcpus)
    if have.config.tied:
        vcpus = want.vcpus
    size = Size(want.vcpus, vcpus, memory, most)
    live = have.live.size if have.live is not None else None
    if size.vcpus != now.vcpus or (live is not None and size.vcpus != live.vcpus and "vcpus" not in _pending(have)):
        _vcpus(found, size)
    if want.max_vcpus is not None and vcpus != now.max_vcpus:
        found.add("max_vcpus", now.max_vcpus, vcpus, Effect.REBOOT, "QEMU takes it at its start", SetSize(size))
    if memory != now.memory:
        _resize(found, size)
    if most != now.max_memory:
        found.add(
            "max_memory", now.max_memory or "-", most or "-", Effect.REBOOT, "QEMU takes it at its start", SetSize(size)
        )


def _memory(found: Found) -> Bytes:
    have, want = found.have, found.want
    if want.memory is None:
        return have.config.size.memory if have.spec.memory is None else have.auto_memory
    if want.memory < have.min_memory:
        raise SpecError(
            f"{want.memory} is less than the image '{want.image}' needs",
            path="memory",
            hint=f"{have.min_memory} or more",
        )
    return Bytes(want.memory.kib * 1024)


def _vcpus(found: Found, size: Size) -> None:
    have = found.have
    if have.config.tied:
        reason = "its vCPUs are pinned or laid out over cores"
        found.add("vcpus", have.config.size.vcpus, size.vcpus, Effect.REBOOT, reason, Redesign())
        return
    live = have.live
    now = (live or have.config).size.vcpus
    if live is None or size.vcpus == now:
        found.add("vcpus", have.config.size.vcpus, size.vcpus, Effect.LIVE, "", SetSize(size))
    elif size.vcpus > live.size.max_vcpus:
        reason = f"it was started with room for {live.size.max_vcpus}"
        found.add("vcpus", now, size.vcpus, Effect.REBOOT, reason, SetSize(size))
    elif size.vcpus < now and live.emulated:
        # Each vCPU that comes takes one of max_vcpus contexts of the translator, and none is given back: a vCPU that
        # comes again ends QEMU (10.0: tcg_register_thread, 'n < tcg_max_ctxs'; seen).
        reason = "QEMU cannot add a vCPU to an emulated guest again once it went"
        found.add("vcpus", now, size.vcpus, Effect.REBOOT, reason, SetSize(size))
    elif size.vcpus < now - live.removable:
        reason = "vCPUs that it was started with cannot be taken away"
        found.add("vcpus", now, size.vcpus, Effect.REBOOT, reason, SetSize(size))
    else:
        reason = "" if size.vcpus > now else "the guest has to let go of it"
        found.add("vcpus", now, size.vcpus, Effect.LIVE, reason, SetSize(size, vcpus=size.vcpus))


def _resize(found: Found, size: Size) -> None:
    live, target = found.have.live, size.memory
    old = (live or found.have.config).size.memory
    add: Callable[..., None] = lambda effect, reason, act: found.add("memory", old, target, effect, reason, act)  # noqa: E731
    if live is None or target == old:
        add(Effect.LIVE, "", SetSize(size))
    elif target < old:
        gone = _dimms(found, old - target)
        if gone is None:
            add(Effect.REBOOT, "only memory that was added while it runs can be taken away", SetSize(size))
        else:
            add(Effect.LIVE, "the guest has to let go of it", SetSize(size, remove=gone))
    elif live.size.max_memory is None:
        add(Effect.REBOOT, "it was started without room for more: max_memory", SetSize(size))
    elif target > live.size.max_memory:
        add(Effect.REBOOT, f"it was started with room for {live.size.max_memory}", SetSize(size))
    elif (target - old) % DIMM_STEP:
        add(Effect.REBOOT, f"memory is added in steps of {DIMM_STEP}", SetSize(size))
    elif len(live.dimms) >= SLOTS:
        add(Effect.REBOOT, f"all {SLOTS} slots for memory are taken", SetSize(size))
    else:
        add(Effect.LIVE, "", SetSize(size, add=Bytes(target - old)))


def _dimms(found: Found, amount: int) -> tuple[str, ...] | None:
    """Added memory that is just that much, the latest first; None if no combination is."""
    best: dict[int, tuple[str, ...]] = {0: ()}
    live = found.have.live
    for dimm in reversed(live.dimms if live else ()):
        for total, parts in list(best.items()):
            best.setdefault(total + dimm.size, (*parts, dimm.xml))
    return best.get(amount)


def _shown(value: object) -> str:
    """A value of a field in one line."""
    import enum

    match value:
        case "" | None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case enum.Enum():
            return str(value.value)
        case dict():
            return " ".join(f"{k}={v}" for k, v in value.items()) or "-"
        case tuple() | list():
            return " ".join(_shown(v) for v in value) or "-"
    if isinstance(value, msgspec.Struct):
        plain = to_plain(msgspec.to_builtins(value, enc_hook=str, str_keys=True))
        return " ".join(f"{k}={v}" for k, v in plain.items()) or "-"
    return str(value)
