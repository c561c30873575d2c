"""What a migration gives back."""

from __future__ import annotations

from dataclasses import dataclass

from vmkit.migrate.probe import ProbeReport


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """A migration that ended well. Times in milliseconds, sizes in bytes, rates in bytes a second.

    Attributes:
        vm, uuid: which VM.
        source, target: URIs of where it was and where it is.
        running_copies: copies found when both hosts were asked afterwards; always 1.
        total_ms: from the start of the transfer until libvirt said it was over, the source's clean-up included.
        transfer_ms: the part in which memory went across, by libvirt's count.
        downtime_ms: how long the guest stood still, by libvirt's count; None if it did not say.
        downtime_net_ms: the same without the time the network took, where the hosts' clocks allow to tell.
        guest_gap_ms: longest time without an answer from the guest, as the prober saw it; None without a prober.
        rounds: passes over the memory.
        bytes_sent: what went over the network.
        memory_total: the guest's memory as far as QEMU counts it.
        bandwidth: of the transfer, by libvirt's measure.
        definition_moved: whether the VM is defined at the target now, and no longer at the source.
        warnings: what preflight had to say, and anything that could not be completed.
        probe: all that the prober saw.
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
    warnings: tuple[str, ...] = ()
    probe: ProbeReport | None = None
