"""Removing a lab: processes, then links, then files; each step finds what there is and can be done again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmkit.lab.layout import Layout
from vmkit.lab.reality import end_processes, remove_files, remove_links
from vmkit.lab.state import Phase, load, save
from vmkit.progress import Finished, Reporter, Started
from vmkit.system.clock import stopwatch
from vmkit.system.files import locked
from vmkit.system.journal import journalled

settled: set[Path] = set()
"""Folders of labs that recovery found cut off and settled in this process: `down` of one has nothing left to do."""


@contextmanager
def exclusive(layout: Layout, *, wait: float) -> Iterator[None]:
    """Hold the lab's lock; its file goes when the lab is gone.

    Raises:
        ConflictError: another process holds it after `wait` seconds.
    """
    busy = f"another process is bringing the lab {layout.name} up or tearing it down"
    with locked(layout.lock, busy=busy, wait=wait):
        try:
            yield
        finally:
            if not layout.folder.exists():
                layout.lock.unlink(missing_ok=True)


def tear_down(layout: Layout, reporter: Reporter) -> None:
    """Remove all that there is of a lab, under a journal entry. The caller holds the lab's lock.

    Raises:
        EffectError: something could not be removed; it can be tried again.
    """
    state = load(layout)
    token = state.token if state else ""
    watch = stopwatch()
    reporter(Started("tear-down", layout.name))
    with journalled("lab", layout.name, "down", folder=str(layout.folder), token=token):
        if state is not None:
            save(layout, state.at(Phase.LEAVING))
        ended = erase(layout)
    reporter(Finished("tear-down", watch(), f"{layout.name}, {ended} processes"))


def erase(layout: Layout) -> int:
    """Remove all that there is of a lab; returns how many processes there were. The caller holds the lab's lock."""
    ended = end_processes(layout)
    remove_links(layout)
    remove_files(layout)
    return ended
