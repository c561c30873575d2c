"""Copies of a VM that is shut off. The guest takes its identity at the first start, with its cables pulled."""

from __future__ import annotations

from collections.abc import Mapping

from vmkit.hypervisor.capture import set_links
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.volume import Pool
from vmkit.image.place import ensure_pool
from vmkit.progress import Reporter
from vmkit.system.clock import stopwatch
from vmkit.vm import many, reservations
from vmkit.vm.clone.identity import rewritten
from vmkit.vm.clone.inside import take_identity
from vmkit.vm.clone.ledger import Ledger, first_entry
from vmkit.vm.clone.live import Checkpoint, Finish, Started, copy_disks, tidy, working
from vmkit.vm.clone.plan import CloneDesign, Copy, SourceFacts, kept
from vmkit.vm.console_log import log_name
from vmkit.vm.machine import Vm
from vmkit.vm.many import Outcome
from vmkit.vm.readiness import Layer

BOOT_DEADLINE = 300.0
"""Seconds for the first boot: a guest on an emulated CPU takes a while."""


def make(
    host: Host,
    facts: SourceFacts,
    design: CloneDesign,
    reporter: Reporter,
    finish: Finish,
    *,
    start: bool,
    workers: int | None,
) -> Outcome[Started]:
    """Carry the plan out. A copy that fails is removed again; the others stay.

    With `start` False copies whose guest has to take an identity are booted for that, and shut down again.

    Raises:
        VmkitError: nothing was made.
    """
    by_name = {c.name: c for c in design.copies}
    with working(host, facts.name, first_entry(host, design.copies)) as (entry, checkpoint):
        pool = ensure_pool(host)
        ledger = Ledger(entry)
        entry.advance("copies")

        def one(name: str, notes: Reporter) -> Started:
            took = stopwatch()
            copy = by_name[name]
            domain = define(host, pool, facts, copy, down=design.inside)
            copy_disks(host, pool, copy)
            checkpoint()
            vm = begin(domain, copy, checkpoint, notes, inside=design.inside, start=start)
            ledger.finished(copy)
            ready = finish(vm, notes)
            return Started(vm, took(), ready)

        outcome = many.for_each(list(by_name), one, workers=many.at_once(host, workers), reporter=reporter)
        tidy(host, pool, entry, outcome)
    return outcome


def define(
    host: Host,
    pool: Pool,
    facts: SourceFacts,
    copy: Copy,
    *,
    down: bool,
    moved: Mapping[str, str] | None = None,
) -> Domain:
    """Define a copy; `moved` says where kernel and initrd are for it, by where they were.

    Raises:
        ConflictError: somebody else was faster.
    """
    assert facts.remembered is not None  # noqa: S101 - the plan refuses others
    log = log_name(copy.name)
    domain = host.define(
        rewritten(
            facts.xml,
            copy.identity,
            paths={**(moved or {}), **{d.path: str(pool.folder / d.volume) for d in copy.disks}},
            remembered=kept(facts.remembered, copy, log),
            log=str(pool.folder / log),
            down=down,
        )
    )
    reservations.sync(domain)
    return domain


def begin(domain: Domain, copy: Copy, checkpoint: Checkpoint, notes: Reporter, *, inside: bool, start: bool) -> Vm:
    """Have a copy whose disks are there take its identity, if that is `inside` the guest, and run, if it shall."""
    if inside:
        _first_boot(domain, copy, checkpoint, notes, stay=start)
    elif start:
        domain.start()
    return Vm(domain)


def _first_boot(domain: Domain, copy: Copy, checkpoint: Checkpoint, notes: Reporter, *, stay: bool) -> None:
    """Boot with the cables pulled, rename, plug in."""
    domain.start()
    vm = Vm(domain)
    vm.wait(layers=[Layer.AGENT], deadline=BOOT_DEADLINE, reporter=notes)
    checkpoint()
    take_identity(domain, copy.identity)
    checkpoint()
    set_links(domain, up=True, config=True)
    if not stay:
        vm.stop(deadline=BOOT_DEADLINE)
