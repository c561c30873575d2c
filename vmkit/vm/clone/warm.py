"""Images that hold the memory of a running VM, and VMs that go on from it."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from vmkit.errors import EffectError, RefusedError, UnsupportedError
from vmkit.host.facts.libvirt import guests_of
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.volume import Pool
from vmkit.image import store
from vmkit.image.manifest import Image, ImageFile, ImageKind
from vmkit.image.place import Placed, ensure_pool, place
from vmkit.plan import Choice, Plan, Step
from vmkit.progress import Finished, Reporter
from vmkit.progress import Started as Begun
from vmkit.system.clock import stopwatch
from vmkit.values import Bytes
from vmkit.vm import many
from vmkit.vm.clone import moment as moments
from vmkit.vm.clone.facts import image_of
from vmkit.vm.clone.identity import addressed, cards_of, memory_of, new
from vmkit.vm.clone.ledger import Ledger, first_entry
from vmkit.vm.clone.live import Finish, Started, captured, copy_disk, names_for, tidy, working
from vmkit.vm.clone.moment import Moment
from vmkit.vm.clone.plan import Copy, CopyDisk, SourceFacts, check_names, check_source
from vmkit.vm.clone.source import frozen
from vmkit.vm.machine import Vm
from vmkit.vm.many import Outcome
from vmkit.vm.xml_volumes import raw_xml, volume_xml

FORMAT: Final = 1
"""Version of the file that goes with a saved memory."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What goes with a saved memory.

    Attributes:
        vm: whose it was.
        xml: as that was defined.
        console: what it had written to its console.
        disk: path of its disk, where the copies' own goes; None for none.
        blanks: size of each disk that was only read (the seed of cloud-init), by path: copies have an empty one.
        size: bytes of the disk.
        qemu: version that wrote the memory.
    """

    vm: str
    xml: str
    console: str
    disk: str | None
    blanks: dict[str, int]
    size: int
    qemu: tuple[int, int, int]

    def dumped(self) -> bytes:
        """As JSON."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({"format": FORMAT, **fields}).encode()


def saved_of(image: Image) -> Saved:
    """What goes with the memory of an image.

    Raises:
        RefusedError: it holds none.
        EffectError: the file is damaged.
    """
    if image.memory is None or image.state is None:
        raise RefusedError(
            f"the image '{image.name}' holds no memory",
            hint=f"make one of a running VM: vmkit image from-vm VM --name NAME; or: --image {image.name}",
        )
    try:
        b = json.loads(image.state.path.read_text())
        if b["format"] > FORMAT:
            raise UnsupportedError(f"the memory of '{image.name}' was saved by a newer vmkit")
        return Saved(b["vm"], b["xml"], b["console"], b["disk"], b["blanks"], b["size"], tuple(b["qemu"]))
    except (OSError, ValueError, KeyError, TypeError) as e:
        again = f"vmkit image delete {image.name}, and make it again"
        raise EffectError(f"the memory of the image '{image.name}' is damaged: {e!r}", hint=again) from e


def check_kept(facts: SourceFacts) -> None:
    """Raise RefusedError if no image can be made of a running VM."""
    if facts.state != "running":
        raise RefusedError(f"{facts.name} is {facts.state}: only a running VM has memory", hint="vmkit start")
    check_source(facts, live=True)
    if sum(d.writable for d in facts.disks) > 1:
        raise RefusedError(f"{facts.name} has several disks; an image of its memory holds one", hint="vmkit clone")


