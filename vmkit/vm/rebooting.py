"""A reboot that is waited for: first until the guest has gone down, then until it is ready again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from vmkit.errors import CancelledError, ConflictError, DeadlineError
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.lifecycle import reboots
from vmkit.progress import Finished, Reporter, Started
from vmkit.system.clock import Deadline, stopwatch
from vmkit.system.interrupts import deferred
from vmkit.vm import console_log
from vmkit.vm.readiness import wait as wait_for

if TYPE_CHECKING:
    from vmkit.vm.readiness import Layer, Ready

STEP: Final = "reboot"
ASK_AGAIN_S: Final = 20.0
"""A request that comes while the guest boots is lost: nobody is there to see the button."""
_LOOK_S: Final = 0.5


def reboot_and_wait(
    domain: Domain,
    layers: Sequence[Layer],
    log: str | None,
    marker: str | None,
    *,
    force: bool,
    seconds: float,
    reporter: Reporter,
) -> Ready:
    """Reboot, and return when the guest is ready again. What it wrote to its console before does not count.

    Raises:
        DeadlineError: it did not reboot, or is not ready in time. The VM is left as it is.
        ConflictError: it is paused, or it stopped instead.
        CancelledError: Ctrl-C. The VM is left as it is.
    """
    limit = Deadline(seconds)
    gone = threading.Event()
    start = console_log.length(domain.host, log)
    with Host.connect(domain.host.uri, events=True) as listening, reboots(listening, domain.uuid, gone.set):
        _go_down(domain, gone, limit, force=force, reporter=reporter)
    if domain.host.driver != "Xen":  # there the news comes when the guest boots already
        start = console_log.length(domain.host, log)
    return wait_for(
        domain,
        layers,
        seconds=max(1.0, limit.left),
        marker=marker,
        console=lambda: console_log.read_after(domain.host, log, start),
        reporter=reporter,
    )


def _go_down(domain: Domain, gone: threading.Event, limit: Deadline, *, force: bool, reporter: Reporter) -> None:
    if domain.state() is DomainState.PAUSED and not force:
        raise ConflictError(f"{domain.name} is paused, so its guest cannot reboot", hint=f"vmkit resume {domain.name}")
    elapsed = stopwatch()
    reporter(Started(STEP))
    with deferred() as interrupted:
        while True:
            domain.reset() if force else domain.reboot()
            again = Deadline(min(ASK_AGAIN_S, limit.left))
            while not gone.wait(_LOOK_S):
                if by := interrupted():
                    raise CancelledError(f"the wait for {domain.name} was stopped by {by}; it may reboot all the same")
                if not domain.state().active:
                    raise ConflictError(f"{domain.name} has stopped instead", hint=f"vmkit start {domain.name}")
                if limit.passed:
                    raise DeadlineError(
                        f"{domain.name} did not reboot in time; it still runs",
                        hint=f"the guest ignored the request: vmkit reboot --force {domain.name}",
                    )
                if again.passed:
                    break
            if gone.is_set():
                break
    reporter(Finished(STEP, elapsed()))
