"""Moving a VM that is shut off: its disks are copied as they lie, then its definition goes over, by libvirt.

The journal, the copying and the look at both hosts afterwards are those of a running VM's migration. Until libvirt has
removed the definition at the source, the VM counts as being there, and what came to the target is removed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vmkit.errors import CancelledError, ConflictError, EffectError, IndeterminateError, VmkitError
from vmkit.migrate import copying, recovery
from vmkit.migrate.outcome import Intent, Place
from vmkit.migrate.preflight import Case, judge
from vmkit.migrate.report import MigrationReport
from vmkit.migrate.settle import VERIFY_S, Reach, Settled, settle
from vmkit.migrate.storage import Copy, copies
from vmkit.progress import Finished, Reporter, Started
from vmkit.system.clock import stopwatch

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain
    from vmkit.hypervisor.host import Host
    from vmkit.hypervisor.migration import FileStamp
    from vmkit.migrate.session import Stop
    from vmkit.system.journal import Entry

TECHNIQUE: Final = "cold"
_STEP: Final = "definition"


def move(
    case: Case,
    domain: Domain,
    target: Host,
    entry: Entry,
    wish: Callable[[], Stop | None],
    reporter: Reporter,
) -> MigrationReport:
    """Copy what the target does not have, and hand the definition over; returns when the VM is at the target alone.

    Raises:
        CancelledError, ConflictError, EffectError: it did not come about; the VM is at its source as before, and the
            target holds nothing of it.
        IndeterminateError: a host does not answer; the journal keeps the operation.
    """
    guest, to_copy = case.guest, copies(case.guest, case.meeting)
    intent = Intent(False, persistent=True, target_defined=case.meeting.by_uuid is not None, cold=True)
    elapsed = stopwatch()
    entry.advance(
        copying.PHASE,
        cold=True,
        persistent=True,
        autostart=guest.autostart,
        target_defined=intent.target_defined,
        **copying.begin(to_copy),
    )
    before = _stamps(domain.host, to_copy)
    copying.bring(to_copy, domain.host, target, entry, wish, reporter)
    copied = elapsed()
    entry.advance("transfer")
    entry.keep = True  # until it is known what became of it, whatever is raised
    error = _hand_over(domain, target, before, to_copy, wish, reporter)
    here, there = Reach(domain.host.uri, domain.host), Reach(target.uri, target)
    try:
        settled = settle(here, there, guest.uuid, intent, patience=VERIFY_S, silence=VERIFY_S, reporter=reporter)
        tidied = copying.tidy(settled, here, there, entry.record.data)
        again = settled.verdict.place is Place.UNKNOWN or bool(settled.trouble) or tidied.again
        if settled.verdict.place is not Place.TARGET:
            entry.keep = again
            raise _failure(guest.name, settled, error, here.uri, there.uri) from error
        recovery.finish_definition(there, guest.uuid, entry.record.data)  # if that fails, the next command does it
        entry.keep = again
    finally:
        here.close()
        there.close()
    return MigrationReport(
        vm=guest.name,
        uuid=guest.uuid,
        source=case.source.uri,
        target=case.target.uri,
        running_copies=settled.running,
        total_ms=round(elapsed() * 1000),
        transfer_ms=None,
        downtime_ms=None,
        downtime_net_ms=None,
        guest_gap_ms=None,
        rounds=0,
        bytes_sent=0,
        memory_total=0,
        bandwidth=0,
        definition_moved=True,
        mode=TECHNIQUE,
        technique=TECHNIQUE,
        warnings=(*(f.text for f in judge(case).warnings), *settled.trouble, *tidied.left),
        disk_ms=round(copied * 1000),
        disk_bytes=sum(c.size for c in to_copy),
        copied=tuple(c.path for c in to_copy),
    )


def _hand_over(
    domain: Domain,
    target: Host,
    before: dict[str, FileStamp | None],
    to_copy: tuple[Copy, ...],
    wish: Callable[[], Stop | None],
    reporter: Reporter,
) -> VmkitError | None:
    """Have libvirt define it at the target and remove it here. What went wrong is returned: both hosts are asked."""
    from vmkit.hypervisor.migration import migrate_offline

    elapsed = stopwatch()
    reporter(Started(_STEP))
    try:
        if (stop := wish()) is not None:
            raise CancelledError(f"the migration was cancelled by {stop.by}; {domain.name} is at {domain.host.uri}")
        changed = [path for path, stamp in _stamps(domain.host, to_copy).items() if stamp != before[path]]
        if changed or domain.info().state.active:
            what = f"{', '.join(changed)} changed" if changed else "it runs"
            raise ConflictError(
                f"{domain.name} was started while it was copied: {what}", hint="try again, or move it while it runs"
            )
        migrate_offline(domain, target)
    except VmkitError as e:
        return e
    reporter(Finished(_STEP, elapsed()))
    return None


def _stamps(host: Host, to_copy: tuple[Copy, ...]) -> dict[str, FileStamp | None]:
    """When the VM's own files were changed last: what is copied while somebody writes to it is no disk."""
    from vmkit.hypervisor.migration import file_stamp

    return {c.path: file_stamp(host, c.path) for c in to_copy if c.idle}


def _failure(name: str, settled: Settled, error: VmkitError | None, here: str, there: str) -> VmkitError:
    """The error of a move that did not end with the VM at the target. Pure."""
    why = settled.verdict.why
    if settled.verdict.place is Place.SOURCE:
        if isinstance(error, CancelledError | ConflictError):
            return error
        said = "" if error is None else f": {error.message}"
        return EffectError(
            f"{name} did not move{said}", left=f"it is at {here}, as before", hint="try again", details=settled.trouble
        )
    return IndeterminateError(
        f"where {name} is, is not known: {why}",
        hint=f"look at both: vmkit -c '{here}' show {name}; vmkit -c '{there}' show {name}; then: vmkit jobs resolve",
        details=(*((error.message,) if error else ()), *settled.trouble),
    )
