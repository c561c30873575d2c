"""Live copies: the source runs on, and every copy goes on from the same moment of it."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmkit.errors import CancelledError, RefusedError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.volume import Pool
from vmkit.image.place import ensure_pool
from vmkit.progress import Finished, Reporter
from vmkit.progress import Started as Begun
from vmkit.system.clock import stopwatch
from vmkit.system.files import copy_with_head, ensure_dir, home
from vmkit.system.interrupts import deferred
from vmkit.system.journal import Entry, journalled
from vmkit.vm import many
from vmkit.vm.clone import moment as moments
from vmkit.vm.clone.ledger import Ledger, clean_up_or_keep, first_entry
from vmkit.vm.clone.moment import Moment
from vmkit.vm.clone.plan import CloneDesign, Copy, CopyDisk, SourceFacts
from vmkit.vm.clone.source import frozen
from vmkit.vm.console_log import read_or_nothing
from vmkit.vm.machine import Vm
from vmkit.vm.many import Outcome
from vmkit.vm.xml_volumes import raw_xml, volume_xml

if TYPE_CHECKING:
    from vmkit.vm.readiness import Ready

Checkpoint = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Finish:
    """What is done with a copy when it runs: wait for it to be ready, that many seconds."""

    wait: bool
    deadline: float

    def __call__(self, vm: Vm, reporter: Reporter) -> Ready | None:
        """Wait, if that is wished for. Raises as `Vm.wait`."""
        return vm.wait(deadline=self.deadline, reporter=reporter) if self.wait else None


@dataclass(frozen=True, slots=True)
class Started:
    """A copy that was made; `seconds` it took from the beginning of its own start."""

    vm: Vm
    seconds: float
    ready: Ready | None


@dataclass(frozen=True, slots=True)
class Names:
    """What is made for a while beside a source: the file of its memory, and overlays by target."""

    memory: str
    overlays: dict[str, str]


def names_for(facts: SourceFacts) -> Names:
    """Names that no volume has."""
    token = secrets.token_hex(3)
    overlays = {d.target: f"{facts.name}-{d.target}.{token}.qcow2" for d in facts.disks if d.writable}
    return Names(f"{facts.name}.{token}.memory", overlays)


def make(
    host: Host,
    source: Domain,
    facts: SourceFacts,
    design: CloneDesign,
    reporter: Reporter,
    finish: Finish,
    *,
    workers: int | None,
) -> Outcome[Started]:
    """Carry the plan out. A copy that fails is removed again; the others stay, and the source runs on.

    Raises:
        VmkitError: nothing was made; the source runs on as before.
    """
    names = names_for(facts)
    data = first_entry(host, design.copies, source=facts.uuid, overlays=names.overlays, memory=[names.memory])
    with working(host, facts.name, data) as (entry, checkpoint):
        pool = ensure_pool(host)
        ledger = Ledger(entry)
        domains: dict[str, Domain] = {}
        clock = stopwatch()
        reporter(Begun("save", f"memory of {facts.name}"))
        entry.advance("save")
        with frozen(host, pool, source, names.memory, names.overlays):
            reporter(Finished("save", clock(), f"memory of {facts.name}"))
            checkpoint()
            moment = captured(host, pool, facts, names.memory)
            for copy in design.copies:
                domains[copy.name] = moments.define(host, pool, moment, copy)
                copy_disks(host, pool, copy)
                checkpoint()
        entry.advance("copies", overlays={})
        by_name = {c.name: c for c in design.copies}
        only = len(by_name) == 1

        def one(name: str, notes: Reporter) -> Started:
            took = stopwatch()
            moments.start(host, pool, domains[name], moment, by_name[name], checkpoint, consume=only)
            ledger.finished(by_name[name])
            vm = Vm(domains[name])
            ready = finish(vm, notes)
            return Started(vm, took(), ready)

        outcome = many.for_each(list(by_name), one, workers=many.at_once(host, workers), reporter=reporter)
        tidy(host, pool, entry, outcome)
    return outcome


@contextmanager
def working(host: Host, subject: str, data: dict[str, object]) -> Iterator[tuple[Entry, Checkpoint]]:
    """The journal entry of copies, and a function that raises if somebody wants to stop. Cleans up after an error."""
    with journalled("clone", subject, "begin", **data) as entry, deferred() as interrupted:

        def checkpoint() -> None:
            if by := interrupted():
                raise CancelledError(f"copying {subject} was stopped by {by}")

        try:
            yield entry, checkpoint
        except BaseException as e:
            left = clean_up_or_keep(host, entry)
            if by := interrupted():  # which also ends the ssh below a connection: the error is only its echo
                raise CancelledError(f"copying {subject} was stopped by {by}; {left}") from e
            raise


def tidy(host: Host, pool: Pool, entry: Entry, outcome: Outcome[Started]) -> None:
    """Remove what is needed no longer: the memory, and copies that failed."""
    data = entry.record.data
    if outcome.failed:
        clean_up_or_keep(host, entry)
    elif data["memory"]:
        pool.refresh()
        moments.forget(pool, data["memory"])


def captured(host: Host, pool: Pool, facts: SourceFacts, memory: str) -> Moment:
    """The moment that a saved memory is of."""
    remembered = facts.remembered
    if remembered is None:
        raise RefusedError(f"{facts.name} was made by another tool")
    console = read_or_nothing(host, remembered.console_log, last=moments.CONSOLE_LIMIT)
    return Moment(memory, moments.read_head(host, pool, memory), facts.xml, remembered, console.encode())


def copy_disks(host: Host, pool: Pool, copy: Copy) -> None:
    """Copy the disks of the source. Nobody may write to them meanwhile."""
    for disk in copy.disks:
        copy_disk(host, pool, disk)


def copy_disk(host: Host, pool: Pool, disk: CopyDisk) -> None:
    """Copy one disk.

    libvirt copies the content of a qcow2 file, what it stands on included. A file that goes on standing on that is
    copied byte by byte: here where the pool is within reach, and else by way of this machine.
    """
    if disk.backing is None:
        size = pool.size(disk.source)[0]
        pool.copy(disk.source, raw_xml(disk.volume, size) if disk.raw else volume_xml(disk.volume, size, None))
    elif moments.local(host, pool):
        copy_with_head(pool.folder / disk.source, pool.folder / disk.volume, b"")
    else:
        with tempfile.TemporaryDirectory(dir=ensure_dir(home() / "cache")) as folder:
            here = Path(folder) / disk.volume
            pool.download(disk.source, here)
            pool.upload(disk.volume, here)
