"""Moving VMs between hosts: what a program (or the command line) calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from vmkit.errors import NotFoundError, RefusedError, SpecError, UnreachableError, VmkitError
from vmkit.migrate import carry, cold, copying, record, recovery
from vmkit.migrate.control import Steering, Terms
from vmkit.migrate.facts import GuestFacts, can_lock, has_userfaultfd, observe_guest, observe_host, observe_target
from vmkit.migrate.failing import failure
from vmkit.migrate.line import Ends, line
from vmkit.migrate.locks import vm_lock
from vmkit.migrate.modes import Mode, Ways, check_wish, ways
from vmkit.migrate.outcome import Intent, Place
from vmkit.migrate.outlook import Outlook, look_ahead
from vmkit.migrate.paint import picture
from vmkit.migrate.plan import How, Request, check_off, make_plan, request_of, same_storage
from vmkit.migrate.predict import impossible
from vmkit.migrate.preflight import Case, Finding, Level, Preflight, judge
from vmkit.migrate.probe import Prober, probing
from vmkit.migrate.record import Accuracy, Outcome
from vmkit.migrate.replay import Recording, Replayed, load, replay_all, save
from vmkit.migrate.report import MigrationReport, made, outcome
from vmkit.migrate.session import Steer, Stop, StopReason, Transfer, transfer, unbreakable
from vmkit.migrate.settle import CONNECT_S, VERIFY_S, Reach, Settled, bounded, settle
from vmkit.migrate.storage import both_write, copies, mirrored
from vmkit.migrate.transport import check_carriage
from vmkit.plan import Plan
from vmkit.progress import Finished, Note, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.fuse import folder_name

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain, JobStats
    from vmkit.hypervisor.host import Host
    from vmkit.hypervisor.migration import Options
    from vmkit.system.journal import Entry
    from vmkit.system.tunnel import Road


class Migrations:
    """Moving the VMs of one host to others.

    Args:
        connect: gives the open connection to the source; called when it is first needed.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def preflight(self, name: str, to: str, **how: Unpack[How]) -> Preflight:
        """Look at everything that could stand against a migration; nothing is touched.

        Raises:
            NotFoundError: there is no such VM.
            SpecError: `to` is not a libvirt URI, or an option cannot be meant.
        """
        request = request_of(name, to, how)
        source = self._connect()
        guest = observe_guest(source.domain(name))
        try:
            with _target(to) as target:
                case = _case(request, source, target, guest)[0]
                return carry.examined(judge(case), request.carriage, case)
        except UnreachableError as e:
            return Preflight(name, source.uri, to, (Finding("hosts", Level.REFUSED, e.message, e.hint),))

    def plan(self, name: str, to: str, **how: Unpack[How]) -> Plan:
        """What `migrate` would do with the same arguments, and why; what stands against it is among the warnings.

        The guest is watched for about a second, so that what it would come to can be said; nothing is changed.

        Raises:
            NotFoundError, SpecError, UnreachableError: as `migrate`.
        """
        request = request_of(name, to, how)
        source = self._connect()
        domain = source.domain(name)
        guest = observe_guest(domain)
        if guest.off:
            check_off(guest.name, how)
        with _target(to) as target:
            case, open_ways = _case(request, source, target, guest)
            report = carry.examined(judge(case), request.carriage, case)
            ahead = look_ahead(request, case, open_ways, domain) if guest.running or guest.paused else None
            return make_plan(request, case, report, ahead)

    def migrate(
        self,
        name: str,
        to: str,
        *,
        reporter: Reporter = silent,
        cancelled: Callable[[], bool] = lambda: False,
        **how: Unpack[How],
    ) -> MigrationReport:
        """Move a VM; returns when exactly one copy is known to run, at the target.

        Of one that is shut off the disks and the definition move, and none of `how` applies.

        While the transfer runs, SIGINT, SIGTERM and SIGHUP end it in order if this is the main thread. Once it has
        gone over to post-copy it cannot be ended any more, and is carried to its end.

        Args:
            name: the VM, by name or uuid.
            to: libvirt URI of the target.
            reporter: hears how far it is.
            cancelled: asked several times a second; true ends the transfer.
            how: see `How`.

        Raises:
            NotFoundError, SpecError, UnreachableError: wrong name or URI, or a host is down.
            RefusedError: something stands against it, or it cannot be done before the deadline; nothing was touched.
            DeadlineError, CancelledError, EffectError: it did not come about; the message says where the VM is, and
                the target holds nothing of it.
            IndeterminateError: it is not known how many copies run, or a post-copy was cut off; the journal keeps the
                operation.
        """
        from vmkit.hypervisor.host import Host
        from vmkit.system.interrupts import deferred
        from vmkit.system.journal import journalled

        request = request_of(name, to, how)
        source_uri = self._connect().uri
        _settle_earlier(self._connect().domain(name).name, reporter)
        with contextlib.ExitStack() as stack:
            # connections of their own: with libvirt's event loop, so that a host that falls silent is noticed
            source = stack.enter_context(bounded(lambda: Host.connect(source_uri, events=True), CONNECT_S, source_uri))
            domain = source.domain(name)
            stack.enter_context(vm_lock(domain.name, domain.uuid))
            fuses = {"fuses": [folder_name(), folder_name()]}
            where = {"uuid": domain.uuid, "source": source.uri, "target": to, **fuses}
            entry = stack.enter_context(journalled("migrate", domain.name, recovery.UNTOUCHED, **where))
            target = stack.enter_context(_target(to))
            if not domain.info().state.active:
                check_off(domain.name, how)
                case, _ = self._checked(request, domain, target, reporter)
                signalled = stack.enter_context(deferred())
                return cold.move(case, domain, target, entry, _wish(entry, signalled, cancelled), reporter)
            ends = stack.enter_context(line(source.uri, target.uri, fuses["fuses"][0]))
            case, open_ways = self._checked(request, domain, target, reporter)
            ahead = look_ahead(request, case, open_ways, domain, reporter)
            if why := impossible(ahead.expected, ahead.terms):
                raise RefusedError(
                    f"{domain.name} cannot move to {target.uri} in time: {why}",
                    hint="give it more time (--deadline), or more --bandwidth",
                )
            prober = stack.enter_context(probing(request.probe))
            road = stack.enter_context(carry.road_for(request.carriage, source.uri, target.uri))
            told = unbreakable(reporter)
            return _carry_out(request, case, ahead, domain, target, entry, prober, road, ends, told, cancelled)

    def stats(self) -> Accuracy:
        """How good the predictions of this machine's migrations have been."""
        return record.accuracy(record.read())

    def replay(self, path: Path, *, report: Path | None = None) -> list[Replayed]:
        """What each known policy would have decided on the statistics of a recording, which `report` draws.

        Raises:
            NotFoundError, RefusedError, SpecError: there is no such file, or it is not a recording.
            SpecError, UnsupportedError: there is no picture of that kind.
        """
        recording = load(path)
        if report is not None:
            picture(recording, report)
        return replay_all(recording)

    @staticmethod
    def _checked(request: Request, domain: Domain, target: Host, reporter: Reporter) -> tuple[Case, Ways]:
        elapsed = stopwatch()
        reporter(Started("preflight"))
        case, open_ways = _case(request, domain.host, target, observe_guest(domain))
        report = carry.examined(judge(case), request.carriage, case)
        for finding in report.warnings:
            reporter(Note(finding.text, warning=True))
        report.require()
        reporter(Finished("preflight", elapsed(), f"{len(report.findings)} checks"))
        if not case.guest.off:
            reporter(Note(f"transport {request.carriage.taken.value}: {request.carriage.why}"))
        return case, open_ways


