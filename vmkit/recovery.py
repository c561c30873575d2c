"""Taking up what was cut off: every floor that journals an operation knows how to finish or undo it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Final

from vmkit.errors import VmkitError
from vmkit.progress import Reporter, silent
from vmkit.system.journal import DAMAGED, Record, records, taken_over

OWNERS: Final = {
    "backup": "vmkit.vm.backup.recovery",
    "apply": "vmkit.vm.change.session",
    "bench": "vmkit.bench.recovery",
    "clone": "vmkit.vm.clone.recovery",
    "create": "vmkit.vm.recovery",
    "hotfix": "vmkit.hotfix.recovery",
    "hotfix-far": "vmkit.hotfix.far.session",
    "image": "vmkit.image.recovery",
    "lab": "vmkit.lab.recovery",
    "limit": "vmkit.vm.limiting",
    "migrate": "vmkit.migrate.recovery",
    "moves": "vmkit.migrate.many.perform",
    "snapshot": "vmkit.vm.snapshot.recovery",
    "network": "vmkit.network.recovery",
}


def recover_all(reporter: Reporter = silent) -> Iterator[str]:
    """Finish or undo every operation whose process is gone; yields one line about each.

    What cannot be settled now (its host does not answer, say) is kept for the next time, and the line says so.
    """
    # A hotfix holds guests in pause: it goes first. A VM that is to be patched before it runs comes behind the bytes.
    for record in sorted(records(), key=lambda r: (r.kind != "hotfix", r.phase == "starting")):
        if record.orphaned and (line := recover(record, reporter)):
            yield line


def recover(record: Record, reporter: Reporter = silent) -> str | None:
    """Finish or undo one operation; None if another process was faster."""
    if record.kind == DAMAGED:
        return f"{record.path} cannot be read: see for yourself what {record.id} left behind, and delete the file"
    owner = OWNERS.get(record.kind)
    if owner is None:
        return f"{record.id}: left by another version of vmkit; {record.path} says what it did"
    try:
        with taken_over(record) as entry:
            if entry is None:
                return None
            text: str = importlib.import_module(owner).recover(entry, reporter)
            return f"{record.id}: {text}"
    except VmkitError as e:
        return f"{record.id}: {record.kind} of {record.subject} was cut off and is not settled: {e.message}" + (
            f" ({e.hint})" if e.hint else ""
        )
