"""What a migration gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkit.migrate.control import Terms
from vmkit.migrate.modes import Mode
from vmkit.migrate.outlook import Outlook
from vmkit.migrate.predict import Prediction
from vmkit.migrate.preflight import Case, judge
from vmkit.migrate.probe import ProbeReport
from vmkit.migrate.record import Outcome
from vmkit.migrate.replay import Made
from vmkit.migrate.storage import copies

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import JobStats
    from vmkit.migrate.session import Transfer
    from vmkit.migrate.settle import Settled


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """A migration that ended well. Times in milliseconds, sizes in bytes, rates in bytes a second.

    Attributes:
        vm, uuid: which VM.
        source, target: URIs of where it was and where it is.
        running_copies: copies found when both hosts were asked afterwards; always 1.
        total_ms: from the start of the transfer until libvirt said it was over, the source's clean-up included.
        transfer_ms: the part in which memory went across, by libvirt's count.
        mode: what was asked for.
        technique: how it ended: 'pre-copy', 'stop-copy' or 'post-copy'.
        downtime_ms: how long the guest stood still, by libvirt's count; None if it did not say. For post-copy, where
            libvirt keeps no count, from the switch until this process saw the guest run at the target.
        downtime_net_ms: the same without the time the network took, where the hosts' clocks allow to tell.
        guest_gap_ms: longest time without an answer from the guest, as the prober saw it; None without a prober.
        rounds: passes over the memory.
        bytes_sent: what went over the network.
        memory_total: the guest's memory as far as QEMU counts it.
        bandwidth: of the transfer, by libvirt's measure.
        definition_moved: whether the VM is defined at the target now, and no longer at the source.
        predicted: what had been expected.
        decisions: what the controller decided on the way, and why.
        warnings: what preflight had to say, and anything that could not be completed.
        probe: all that the prober saw.
        disk_ms, disk_bytes: the part of `total_ms` in which disks were copied, before memory was, and what was copied.
        copied: files that were copied to the target.
    """

    vm: str
    uuid: str
    source: str
    target: str
    running_copies: int
    total_ms: int
    transfer_ms: int | None
    downtime_ms: int | None
    downtime_net_ms: int | None
    guest_gap_ms: float | None
    rounds: int
    bytes_sent: int
    memory_total: int
    bandwidth: int
    definition_moved: bool
    mode: str = "pre-copy"
    technique: str = "pre-copy"
    predicted: Prediction | None = None
    decisions: tuple[Made, ...] = ()
    warnings: tuple[str, ...] = ()
    probe: ProbeReport | None = None
    disk_ms: int = 0
    disk_bytes: int = 0
    copied: tuple[str, ...] = ()


def made(
    case: Case,
    ahead: Outlook,
    state: Transfer,
    settled: Settled,
    completed: JobStats | None,
    probed: ProbeReport | None,
) -> MigrationReport:
    """The report of a migration that has arrived. Pure."""
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
        downtime_ms=downtime_ms(state, completed),
        downtime_net_ms=raw.get("downtime_net") if completed else None,
        guest_gap_ms=probed.gap_ms if probed else None,
        rounds=max(state.rounds, stats.iteration if stats else 0),
        bytes_sent=stats.processed if stats else 0,
        memory_total=stats.total if stats else 0,
        bandwidth=stats.bandwidth if stats else 0,
        definition_moved=case.guest.persistent,
        mode=ahead.terms.mode.value,
        technique=technique(state, ahead.terms.mode),
        predicted=ahead.expected,
        decisions=tuple(state.made),
        warnings=tuple(warnings),
        probe=probed,
        disk_ms=round(state.disk_seconds * 1000),
        disk_bytes=state.disk_bytes,
        copied=tuple(c.path for c in copies(case.guest, case.meeting)),
    )


def technique(state: Transfer, mode: Mode) -> str:
    """How a transfer went, or was going."""
    if state.switched is not None:
        return "post-copy"
    return "stop-copy" if mode is Mode.STOP_COPY else "pre-copy"


def outcome(
    state: Transfer, completed: JobStats | None, terms: Terms, *, arrived: bool, gap_ms: float | None
) -> Outcome:
    """What the record keeps of a transfer. Pure."""
    stats = completed or state.last
    stop = state.stop.reason.name if state.stop else ""
    ended = {"GAVE_UP": "given up", "DEADLINE": "given up", "CANCELLED": "cancelled"}.get(stop, "failed")
    sent = stats.processed if stats else 0
    running = [look.sent for look in state.looks if look.iteration > 1]
    return Outcome(
        result="arrived" if arrived else ended,
        technique=technique(state, terms.mode),
        total_ms=round(state.seconds * 1000),
        transfer_ms=completed.elapsed_ms if completed else None,
        downtime_ms=downtime_ms(state, completed),
        guest_gap_ms=gap_ms,
        rounds=max(state.rounds, stats.iteration if stats else 0),
        bytes_sent=sent,
        bandwidth=completed.bandwidth if completed else 0,
        stop_bytes=max(0, sent - running[-1]) if completed and running and terms.limited else 0,
        first_pass=state.first_pass or (max(0, completed.total - _zeros(completed)) if completed else 0),
        limited=terms.limited,
        budget=terms.budget,
        deadline=terms.deadline,
    )


def downtime_ms(state: Transfer, completed: JobStats | None) -> int | None:
    """By libvirt's count, or of a post-copy by ours."""
    if completed is not None and completed.downtime_ms is not None:
        return completed.downtime_ms
    return None if state.handover is None else round(state.handover * 1000)


def _zeros(stats: JobStats) -> int:
    zeros: int = stats.raw.get("memory_constant", 0) * stats.raw.get("memory_page_size", 4096)
    return zeros
