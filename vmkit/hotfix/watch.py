"""A service that puts the active patches into VMs that others start, and retires patches that are not needed any more.

libvirt tells of a VM when its process is there; one that was not started paused runs by then. So it runs unpatched for
as long as that takes, and is paused for some milliseconds to be patched, as with `apply`.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from vmkit.errors import NotFoundError, UnreachableError, VmkitError
from vmkit.hotfix import undo
from vmkit.hotfix.newcomers import LOCK_SECONDS, older_of, patch_all, retire_if_upgraded, unpatched, upgraded
from vmkit.hotfix.operation import settle
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.lifecycle import lifecycle
from vmkit.progress import Note, Reporter
from vmkit.system.clock import Deadline
from vmkit.system.elf import Binary
from vmkit.system.interrupts import deferred

Binaries = dict[tuple[int, ...], Binary]

LOOK_SECONDS: Final = 60.0
"""Between looks at all VMs, whatever libvirt told."""
WAKE_SECONDS: Final = 1.0
"""Longest time until a signal is heeded, and the shortest between attempts to reach libvirt."""
WHAT: Final = "patched by watch"
"""What the history calls it."""


def watch(connect: Callable[[], Host], reporter: Reporter) -> str:
    """Run until SIGTERM, SIGINT or SIGHUP; the name of the signal. What is being patched then is finished first.

    Args:
        connect: opens a connection with events; called again whenever the last one broke.
        reporter: told what was done and what could not be done.

    Raises:
        VmkitError: libvirt could not be reached at the beginning.
    """
    with deferred() as signalled:
        reached = False
        while (signal := signalled()) is None:
            try:
                with connect() as host:
                    if not reached:
                        reporter(Note(f"watching the VMs of {host.uri}"))
                    reached = True
                    _watch_one(host, signalled, reporter)
            except UnreachableError as e:
                if not reached:
                    raise
                reporter(Note(f"{e.message}; trying again", warning=True))
            if signalled() is None:
                time.sleep(WAKE_SECONDS)
    return signal


def _watch_one(host: Host, signalled: Callable[[], str | None], reporter: Reporter) -> None:
    """Watch as long as the connection lives."""
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    binaries: Binaries = {}
    with lifecycle(host, told.put):
        while signalled() is None and host.alive:
            look_at_all(host, binaries, reporter)
            rest = Deadline(LOOK_SECONDS)
            while signalled() is None and host.alive and not rest.passed:
                with suppress(queue.Empty, NotFoundError):
                    look_at(host.domain(told.get(timeout=WAKE_SECONDS)), binaries, reporter)


def look_at_all(host: Host, binaries: Binaries, reporter: Reporter) -> None:
    """Put right what was cut off, patch the VMs that need it, and retire patches."""
    try:
        settle(reporter)
        for domain in host.domains():
            look_at(domain, binaries, reporter)
        retire(host, reporter)
    except VmkitError as e:
        reporter(Note(e.message, warning=True))


def look_at(domain: Domain, binaries: Binaries, reporter: Reporter) -> None:
    """Patch the process of one VM, if it needs that. What cannot be done is said, and tried again later."""
    try:
        state = domain.state()
        if not state.active:
            retire(domain.host, reporter)
        elif unpatched(domain, binaries):
            with undo.one_at_a_time(LOCK_SECONDS):
                done = patch_all(domain, older_of(domain.uuid), WHAT, runs=state is DomainState.RUNNING)
            if done:
                reporter(Note(f"{domain.name}: {', '.join(done)} put into its process"))
    except NotFoundError:
        return
    except VmkitError as e:
        reporter(Note(f"{domain.name} is not patched: {e.message}", warning=True))


def retire(host: Host, reporter: Reporter) -> None:
    """Have patches be active no more whose builds are gone.

    Raises:
        VmkitError: a record cannot be read or written.
    """
    for remembered in undo.active():
        if upgraded(remembered):
            with undo.one_at_a_time(LOCK_SECONDS):
                retire_if_upgraded(remembered, host.uri)
            reporter(Note(f"{remembered.patch_id}: retired, since another build is installed"))


def unit(program: Path, uri: str | None) -> str:
    """The text of a systemd unit that runs it (systemd.service(5))."""
    where = f" -c {uri.replace('%', '%%')}" if uri else ""
    return f"""[Unit]
Description=vmkit: hot-fixes for VMs that others start
After=libvirtd.service virtqemud.service
Wants=libvirtd.service

[Service]
ExecStart={program}{where} hotfix watch
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
"""
