"""What the journal knows of copies that are being made, and what is done with those that were not finished."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from vmkit.errors import NotFoundError
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.settle import undo_or_keep
from vmkit.hypervisor.volume import Pool
from vmkit.image import store
from vmkit.image.place import POOL
from vmkit.system.clock import Deadline
from vmkit.system.journal import Entry
from vmkit.vm.clone.moment import forget, undo, volumes_of
from vmkit.vm.clone.plan import Copy
from vmkit.vm.clone.source import settle

_RELEASE_S: Final = 20.0


class Ledger:
    """The journal entry of copies, written to by several threads."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self._lock = threading.Lock()

    def finished(self, copy: Copy) -> None:
        """This copy is as it should be, and stays whatever becomes of the others."""
        with self._lock:
            self.entry.advance("copies", done=[*self.entry.record.data["done"], copy.identity.uuid])


def first_entry(host: Host, copies: Sequence[Copy], **more: Any) -> dict[str, Any]:
    """The data of a new journal entry."""
    return {
        "uri": host.uri,
        "copies": [{"name": c.name, "uuid": c.identity.uuid, "volumes": volumes_of(c)} for c in copies],
        "done": [],
        "source": None,
        "overlays": {},
        "memory": [],
        **more,
    }


def clean_up(host: Host, data: dict[str, Any]) -> list[str]:
    """Bring the source back to its own files, and remove copies that were not finished; returns what was done."""
    pool = host.pool(POOL)
    said = []
    if data["overlays"]:
        said += settle(host, pool, data["source"], data["overlays"])
    for copy in data["copies"]:
        if copy["uuid"] not in data["done"]:
            said += [f"removed {what}" for what in undo(host, pool, copy["uuid"], copy["volumes"])]
    if data["memory"]:
        pool.refresh()
        _forget_all(pool, data["memory"])
    return said


def _forget_all(pool: Pool, names: list[str]) -> None:
    """Delete volumes. One that a process was sending when it was killed is let go by libvirt a moment later."""
    end = Deadline(_RELEASE_S)
    forget(pool, names)
    while any(pool.path(name) for name in names) and not end.passed:
        time.sleep(min(0.5, end.left))
        forget(pool, names)


def drop(image: str) -> None:
    """Remove the image that was made for copies on another host alone, if it is there."""
    with contextlib.suppress(NotFoundError):
        store.delete(image)


def clean_up_or_keep(host: Host, entry: Entry) -> str:
    """As `clean_up`, over a new connection if the old one is gone; else the next command does it. Says which."""
    return undo_or_keep(host, entry, clean_up, nothing="nothing is left of what was not finished")
