"""Moving VMs between hosts: what a program (or the command line) calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from vmkit.errors import NotFoundError, RefusedError, SpecError, UnreachableError, VmkitError
from vmkit.migrate import recovery
from vmkit.migrate.facts import GuestFacts, observe_guest, observe_host, observe_target
from vmkit.migrate.locks import vm_lock
from vmkit.migrate.outcome import Intent, Place
from vmkit.migrate.plan import Request, make_plan, same_storage
from vmkit.migrate.preflight import Case, Finding, Level, Preflight, judge
from vmkit.migrate.probe import Prober, ProbeReport, probing
from vmkit.migrate.report import MigrationReport
from vmkit.migrate.session import Stop, StopReason, Transfer, failure, transfer, unbreakable
from vmkit.migrate.settle import CONNECT_S, Reach, Settled, bounded, settle
from vmkit.plan import Plan
from vmkit.progress import Finished, Note, Reporter, Started, silent
from vmkit.system.clock import stopwatch

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain, JobStats
    from vmkit.hypervisor.host import Host
    from vmkit.system.journal import Entry

VERIFY_S: Final = 30.0


class Migrations:
    """Moving the VMs of one host to others.

    Args:
        connect: gives the open connection to the source; called when it is first needed.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def preflight(self, name: str, to: str) -> Preflight:
        """Look at everything that could stand against a migration; nothing is touched.

        Raises:
            NotFoundError: there is no such VM.
            SpecError: `to` is not a libvirt URI.
        """
        source = self._connect()
        guest = observe_guest(source.domain(name))
        try:
            with _target(to) as target:
                return judge(_case(source, target, guest))
        except UnreachableError as e:
            return Preflight(name, source.uri, to, (Finding("hosts", Level.REFUSED, e.message, e.hint),))

    def plan(
        self,
        name: str,
        to: str,
        *,
        deadline: float = 120.0,
        bandwidth: int | None = None,
        max_downtime: float | None = None,
        probe: str | None = None,
    ) -> Plan:
        """What `migrate` would do with the same arguments, and why; what stands against it is among the warnings.

        Raises:
            NotFoundError, SpecError, UnreachableError: as `migrate`.
        """
        request = _request(name, to, deadline, bandwidth, max_downtime, probe)
        source = self._connect()
        guest = observe_guest(source.domain(name))
        with _target(to) as target:
            case = _case(source, target, guest)
            return make_plan(request, case, judge(case))

    def migrate(
        self,
        name: str,
        to: str,
        *,
        deadline: float = 120.0,
        bandwidth: int | None = None,
        max_downtime: float | None = None,
        probe: str | None = None,
        reporter: Reporter = silent,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> MigrationReport:
        """Move a running VM; returns when exactly one copy is known to run, at the target.

        While the transfer runs, SIGINT, SIGTERM and SIGHUP end it in order if this is the main thread.

        Args:
            name: the VM, by name or uuid.
            to: libvirt URI of the target.
            deadline: seconds from the start of the transfer until it is given up.
            bandwidth: bytes a second, rounded up to whole MiB; None for no limit.
            max_downtime: seconds that the guest may stand still at the end; None for QEMU's setting (300 ms).
            probe: 'ADDRESS' or 'ADDRESS:PORT' where the guest echoes UDP, to measure the gap that its users see.
            reporter: hears how far it is.
            cancelled: asked several times a second; true ends the transfer.

        Raises:
            NotFoundError, SpecError, UnreachableError: wrong name or URI, or a host is down.
            RefusedError: preflight found something against it; nothing was touched.
            DeadlineError, CancelledError, EffectError: it did not come about; the message says where the VM is, and
                the target holds nothing of it.
            IndeterminateError: it is not known how many copies run; the journal keeps the operation.
        """
        from vmkit.hypervisor.host import Host
        from vmkit.system.journal import journalled

        request = _request(name, to, deadline, bandwidth, max_downtime, probe)
        source_uri = self._connect().uri
        _settle_earlier(self._connect().domain(name).name, reporter)
        with contextlib.ExitStack() as stack:
            # connections of their own: with libvirt's event loop, so that a host that falls silent is noticed
            source = stack.enter_context(bounded(lambda: Host.connect(source_uri, events=True), CONNECT_S, source_uri))
            domain = source.domain(name)
            stack.enter_context(vm_lock(domain.name, domain.uuid))
            where = {"uuid": domain.uuid, "source": source.uri, "target": to}
            entry = stack.enter_context(journalled("migrate", domain.name, recovery.UNTOUCHED, **where))
            target = stack.enter_context(_target(to))
            case = self._checked(domain, target, reporter)
            prober = stack.enter_context(probing(probe))
            return _carry_out(request, case, domain, target, entry, prober, unbreakable(reporter), cancelled)

    @staticmethod
    def _checked(domain: Domain, target: Host, reporter: Reporter) -> Case:
        elapsed = stopwatch()
        reporter(Started("preflight"))
        case = _case(domain.host, target, observe_guest(domain))
        report = judge(case)
        for finding in report.warnings:
            reporter(Note(finding.text, warning=True))
        report.require()
        reporter(Finished("preflight", elapsed(), f"{len(report.findings)} checks"))
        return case


def _carry_out(
    request: Request,
    case: Case,
    domain: Domain,
    target: Host,
    entry: Entry,
    prober: Prober | None,
    reporter: Reporter,
    cancelled: Callable[[], bool],
) -> MigrationReport:
    """From the first effect on: transfer, look at both hosts, tidy up, report."""
    from vmkit.system.interrupts import deferred

    guest = case.guest
    intent = Intent(guest.paused, guest.persistent, case.meeting.by_uuid is not None)
    with deferred() as signalled:
        entry.advance(
            "transfer",
            was_paused=intent.was_paused,
            persistent=intent.persistent,
            autostart=guest.autostart,
            target_defined=intent.target_defined,
            downtime_before=_set_downtime(domain, request.max_downtime),
        )
        entry.keep = True  # until it is known what became of it, whatever is raised
        state = transfer(
            domain,
            target,
            persistent=guest.persistent,
            bandwidth=request.bandwidth,
            same_storage=same_storage(guest, case.meeting.files),
            deadline=request.deadline,
            wish=_wish(entry, signalled, cancelled),
            reporter=reporter,
        )
        here, there = Reach(domain.host.uri, domain.host), Reach(target.uri, target)
        try:
            settled = _conclude(case, intent, entry, state, here, there, request.deadline, reporter)
            completed = _completed(there, guest.uuid)
            recovery.finish_definition(there, guest.uuid, entry.record.data)
            probed = prober.finish() if prober else None
        finally:
            here.close()
            there.close()
    return _report(case, state, settled, completed, probed)


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
    entry.keep = settled.verdict.place in (Place.UNKNOWN, Place.WAIT) or bool(settled.trouble)
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


def _report(
    case: Case, state: Transfer, settled: Settled, completed: JobStats | None, probed: ProbeReport | None
) -> MigrationReport:
    stats = completed or state.last
    raw = stats.raw if stats else {}
    warnings = [f.text for f in judge(case).warnings] + list(settled.trouble)
    if state.error is not None:
        warnings.append(f"libvirt reported an error, and the VM arrived all the same: {state.error.message}")
    if state.stop is not None:
        warnings.append("it was to be given up, and had already arrived")
    return MigrationReport(
        vm=case.guest.name,
        uuid=case.guest.uuid,
        source=case.source.uri,
        target=case.target.uri,
        running_copies=settled.running,
        total_ms=round(state.seconds * 1000),
        transfer_ms=stats.elapsed_ms if stats else None,
        downtime_ms=completed.downtime_ms if completed else None,
        downtime_net_ms=raw.get("downtime_net") if completed else None,
        guest_gap_ms=probed.gap_ms if probed else None,
        rounds=max(state.rounds, stats.iteration if stats else 0),
        bytes_sent=stats.processed if stats else 0,
        memory_total=stats.total if stats else 0,
        bandwidth=stats.bandwidth if stats else 0,
        definition_moved=case.guest.persistent,
        warnings=tuple(warnings),
        probe=probed,
    )


def _completed(target: Reach, uuid: str) -> JobStats | None:
    """Statistics of the finished migration, which libvirt keeps at the target (the source forgets the domain)."""
    domain = target.domain(uuid)
    return None if domain is None else domain.completed_job()


def _set_downtime(domain: Domain, seconds: float | None) -> int | None:
    """Set the longest downtime, and return what it was before, ms; None if it stays as it is.

    Raises:
        RefusedError: the driver has no such setting.
    """
    from vmkit.hypervisor.migration import max_downtime, set_max_downtime

    if seconds is None:
        return None
    before = max_downtime(domain)
    try:
        set_max_downtime(domain, max(1, round(seconds * 1000)))
    except RefusedError as e:
        raise RefusedError(e.message, hint="leave --max-downtime out") from e
    return before


def _settle_earlier(name: str, reporter: Reporter) -> None:
    """Take up an earlier migration of the VM that was cut off, before a new one looks at it."""
    from vmkit.system.journal import records, taken_over

    for record in records("migrate"):
        if record.subject == name and record.orphaned:
            with taken_over(record) as entry:
                if entry is not None:
                    reporter(Note(recovery.recover(entry, reporter), warning=True))


def _request(
    name: str, to: str, deadline: float, bandwidth: int | None, max_downtime: float | None, probe: str | None
) -> Request:
    from vmkit.migrate.probe import parse_target

    request = Request(name, to, deadline, bandwidth, max_downtime, probe)
    request.check()
    if probe is not None:
        parse_target(probe)
    return request


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


def _case(source: Host, target: Host, guest: GuestFacts) -> Case:
    if not guest.virt_type:
        raise NotFoundError(f"{guest.name} has no domain type")
    return Case(guest, observe_host(source), observe_host(target), observe_target(source, target, guest))