def keep(host: Host, source: Domain, facts: SourceFacts, name: str, reporter: Reporter, *, force: bool) -> Image:
    """Make an image of a running VM, which runs on. Raises as `check_kept`, and as `store.making`."""
    check_kept(facts)
    names = names_for(facts)
    flat = f"{facts.name}.{secrets.token_hex(3)}.flat.qcow2"
    data = first_entry(
        host, [], source=facts.uuid, overlays=names.overlays, memory=[names.memory, *([flat] if names.overlays else [])]
    )
    with (
        store.making(name, force=force) as (folder, commit),
        working(host, facts.name, data) as (entry, checkpoint),
    ):
        pool = ensure_pool(host)
        clock = stopwatch()
        reporter(Begun("save", f"memory of {facts.name}"))
        entry.advance("save")
        with frozen(host, pool, source, names.memory, names.overlays):
            moment = captured(host, pool, facts, names.memory)
            checkpoint()
            for disk in (d for d in facts.disks if d.writable):
                copy_disk(host, pool, CopyDisk(disk.target, disk.volume or "", disk.path, flat, None))
        reporter(Finished("save", clock(), f"memory of {facts.name}"))
        entry.advance("fetch", overlays={})
        files = _fetch(host, pool, facts, names.memory, flat if names.overlays else None, folder)
        disk_file = next((d for d in facts.disks if d.writable), None)
        saved = Saved(
            vm=facts.name,
            xml=facts.xml,
            console=moment.console.decode(errors="replace"),
            disk=disk_file.path if disk_file else None,
            blanks={d.path: d.size for d in facts.disks if not d.writable and d.volume in moment.remembered.volumes},
            size=pool.size(flat)[0] if disk_file else 0,
            qemu=facts.qemu,
        )
        (folder / "state").write_bytes(saved.dumped())
        (folder / "state").chmod(0o600)
        image = commit(_image(facts, files, store.describe(folder / "state")))
        tidy(host, pool, entry, Outcome())
    return image


def _fetch(
    host: Host, pool: Pool, facts: SourceFacts, memory: str, disk: str | None, folder: Path
) -> dict[str, ImageFile]:
    """Bring what the image consists of into its folder."""
    root = ET.fromstring(facts.xml)  # noqa: S314 - libvirt's own answer
    wanted = {"memory": memory, "disk.qcow2": disk}
    for tag in ("kernel", "initrd"):
        path = root.findtext(f"os/{tag}")
        wanted[tag] = path.rpartition("/")[2] if path else None
    found = {}
    for name, volume in wanted.items():
        if volume is None:
            continue
        if moments.local(host, pool):
            shutil.copyfile(pool.folder / volume, folder / name)
        else:
            pool.download(volume, folder / name)
        found[name.partition(".")[0]] = store.describe(folder / name)
    return found


def _image(facts: SourceFacts, files: dict[str, ImageFile], state: ImageFile) -> Image:
    base = image_of(facts.remembered.image if facts.remembered else None)
    root = ET.fromstring(facts.xml)  # noqa: S314 - libvirt's own answer
    kind = root.find("os/type")
    blank = base or Image("", ImageKind.MEMORY, kind.get("arch", "") if kind is not None else "", "", "", agent=True)
    return replace(
        blank,
        kind=ImageKind.MEMORY,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=f"memory of the VM {facts.name}",
        kernel=files.get("kernel"),
        initrd=files.get("initrd"),
        disk=files.get("disk"),
        programs=None,
        memory=files["memory"],
        state=state,
        min_memory=Bytes(int(root.findtext("memory", "0")) * 1024),
    )


@dataclass(frozen=True, slots=True)
class WarmDesign:
    """VMs that go on from the memory of an image. With `as_was` they belong to the image that the VM saved was of."""

    image: Image
    saved: Saved
    copies: tuple[Copy, ...]
    plan: Plan
    as_was: bool = False


def decide(host: Host, image: Image, names: Sequence[str], address: str | None) -> WarmDesign:
    """Look whether this host can go on from an image, and decide who the VMs are. Nothing is touched.

    Raises:
        RefusedError: the image holds no memory; or there is no room.
        UnsupportedError: this host cannot run it.
        SpecError, ConflictError: as for copies.
    """
    saved = saved_of(image)
    check_names(names, frozenset(d.name for d in host.domains()))
    _check_host(host, image, saved)
    remembered = memory_of(saved.xml)
    if remembered is None:
        raise EffectError(f"the memory of the image '{image.name}' is damaged: no metadata")
    cards = cards_of(saved.xml, remembered.spec)
    copies = []
    for i, name in enumerate(names):
        identity = replace(new(name, addressed(cards, address, i, name=saved.vm)), seedless=bool(saved.blanks))
        disks = [CopyDisk("", "", saved.disk, f"{name}-0.qcow2", None)] if saved.disk else []
        for n, path in enumerate(saved.blanks):
            disks.append(CopyDisk("", "", path, f"{name}-seed{n or ''}.iso", None, raw=True))
        copies.append(Copy(identity, tuple(disks)))
    steps = [Step("place", f"image '{image.name}' on the host", "done once for each host and image")]
    for copy in copies:
        steps.append(Step("restore", f"domain {copy.name}", "with its cable pulled"))
        steps.append(Step("rename", f"guest of {copy.name}", "so no two have one address"))
    made = f"{saved.vm}, QEMU {'.'.join(map(str, saved.qemu))}"
    choices = (Choice("start", "warm", f"goes on from the memory of {made}, saved {image.created}"),)
    return WarmDesign(
        image, saved, tuple(copies), Plan(f"VMs from the memory of '{image.name}'", choices, tuple(steps))
    )


