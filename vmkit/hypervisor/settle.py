"""Undoing journalled work on a host after a step of it has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vmkit.errors import VmkitError
from vmkit.hypervisor.host import Host


class Noted(Protocol):
    """What the journal knows of an operation."""

    @property
    def data(self) -> dict[str, Any]:
        """What was written down about it."""


class Kept(Protocol):
    """An entry of the journal that is open."""

    keep: bool

    @property
    def record(self) -> Noted:
        """What it says."""


def undo_or_keep(
    host: Host, entry: Kept, undo: Callable[[Host, dict[str, Any]], object], *, nothing: str = "nothing is left of it"
) -> str:
    """Undo, over a new connection if the old one is gone; else keep the entry for the next command. Says which.

    Args:
        host: where the work was done.
        entry: of the work; `undo` is given its data.
        undo: removes what was made. It may be called again later.
        nothing: what is said where that went well.
    """
    try:
        if host.alive:
            undo(host, entry.record.data)
        else:
            with Host.connect(host.uri) as again:
                undo(again, entry.record.data)
    except VmkitError:
        entry.keep = True
        return "the next vmkit command removes what is left of it"
    return nothing
