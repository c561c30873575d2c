"""Somebody who looks at a domain's process before its guest runs, when this program starts or moves the domain.

This floor knows nothing of hotfixes: those who put them into processes name themselves here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from vmkit.progress import Reporter

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain


class Attendant(Protocol):
    """What is called; see the module."""

    def start(self, domain: Domain) -> None:
        """Start the domain paused, do what is to be done, let it run.

        Raises:
            VmkitError: the domain is shut off again.
        """

    def patch(self, domain: Domain) -> None:
        """Do what is to be done in a domain that was started paused, and that the caller lets run, or removes.

        Raises:
            VmkitError: it could not be done.
        """

    def arriving(self, domain: Domain, reporter: Reporter) -> AbstractContextManager[Callable[[], str]]:
        """Attend a migration while the block runs. What it gives says why the guest must not go over; '' if it may."""


Find = Callable[[], Attendant | None]

_find: list[Find] = []


def attend(find: Find) -> None:
    """Have `find` asked, from now on and instead of another, who attends: None where there is nothing to do. Cheap."""
    _find[:] = [find]


def attendant() -> Attendant | None:
    """Who attends; None if nobody does."""
    return _find[0]() if _find else None


def patch(domain: Domain) -> None:
    """As Attendant.patch; nothing where nobody attends."""
    if (by := attendant()) is not None:
        by.patch(domain)


def arriving(domain: Domain, reporter: Reporter) -> AbstractContextManager[Callable[[], str]]:
    """As Attendant.arriving; nothing stands against it where nobody attends."""
    by = attendant()
    return by.arriving(domain, reporter) if by is not None else nullcontext(str)
