"""A VM that runs again after a command was killed that had it shut down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmkit.errors import DeadlineError
from vmkit.system.clock import Deadline
from vmkit.vm.machine import Vm

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain

PATIENCE: Final = 30.0
"""Seconds that a guest gets to come to the end of its shut-down."""


def started_again(domain: Domain) -> bool:
    """Start a VM that was asked to shut down; False if it runs on, because the request never came to the guest.

    The request cannot be taken back: a VM that still runs may be off a moment later, and then nobody would start it.

    Raises:
        VmkitError: it cannot be started.
    """
    try:
        Deadline(PATIENCE).wait_for("the end of the shut-down", lambda: not domain.state().active)
    except DeadlineError:
        return False
    return Vm(domain).start()
