"""The questions that a wait asks of a VM again and again, each in the cheapest way that proves something."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from vmkit.errors import UnsupportedError, VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.vm import cloud_run, forward, guest, reach
from vmkit.vm.addresses import Address, Finder, Found, Source

_QUICK: Final = 0.05
_SLOW: Final = 1.0
"""Seconds between two questions: of libvirt, and of the guest or its network (each a program on host or guest)."""


class Probes:
    """Questions about one VM.

    Attributes:
        marker: text on the console that means 'booted'.
        console: returns what the guest has written to its console so far.
        pause: seconds until it makes sense to ask the last question again.
    """

    def __init__(self, domain: Domain, marker: str | None, console: Callable[[], str]) -> None:
        self.domain = domain
        self.marker = marker
        self.console = console
        self.pause = _QUICK
        self._finder: Finder | None = None
        self._tried = -_SLOW
        self._address: Address | None = None
        self._said: tuple[str, ...] = ()

    def said(self) -> tuple[str, ...]:
        """What the last question was answered with, where that was no yes: lines for a person."""
        return self._said

    def agent(self) -> bool:
        """Whether the guest agent answers."""
        self.pause, self._said = _QUICK, ()
        return guest.answers(self.domain)

    def address(self) -> str:
        """An address that the guest has now; '' for none.

        The agent's word is proof. A lease, an ARP entry or a reservation may be of an earlier boot, or of one to come:
        such an address has to answer its host, or where the host cannot be asked, have been lent.
        """
        self.pause = _QUICK
        self._finder = self._finder or Finder(self.domain)
        found = self._finder.look()
        best = found.best
        if best is None or Source.AGENT not in best.sources:
            best = self._answering(found)
        self._address = best
        return best.ip if best else ""

    def _answering(self, found: Found) -> Address | None:
        candidates = [a for a in found.addresses if a.network and not a.doubtful]
        self._said = tuple(f"address| {s.value}: {why}" for s, why in found.silent.items())
        # The first look at once, later ones now and then: each is a program on the host.
        if time.monotonic() - self._tried < _SLOW:
            return None
        for one in candidates[:4]:
            alive = reach.answers(self.domain.host, one.ip, one.mac)
            if alive or (alive is None and {Source.LEASE, Source.ARP} & set(one.sources)):
                return one
            self._said += (f"address| {', '.join(s.value for s in one.sources)}: {one.ip}, which does not answer",)
        self._tried = time.monotonic()
        return None

    def ssh(self) -> str:
        """Address and port of an ssh server that has sent its greeting; '' for none."""
        found = self._connected(22, greets=True)
        if found is None:
            return ""
        where, banner = found
        if banner is not None and not banner.startswith("SSH-"):
            self._said = (f"ssh| {where} answers with {banner[:60]!r}",)
            return ""
        return where

    def port(self, number: int) -> str:
        """Where a TCP port of the guest takes connections; '' if it does not."""
        found = self._connected(number, greets=False)
        return found[0] if found else ""

    def _connected(self, number: int, *, greets: bool) -> tuple[str, str | None] | None:
        """Where a port took a connection, and the first line that came; None for the line where nobody connected."""
        self.pause, self._said = _SLOW, ()
        if self._address is None and not self.address():
            return None
        at = self._address
        assert at is not None  # noqa: S101 - address() has just set it
        if at.reachable:
            self.pause = _SLOW
            try:
                opened = reach.port(self.domain.host, at.ip, number)
            except UnsupportedError:
                return self._inside(number, at)
            return (f"{at.ip}:{number}", opened.banner) if opened else None
        return self._through(number, at) if greets else self._inside(number, at)

    def _through(self, number: int, at: Address) -> tuple[str, str | None] | None:
        """A server that greets, on a user network: QEMU takes each connection to a forward, a greeting is proof."""
        assert self._finder is not None  # noqa: S101 - address() has made it
        texts = [text for nic in self._finder.nics for text in nic.forwards]
        ways = [f for f in map(forward.parse, texts) if f.protocol == "tcp" and f.guest_port == number]
        if ways:
            way = ways[0]
            to = "127.0.0.1" if way.address == "0.0.0.0" else way.address  # noqa: S104 - compared, not bound
            opened = reach.port(self.domain.host, to, way.host_port)
            return (f"{way.address}:{way.host_port}", opened.banner) if opened and opened.banner else None
        return self._inside(number, at)

    def _inside(self, number: int, at: Address) -> tuple[str, str | None] | None:
        """Ask the guest itself."""
        try:
            there = reach.listens(self.domain, number)
        except VmkitError as e:
            raise UnsupportedError(
                f"whether port {number} of {self.domain.name} is open cannot be seen from outside: {e.message}",
                hint="a guest on a user network needs its agent for that; or a NIC on a network of the host",
            ) from e
        return (f"{at.ip}:{number}", None) if there else None

    def cloud_init(self) -> str:
        """'done' or 'disabled' when cloud-init has come to its end; else ''."""
        self.pause, self._said = _SLOW, ()
        return cloud_run.finished(self.domain, self.console())