def _carry_out(
    request: Request,
    case: Case,
    ahead: Outlook,
    domain: Domain,
    target: Host,
    entry: Entry,
    prober: Prober | None,
    road: Road | None,
    ends: Ends,
    reporter: Reporter,
    cancelled: Callable[[], bool],
) -> MigrationReport:
    """From the first effect on: transfer, look at both hosts, tidy up, report."""
    from vmkit.system.interrupts import deferred

    guest, to_copy = case.guest, copies(case.guest, case.meeting)
    intent = Intent(guest.paused, guest.persistent, case.meeting.by_uuid is not None)
    shared = same_storage(guest, case.meeting.files, {c.path for c in to_copy})
    with deferred() as signalled:
        wish = _wish(entry, signalled, cancelled)
        entry.advance(
            copying.PHASE,
            was_paused=intent.was_paused,
            persistent=intent.persistent,
            autostart=guest.autostart,
            target_defined=intent.target_defined,
            same_storage=shared,
            road=carry.plain(road),
            downtime_before=_set_downtime(domain, request, ahead.terms),
            **copying.begin(to_copy),
        )
        here, there = Reach(domain.host.uri, domain.host), Reach(target.uri, target)
        try:
            copying.bring(to_copy, domain.host, target, entry, wish, reporter)
        except BaseException:
            recovery.restore_downtime(here, guest.uuid, entry.record.data)
            raise
        entry.advance("transfer")
        entry.keep = True  # until it is known what became of it, whatever is raised
        state = transfer(
            domain,
            target,
            persistent=guest.persistent,
            bandwidth=request.bandwidth,
            same_storage=shared,
            deadline=request.deadline,
            steer=Steer(
                Steering(ahead.terms),
                _options(request, case, ahead, road),
                lambda: _advance(entry, "post-copy"),
                road,
                ends,
                entry.record.data["fuses"][1],
            ),
            wish=wish,
            reporter=reporter,
        )
        completed = probed = None
        arrived = False
        try:
            settled = _conclude(case, intent, entry, state, here, there, request.deadline, reporter)
            arrived = True
            with contextlib.suppress(VmkitError):  # figures, without which it has arrived all the same
                completed = _completed(there, guest.uuid)
            try:
                recovery.finish_definition(there, guest.uuid, entry.record.data)
            except VmkitError as e:  # the next command does it
                entry.keep = True
                settled = replace(settled, trouble=(*settled.trouble, f"its definition is not complete yet: {e}"))
            probed = prober.finish() if prober else None
        finally:
            here.close()
            there.close()
            gap = probed.gap_ms if probed else None
            _remember(request, case, ahead, state, outcome(state, completed, ahead.terms, arrived=arrived, gap_ms=gap))
    return made(case, ahead, state, settled, completed, probed)


