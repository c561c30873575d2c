"""libvirt's calls for checkpoints (bitmaps of what changed since) and for backups of a running domain."""

from __future__ import annotations

import libvirt

from vmkit.errors import NotFoundError, VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.errors import translate, translated


def checkpoints(domain: Domain) -> list[str]:
    """Names of the checkpoints of a domain, each after its parent; none where the driver has none."""
    try:
        with translated(f"list of checkpoints of {domain.name}"):
            found = domain.handle.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
            return [str(c.getName()) for c in found]
    except VmkitError:
        if domain.host.driver == "QEMU":
            raise
        return []


def delete_checkpoint(domain: Domain, name: str, *, only_name: bool = False) -> bool:
    """Delete a checkpoint; what changed since it is added to its parent's bitmap. False if there is none.

    Args:
        domain: of which domain. libvirt can do this for a running one only.
        name: of the checkpoint.
        only_name: forget it and leave the bitmaps where they are.

    Raises:
        UnsupportedError: the domain does not run.
    """
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY if only_name else 0
    try:
        with translated(f"deletion of the checkpoint {name} of {domain.name}"):
            domain.handle.checkpointLookupByName(name, 0).delete(flags)
    except NotFoundError:
        return False
    return True


def bitmaps(domain: Domain) -> dict[str, list[str]]:
    """Names of the lasting bitmaps in the disks of a running domain, with the block nodes that each is in.

    A migration takes bitmaps along in the disks, and leaves the checkpoints that they belong to behind (libvirt 11.3).
    """
    found: dict[str, list[str]] = {}
    for node in domain.monitor("query-named-block-nodes", {"flat": True}):
        for bitmap in node.get("dirty-bitmaps", ()):
            if bitmap.get("persistent") and bitmap.get("name"):
                found.setdefault(bitmap["name"], []).append(node["node-name"])
    return found


def remove_bitmap(domain: Domain, name: str) -> None:
    """Remove a bitmap that belongs to no checkpoint, so that libvirt cannot, from the disks of a running domain."""
    for node in bitmaps(domain).get(name, ()):
        domain.monitor("block-dirty-bitmap-remove", {"node": node, "name": name})


def begin(domain: Domain, xml: str, checkpoint: str | None) -> None:
    """Start a backup job and, in the same moment, a checkpoint. Returns when the job runs.

    Args:
        domain: a running domain.
        xml: a <domainbackup> (https://libvirt.org/formatbackup.html).
        checkpoint: a <domaincheckpoint>.
    """
    with translated(f"backup of {domain.name}"):
        domain.handle.backupBegin(xml, checkpoint, 0)


def running(domain: Domain) -> str | None:
    """XML of the backup job that runs on a domain; None if none does."""
    try:
        return str(domain.handle.backupGetXMLDesc(0))
    except libvirt.libvirtError as e:
        if e.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
            return None
        raise translate(e, f"backup of {domain.name}") from e


def outcome(domain: Domain) -> str | None:
    """How the last job of a domain ended: '' well, None not known, else what went wrong. libvirt then forgets it."""
    try:
        with translated(f"outcome of the backup of {domain.name}"):
            raw = domain.handle.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    except VmkitError:
        return None
    match raw.get("type", libvirt.VIR_DOMAIN_JOB_NONE):
        case libvirt.VIR_DOMAIN_JOB_COMPLETED:
            return ""
        case libvirt.VIR_DOMAIN_JOB_CANCELLED:
            return "it was stopped"
        case libvirt.VIR_DOMAIN_JOB_FAILED:
            return str(raw.get("errmsg") or "QEMU gave no reason")
    return None


def freeze(domain: Domain) -> int:
    """Have the guest write its file systems out and hold them still; returns how many. `thaw` has to follow."""
    with translated(f"freezing the file systems of {domain.name}"):
        return int(domain.handle.fsFreeze())


def thaw(domain: Domain) -> None:
    """Let the file systems of a guest go on."""
    with translated(f"thawing the file systems of {domain.name}"):
        domain.handle.fsThaw()
