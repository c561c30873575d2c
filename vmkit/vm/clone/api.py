"""Copies of VMs, as the Python API and the command line see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmkit.errors import SpecError
from vmkit.hypervisor.host import Host
from vmkit.progress import Note, Reporter, silent

if TYPE_CHECKING:
    from vmkit.image.manifest import Image
    from vmkit.plan import Plan
    from vmkit.vm.clone.live import Finish, Started
    from vmkit.vm.clone.plan import CloneDesign, SourceFacts
    from vmkit.vm.readiness import Ready


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy that was made.

    Attributes:
        name: of the VM.
        kind: 'live', 'cold' or 'warm'.
        state: of the domain.
        seconds: from the beginning of its own start until it was renamed, or ready where somebody waited for that.
        ready: None where nobody waited.
    """

    name: str
    kind: str
    state: str
    seconds: float
    ready: Ready | None


class Clones:
    """Copies of the VMs of one host.

    Args:
        connect: returns the open connection to it.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def plan(
        self,
        source: str,
        names: Sequence[str],
        *,
        full: bool = False,
        address: str | None = None,
        to: str | None = None,
    ) -> Plan:
        """What `clone` would do. Raises as it does before it touches anything."""
        if to is None:
            return self._decided(source, names, full=full, address=address)[2].plan
        with Host.connect(to) as target:
            return self._abroad(source, names, target, full=full, address=address)[2].plan

    def clone(
        self,
        source: str,
        names: Sequence[str],
        *,
        full: bool = False,
        address: str | None = None,
        to: str | None = None,
        start: bool = True,
        wait: bool = False,
        deadline: float = 90.0,
        workers: int | None = None,
        reporter: Reporter = silent,
    ) -> list[Copied]:
        """Copy a VM.

        A running one is copied with its memory: the copies go on from the same moment, each with a name, MAC
        addresses, a machine-id, ssh host keys and a uuid of its own, and the source runs on. One that is shut off is
        copied with its disks; its guest takes the new identity at the first boot, before it is on the network.

        Args:
            source: the VM.
            names: of the copies.
            full: their disks stand alone; else they share the image's file.
            address: of the first network card: 'dhcp', 'none', or ADDRESS/PREFIX of the first copy, from which the
                others count on; None is what the source has.
            to: URI of the host that the copies shall be on; None for that of the source. Their disks share nothing with
                it then, so `full` has no meaning.
            start: leave copies of a VM that is shut off running; those of a running one always run.
            wait: return when they are ready.
            deadline: seconds of that wait, for each.
            workers: how many are made at a time.
            reporter: told of each step.

        Raises:
            SpecError, RefusedError: nothing was touched.
            EffectError: a step failed; copies that were not finished are removed, the source is as before.
            DeadlineError: a copy was made, and is not ready; it is kept.
            CancelledError: Ctrl-C; as for EffectError.
        """
        from vmkit.vm.clone import cold, live
        from vmkit.vm.clone.live import Finish

        if to is not None:
            finish = Finish(wait, deadline)
            return self._clone_to(to, source, names, full, address, reporter, finish, start=start, workers=workers)
        host, facts, design = self._decided(source, names, full=full, address=address)
        for text in design.plan.warnings:
            reporter(Note(text, warning=True))
        if design.live:
            finish = Finish(wait, deadline)
            outcome = live.make(host, host.domain(source), facts, design, reporter, finish, workers=workers)
        else:
            finish = Finish(wait and start, deadline)
            outcome = cold.make(host, facts, design, reporter, finish, start=start, workers=workers)
        return _copied(outcome.check(f"copying {source}"), "live" if design.live else "cold")

    def _clone_to(
        self,
        to: str,
        source: str,
        names: Sequence[str],
        full: bool,
        address: str | None,
        reporter: Reporter,
        finish: Finish,
        *,
        start: bool,
        workers: int | None,
    ) -> list[Copied]:
        from vmkit.vm.clone import abroad

        with Host.connect(to) as target:
            host, facts, design = self._abroad(source, names, target, full=full, address=address)
            for text in design.plan.warnings:
                reporter(Note(text, warning=True))
            if design.live:
                outcome = abroad.live(host, target, facts, names, address, reporter, finish, workers=workers)
            else:
                finish = replace(finish, wait=finish.wait and start)
                outcome = abroad.make_cold(host, target, facts, design, reporter, finish, start=start, workers=workers)
            return _copied(outcome.check(f"copying {source} to {to}"), "live" if design.live else "cold")

    def keep(self, source: str, name: str, *, force: bool = False, reporter: Reporter = silent) -> Image:
        """Make an image of a running VM, memory and disk, from which others go on. The VM runs on.

        Args:
            source: the VM.
            name: of the image.
            force: replace the image of that name.
            reporter: told of each step.

        Raises:
            RefusedError: its memory cannot be given to others; nothing was touched.
            ConflictError: there is an image of that name.
            EffectError: a step failed; the VM runs on, and nothing is left.
        """
        from vmkit.image import store
        from vmkit.vm.clone import facts, warm

        if not force:
            store.refuse_taken(name)
        host = self._connect()
        domain = host.domain(source)
        return warm.keep(host, domain, facts.gather(host, domain), name, reporter, force=force)

    def plan_from_memory(self, image: str, names: Sequence[str], *, address: str | None = None) -> Plan:
        """What `from_memory` would do. Raises as it does before it touches anything."""
        from vmkit.image import store
        from vmkit.vm.clone import warm

        return warm.decide(self._connect(), store.read(image), names, address).plan

    def from_memory(
        self,
        image: str,
        names: Sequence[str],
        *,
        address: str | None = None,
        wait: bool = False,
        deadline: float = 90.0,
        workers: int | None = None,
        reporter: Reporter = silent,
    ) -> list[Copied]:
        """Start VMs that go on from the memory of an image, each with an identity of its own.

        Args:
            image: one that `keep` made.
            names: of the VMs.
            address: of the first network card, as for `clone`; None is what the VM had whose memory it is.
            wait: return when they are ready.
            deadline: seconds of that wait, for each.
            workers: how many are started at a time.
            reporter: told of each step.

        Raises:
            As `clone`; UnsupportedError if this host cannot go on from that memory.
        """
        from vmkit.image import store
        from vmkit.vm.clone import warm
        from vmkit.vm.clone.live import Finish

        host = self._connect()
        design = warm.decide(host, store.read(image), names, address)
        outcome = warm.start(host, design, reporter, Finish(wait, deadline), workers=workers)
        return _copied(outcome.check(f"starting from the memory of '{image}'"), "warm")

    def _abroad(
        self, source: str, names: Sequence[str], target: Host, *, full: bool, address: str | None
    ) -> tuple[Host, SourceFacts, CloneDesign]:
        from vmkit.vm.clone import abroad
        from vmkit.vm.clone import facts as facts_

        if full:
            raise SpecError(
                "disks of copies on another host share nothing with the source anyway",
                path="--full",
                hint="leave --full out",
            )
        host = self._connect()
        facts = facts_.gather(host, host.domain(source))
        return host, facts, abroad.design(facts, host, target, names, address)

    def _decided(
        self, source: str, names: Sequence[str], *, full: bool, address: str | None
    ) -> tuple[Host, SourceFacts, CloneDesign]:
        from vmkit.vm.clone import facts as facts_
        from vmkit.vm.clone.identity import cards_of
        from vmkit.vm.clone.plan import decide

        host = self._connect()
        facts = facts_.gather(host, host.domain(source))
        cards = cards_of(facts.xml, facts.remembered.spec if facts.remembered else {})
        return host, facts, decide(facts, names, cards, full=full, address=address)


def _copied(made: Mapping[str, Started], kind: str) -> list[Copied]:
    return [Copied(name, kind, s.vm.state.value, round(s.seconds, 3), s.ready) for name, s in made.items()]