def _remember(request: Request, case: Case, ahead: Outlook, state: Transfer, ended: Outcome) -> None:
    """Add to the record, and write the recording. That it cannot be written is no reason to call a migration failed."""
    g = case.guest
    with contextlib.suppress(VmkitError):
        uris = (case.source.uri, case.target.uri)
        foretold = None if copies(g, case.meeting) else ahead.expected  # nothing was foretold of the disks
        record.append(g.name, g.uuid, *uris, request.mode.value, foretold, ended)
    predicted, kept = record.plain(ahead.expected), asdict(ended)
    recording = Recording(g.name, ahead.terms, state.looks, state.made, kept, predicted)
    for path, write in ((request.recording, save), (request.report, picture)):
        if path is not None:
            with contextlib.suppress(VmkitError):
                write(recording, path)


def _options(request: Request, case: Case, ahead: Outlook, road: Road | None) -> Options:
    from vmkit.hypervisor.migration import Options

    wish = request.wish
    live = request.mode is not Mode.STOP_COPY
    options = Options(live, ahead.ways.post_copy, wish.auto_converge, wish.compression, wish.parallel, wish.zero_copy)
    options = replace(options, disks=mirrored(case.guest, case.meeting), synchronous=both_write(case.source.libvirt))
    return carry.directed(options, request.carriage, road)


def _conclude(
    case: Case,
    intent: Intent,
    entry: Entry,
    state: Transfer,
    here: Reach,
    there: Reach,
    deadline: float,
    reporter: Reporter,
) -> Settled:
    """Look at both hosts and bring them in order; returns if the VM runs at the target, and there alone."""
    guest = case.guest
    _advance(entry, "verify")
    settled = settle(here, there, guest.uuid, intent, patience=VERIFY_S, silence=VERIFY_S, reporter=reporter)
    tidied = copying.tidy(settled, here, there, entry.record.data)
    unsure = settled.verdict.place in (Place.UNKNOWN, Place.WAIT)
    entry.keep = unsure or bool(settled.trouble) or tidied.again
    settled = replace(settled, trouble=(*settled.trouble, *tidied.left))
    if settled.verdict.place is not Place.TARGET or settled.running != 1:
        recovery.restore_downtime(here, guest.uuid, entry.record.data)
        raise failure(guest.name, state, settled, source=here.uri, target=there.uri, deadline=deadline) from state.error
    _advance(entry, "cleanup")
    return settled


