"""The volumes that exist because of a VM's snapshots, for whoever deletes the VM."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from vmkit.errors import UnsupportedError
from vmkit.hypervisor.domain import Domain
from vmkit.vm.snapshot.facts import SnapshotFacts, gather
from vmkit.vm.snapshot.model import sources

_IMAGE = re.compile(r"[0-9a-f]{16}\.")
"""Begin of the names of files that images share (vmkit.image.place.file_name)."""


def volumes_of(domain: Domain) -> tuple[str, ...]:
    """Names of a VM's overlays and memory files in vmkit's pool; none where the driver has no snapshots."""
    try:
        return own_files(gather(domain))
    except UnsupportedError:
        return ()


def own_files(facts: SnapshotFacts) -> tuple[str, ...]:
    """Names of the volumes that exist because of a VM's snapshots: overlays in vmkit's pool and files with memory.

    Only files that the VM itself writes or wrote to are meant, so never what it shares with a clone or an image.
    """
    if facts.volumes is None or facts.pool is None:
        return ()
    stems = {v.partition(".")[0] for v in facts.volumes} | {f"{facts.name}-{d.device}" for d in facts.disks}
    files = facts.files.values()
    paths = {*sources(facts.disks).values(), *(p for f in files for p in (*f.before.values(), *f.overlays.values()))}
    found = {f.memory for f in files if f.memory and PurePosixPath(f.memory).parent == PurePosixPath(facts.pool)}
    for path in paths:
        where = PurePosixPath(path)
        ours = where.name.partition(".")[0] in stems and not _IMAGE.match(where.name)
        if where.parent == PurePosixPath(facts.pool) and ours and where.name not in facts.volumes:
            found.add(path)
    return tuple(sorted(PurePosixPath(p).name for p in found))