def _check_host(host: Host, image: Image, saved: Saved) -> None:
    kind = ET.fromstring(saved.xml).get("type", "")  # noqa: S314 - libvirt's own answer
    check_host(host, image.arch, kind, saved.qemu, f"the memory of '{image.name}'")


def check_host(host: Host, arch: str, kind: str, qemu: tuple[int, int, int] | None, what: str) -> None:
    """Raise UnsupportedError if a host cannot go on from a memory.

    Args:
        host: which.
        arch: of the guest: 'x86_64'.
        kind: of the guest: 'kvm'.
        qemu: version that writes the memory; None if only the guest itself has to fit.
        what: whose memory, for messages.
    """
    if host.driver != "QEMU":
        raise UnsupportedError(f"{host.uri} is driven by {host.driver}: a saved memory is QEMU's")
    version = host.hypervisor_version()
    if qemu is not None and version[:2] < qemu[:2]:
        old, now = (".".join(map(str, v)) for v in (qemu, version))
        raise UnsupportedError(
            f"{what} was saved by QEMU {old}; {now} may not read it",
            hint="make the image on a host with the older QEMU",
        )
    if kind not in guests_of(host.capabilities(), arch)[0]:
        raise UnsupportedError(f"{what} is of a guest of the type {kind}, which {host.uri} does not offer")


def start(
    host: Host, design: WarmDesign, reporter: Reporter, finish: Finish, *, workers: int | None = None
) -> Outcome[Started]:
    """Start the VMs, a few at a time. One that fails is removed again; the others stay."""
    by_name = {c.name: c for c in design.copies}
    with working(host, design.image.name, first_entry(host, design.copies)) as (entry, checkpoint):
        placed = place(host, design.image, reporter)
        pool = ensure_pool(host)
        moment = _moment(host, pool, design, placed)
        ledger = Ledger(entry)
        entry.advance("copies")

        def one(name: str, notes: Reporter) -> Started:
            took = stopwatch()
            copy = by_name[name]
            domain = moments.define(host, pool, moment, copy, moved=_moved(design, placed))
            for disk in copy.disks:
                size = design.saved.blanks[disk.path] if disk.raw else design.saved.size
                raw = raw_xml(disk.volume, size)
                pool.create(raw if disk.raw else volume_xml(disk.volume, size, placed.disk))
            moments.start(host, pool, domain, moment, copy, checkpoint, moved=_moved(design, placed))
            ledger.finished(copy)
            vm = Vm(domain)
            ready = finish(vm, notes)
            return Started(vm, took(), ready)

        outcome = many.for_each(list(by_name), one, workers=many.at_once(host, workers), reporter=reporter)
        tidy(host, pool, entry, outcome)
    return outcome


def _moment(host: Host, pool: Pool, design: WarmDesign, placed: Placed) -> Moment:
    remembered = memory_of(design.saved.xml)
    assert remembered is not None  # noqa: S101 - `decide` looked
    assert placed.memory is not None  # noqa: S101 - the image has one
    volume = placed.memory.rpartition("/")[2]
    head = moments.read_head(host, pool, volume)
    console = design.saved.console.encode()
    known = remembered if design.as_was else replace(remembered, image=design.image.name)
    return Moment(volume, head, design.saved.xml, known, console)


def _moved(design: WarmDesign, placed: Placed) -> dict[str, str]:
    """Where kernel and initrd are on this host, by where they were."""
    root = ET.fromstring(design.saved.xml)  # noqa: S314 - libvirt's own answer
    pairs = {root.findtext("os/kernel"): placed.kernel, root.findtext("os/initrd"): placed.initrd}
    return {old: now for old, now in pairs.items() if old and now}