def _wish(
    entry: Entry, signalled: Callable[[], str | None], cancelled: Callable[[], bool]
) -> Callable[[], Stop | None]:
    """All the ways in which somebody can ask for the transfer to end."""

    def ask() -> Stop | None:
        if signal := signalled():
            return Stop(StopReason.CANCELLED, signal)
        if entry.cancelled:
            return Stop(StopReason.CANCELLED, "'vmkit jobs cancel'")
        return Stop(StopReason.CANCELLED, "its caller") if cancelled() else None

    return ask


def _advance(entry: Entry, phase: str) -> None:
    """Write the phase down. A full disk must not keep both hosts from being looked at."""
    with contextlib.suppress(VmkitError):
        entry.advance(phase)


def _completed(target: Reach, uuid: str) -> JobStats | None:
    """Statistics of the finished migration, which libvirt keeps at the target (the source forgets the domain)."""
    domain = target.domain(uuid)
    stats = None if domain is None else domain.completed_job()
    return stats if stats is not None and stats.total else None


def _set_downtime(domain: Domain, request: Request, terms: Terms) -> int | None:
    """Set the limit to begin with, and return what it was before, ms; None if it stays as it is.

    Raises:
        RefusedError: one was asked for, and the driver has no such setting.
    """
    from vmkit.hypervisor.migration import max_downtime, set_max_downtime

    if request.max_downtime is None and (before := max_downtime(domain)) is None:
        return None
    before = max_downtime(domain)
    try:
        set_max_downtime(domain, max(1, round(terms.start_downtime * 1000)))
    except RefusedError as e:
        if request.max_downtime is None:
            return None
        raise RefusedError(e.message, hint="leave --max-downtime out") from e
    return before


def _settle_earlier(name: str, reporter: Reporter) -> None:
    """Take up an earlier migration of the VM that was cut off, before a new one looks at it."""
    from vmkit.system.journal import records, taken_over

    for found in records("migrate"):
        if found.subject == name and found.orphaned:
            with taken_over(found) as entry:
                if entry is not None:
                    reporter(Note(recovery.recover(entry, reporter), warning=True))


@contextlib.contextmanager
def _target(uri: str) -> Iterator[Host]:
    """A connection to the target. An error names the option that was wrong."""
    from vmkit.hypervisor.host import Host

    try:
        host = bounded(lambda: Host.connect(uri, events=True), CONNECT_S, uri)
    except SpecError as e:
        text = e.message.removeprefix(f"{e.path}: ")
        raise SpecError(text, path="--to", hint=e.hint, details=e.details) from e
    with host:
        yield host


def _case(request: Request, source: Host, target: Host, guest: GuestFacts) -> tuple[Case, Ways]:
    if not guest.virt_type:
        raise NotFoundError(f"{guest.name} has no domain type")
    here, there = observe_host(source), observe_host(target)
    check_wish(request.mode, request.wish, here.driver)
    check_carriage(request.carriage, here.driver, request.wish)
    post = replace(request.wish, post_copy=True)
    open_ways = ways(request.mode, post, guest, here, replace(there, userfaultfd=True))
    if open_ways.post_copy and not guest.off:  # all but this speaks for it, so it is worth a look
        there = replace(there, userfaultfd=has_userfaultfd(target.uri))
        open_ways = ways(request.mode, post, guest, here, there)
    if request.wish.zero_copy:
        here = replace(here, locks=can_lock(source.uri, guest.memory))
    wish = replace(request.wish, post_copy=open_ways.post_copy)
    return Case(guest, here, there, observe_target(source, target, guest), wish), open_ways
