"""Copies of a VM on another host. All that goes from one host to the other goes by way of this machine.

A running VM is saved as an image of its memory, from which its copies go on there; the image is gone afterwards. Of one
that is shut off the disks are fetched, each standing alone, and the copies take their identity there at a first boot.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

from vmkit.errors import RefusedError
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.migration import host_uuid
from vmkit.image import store
from vmkit.image.place import COMPLETE, ensure_pool, file_name, upload
from vmkit.plan import Choice, Plan, Step
from vmkit.progress import Finished, Reporter
from vmkit.progress import Started as Begun
from vmkit.system.clock import stopwatch
from vmkit.system.files import ensure_dir, home
from vmkit.system.journal import journalled
from vmkit.values import Bytes
from vmkit.vm import many
from vmkit.vm.clone import cold, warm
from vmkit.vm.clone.identity import cards_of
from vmkit.vm.clone.ledger import Ledger, clean_up_or_keep, drop, first_entry
from vmkit.vm.clone.live import Finish, Started, copy_disk, tidy, working
from vmkit.vm.clone.plan import CloneDesign, CopyDisk, SourceFacts, check_names, decide, memory_size
from vmkit.vm.many import Outcome


def design(facts: SourceFacts, source: Host, target: Host, names: Sequence[str], address: str | None) -> CloneDesign:
    """Decide how the copies are made there. Nothing is touched.

    Raises:
        RefusedError: they are one host; or the VM cannot be copied, or has no room there.
        UnsupportedError: the target cannot run it.
        SpecError, ConflictError: as for copies beside the source; a name has to be free on both hosts.
    """
    if host_uuid(source) == host_uuid(target):
        raise RefusedError(f"{target.uri} is the host of {facts.name}", hint="leave --to out")
    taken = facts.domains | {d.name for d in target.domains()}
    check_names(names, taken)
    cards = cards_of(facts.xml, facts.remembered.spec if facts.remembered else {})
    made = decide(replace(facts, domains=taken), names, cards, full=True, address=address)
    if made.live:
        warm.check_kept(facts)
    kind = ET.fromstring(facts.xml)  # noqa: S314 - libvirt's own answer
    booted = kind.find("os/type")
    arch = booted.get("arch", "") if booted is not None else ""
    warm.check_host(
        target, arch, kind.get("type", ""), facts.qemu if made.live else None, f"the memory of {facts.name}"
    )
    need = sum(d.size for d in facts.disks if d.writable) * (1 if made.live else len(names))
    need += memory_size(facts.xml) * (1 + len(names)) if made.live else 0
    if need > (free := ensure_pool(target).free()):
        raise RefusedError(
            f"no space: copies of {facts.name} may take {Bytes(need)}, {target.uri} has {Bytes(free)} free in its pool",
            hint="free some there: vmkit delete, vmkit image prune",
        )
    return replace(made, plan=_plan(facts, target, made))


def _plan(facts: SourceFacts, target: Host, made: CloneDesign) -> Plan:
    kind = "live" if made.live else "cold"
    choices = (
        Choice("kind", kind, f"{facts.name} is {facts.state}"),
        Choice("host", target.uri, "as asked"),
        Choice("way", "this machine", "what goes from host to host goes through it"),
    )
    steps = []
    if made.live:
        steps.append(
            Step("save", f"memory and disks of {facts.name}", "while it runs; it stands still for the last moment")
        )
    else:
        steps.append(Step("fetch", f"disks of {facts.name}", "each as one file that stands alone"))
    steps.append(Step("send", f"them to {target.uri}", "what this machine kept of them is removed then"))
    for copy in made.copies:
        steps.append(Step("restore" if made.live else "define", f"domain {copy.name}", f"uuid {copy.identity.uuid}"))
        if made.inside:
            steps.append(Step("rename", f"guest of {copy.name}", "with its cable pulled, so no two have one address"))
    return Plan(f"{kind} copies of {facts.name} on another host", choices, tuple(steps), made.plan.warnings)


def live(
    source: Host,
    target: Host,
    facts: SourceFacts,
    names: Sequence[str],
    address: str | None,
    reporter: Reporter,
    finish: Finish,
    *,
    workers: int | None,
) -> Outcome[Started]:
    """Copies that go on there from one moment of a running VM, which runs on.

    Raises:
        VmkitError: nothing was made.
    """
    name = f"moment-{secrets.token_hex(4)}"
    data = {**first_entry(target, []), "image": name}
    with journalled("clone", facts.name, "moment", **data) as entry:
        try:
            image = warm.keep(source, source.domain(facts.name), facts, name, reporter, force=False)
            if image.memory is not None:
                memory = file_name("memory", image.memory)
                entry.advance("moment", memory=[memory, memory + COMPLETE])
            made = replace(warm.decide(target, image, names, address), as_was=True)
            return warm.start(target, made, reporter, finish, workers=workers)
        finally:
            drop(name)
            clean_up_or_keep(target, entry)


def make_cold(
    source: Host,
    target: Host,
    facts: SourceFacts,
    made: CloneDesign,
    reporter: Reporter,
    finish: Finish,
    *,
    start: bool,
    workers: int | None,
) -> Outcome[Started]:
    """Copies there of a VM that is shut off.

    Raises:
        VmkitError: nothing was made.
    """
    with _fetched(source, facts, made, reporter) as files:
        pool = ensure_pool(target)
        moved = {}
        for path, file in files.items():
            if path in booted(facts):
                moved[path] = upload(pool, path.rpartition("/")[2], store.describe(file), reporter)
        with working(target, facts.name, first_entry(target, made.copies)) as (entry, checkpoint):
            ledger = Ledger(entry)
            entry.advance("copies")
            by_name = {c.name: c for c in made.copies}

            def one(name: str, notes: Reporter) -> Started:
                took, copy = stopwatch(), by_name[name]
                domain = cold.define(target, pool, facts, copy, down=made.inside, moved=moved)
                for disk in copy.disks:
                    pool.upload(disk.volume, files[disk.path])
                    checkpoint()
                vm = cold.begin(domain, copy, checkpoint, notes, inside=made.inside, start=start)
                ledger.finished(copy)
                return Started(vm, took(), finish(vm, notes))

            outcome = many.for_each(list(by_name), one, workers=many.at_once(target, workers), reporter=reporter)
            tidy(target, pool, entry, outcome)
    return outcome


def booted(facts: SourceFacts) -> list[str]:
    """Kernel and initrd of a VM that boots them directly."""
    root = ET.fromstring(facts.xml)  # noqa: S314 - libvirt's own answer
    return [path for tag in ("kernel", "initrd") if (path := root.findtext(f"os/{tag}"))]


@contextlib.contextmanager
def _fetched(source: Host, facts: SourceFacts, made: CloneDesign, reporter: Reporter) -> Iterator[dict[str, Path]]:
    """The files of a VM on this machine, by their path at its host. Gone when the block ends."""
    pool, elapsed = ensure_pool(source), stopwatch()
    disks = made.copies[0].disks
    flat = {d.path: f"{facts.name}.{secrets.token_hex(3)}.flat.qcow2" for d in disks if not d.raw}
    reporter(Begun("fetch", f"disks of {facts.name}"))
    with (
        tempfile.TemporaryDirectory(dir=ensure_dir(home() / "cache")) as folder,
        working(source, facts.name, first_entry(source, [], memory=list(flat.values()))) as (entry, checkpoint),
    ):
        found = {}
        for number, (path, volume) in enumerate(
            [*((d.path, d.source) for d in disks), *((p, p.rpartition("/")[2]) for p in booted(facts))]
        ):
            if path in flat:
                copy_disk(source, pool, CopyDisk("", volume, path, flat[path], None))
            found[path] = Path(folder) / str(number)
            pool.download(flat.get(path, volume), found[path])
            checkpoint()
        tidy(source, pool, entry, Outcome())
        reporter(Finished("fetch", elapsed(), f"disks of {facts.name}"))
        yield found
