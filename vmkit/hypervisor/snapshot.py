"""libvirt's calls for snapshots of a domain, and for its memory saved beside its definition."""

from __future__ import annotations

from dataclasses import dataclass

import libvirt

from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.errors import translated

_FROM_SNAPSHOT = {
    libvirt.VIR_DOMAIN_RUNNING: libvirt.VIR_DOMAIN_RUNNING_FROM_SNAPSHOT,
    libvirt.VIR_DOMAIN_PAUSED: libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT,
    libvirt.VIR_DOMAIN_SHUTOFF: libvirt.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT,
}


@dataclass(frozen=True, slots=True)
class SnapshotXml:
    """A snapshot as libvirt describes it (https://libvirt.org/formatsnapshot.html), and whether it is current."""

    xml: str
    current: bool


def snapshots(domain: Domain) -> list[SnapshotXml]:
    """Every snapshot of a domain, in no order."""
    with translated(f"list of snapshots of {domain.name}"):
        found = domain.handle.listAllSnapshots(0)
        return [SnapshotXml(str(s.getXMLDesc(0)), bool(s.isCurrent(0))) for s in found]


def create(domain: Domain, xml: str, *, disk_only: bool = False) -> None:
    """Make a snapshot.

    Args:
        domain: of which domain.
        xml: a <domainsnapshot>.
        disk_only: leave the memory of a running domain out.

    Raises:
        EffectError: libvirt or QEMU failed; the domain goes on as before.
    """
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if disk_only else 0
    if disk_only and domain.host.driver == "QEMU":
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    with translated(f"snapshot of {domain.name}"):
        domain.handle.snapshotCreateXML(xml, flags)


def revert(domain: Domain, name: str, *, start: bool = False) -> None:
    """Bring a domain back to a snapshot.

    A snapshot whose devices differ from those of the running QEMU needs a new process, which libvirt calls risky, since
    displays are cut off. Whoever reverts has given up what runs, so it is done.

    Args:
        domain: of which domain.
        name: of the snapshot.
        start: boot it, where the snapshot holds no memory.
    """
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING if start else 0
    with translated(f"revert of {domain.name} to {name}"):
        handle = domain.handle.snapshotLookupByName(name, 0)
        try:
            domain.handle.revertToSnapshot(handle, flags)
        except libvirt.libvirtError as e:
            if e.get_error_code() != libvirt.VIR_ERR_SNAPSHOT_REVERT_RISKY:
                raise
            domain.handle.revertToSnapshot(handle, flags | libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)


def delete(domain: Domain, name: str) -> None:
    """Delete a snapshot, with what it holds. Its children become children of its parent."""
    with translated(f"deletion of the snapshot {name} of {domain.name}"):
        domain.handle.snapshotLookupByName(name, 0).delete(0)


def from_snapshot(domain: Domain) -> bool:
    """Whether the state that a domain is in came out of a snapshot."""
    with translated(f"state of {domain.name}"):
        state, reason = domain.handle.state()
    return bool(_FROM_SNAPSHOT.get(state) == reason)


def run_id(domain: Domain) -> int | None:
    """The number that libvirt gives to this run of a domain, another at each start; None while it is off."""
    number = int(domain.handle.ID())
    return None if number < 0 else number


# -- saved memory


def saved(domain: Domain) -> bool:
    """Whether libvirt keeps the memory of a domain that is shut off, for its next start."""
    with translated(f"saved memory of {domain.name}"):
        return bool(domain.handle.hasManagedSaveImage(0))


def save(domain: Domain) -> None:
    """Write the memory of a domain to a file that libvirt keeps, and end it. The next start goes on from there."""
    with translated(f"saving of {domain.name}"):
        domain.handle.managedSave(0)


def drop_saved(domain: Domain) -> None:
    """Throw the saved memory away: the next start is a boot."""
    with translated(f"saved memory of {domain.name}"):
        domain.handle.managedSaveRemove(0)
