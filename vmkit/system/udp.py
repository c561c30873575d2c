"""A UDP socket to one address, for probing it from outside."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any, Self

from vmkit.errors import SpecError, UnsupportedError
from vmkit.values import quoted


class UdpPeer:
    """Datagrams to and from one address and port. A context manager that closes the socket.

    Errors of the network ('no route', 'connection refused') are what a prober is there to see: they count as no answer.
    """

    def __init__(self, address: str, port: int) -> None:
        """Resolve the address and make the socket; nothing is sent.

        Raises:
            SpecError: the address does not resolve.
            UnsupportedError: there is no such kind of socket here (IPv6, say).
        """
        try:
            found = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as e:
            raise SpecError(
                f"{quoted(address)} is not an address: {e}", hint="write it like 192.0.2.7 or web1:7"
            ) from e
        family, kind, protocol, _, peer = found[0]
        self.peer: Any = peer
        try:
            self._socket = socket.socket(family, kind, protocol)
        except OSError as e:
            raise UnsupportedError(
                f"cannot reach {address} by UDP: {e.strerror}", hint="give an address of the other family (IPv4, IPv6)"
            ) from e
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. It is safe to call twice."""
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """Send one datagram. False if the network did not take it."""
        try:
            self._socket.sendto(data, self.peer)
        except OSError:
            return False
        return True

    def receive(self, timeout: float) -> list[bytes]:
        """Wait up to `timeout` seconds for datagrams from the peer, and return those that are there."""
        ready, _, _ = select.select([self._socket], [], [], max(0.0, timeout))
        found: list[bytes] = []
        while ready:
            try:
                data, sender = self._socket.recvfrom(2048)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error that came back
                continue
            if sender[:2] == self.peer[:2]:
                found.append(data)
        return found

    def ask(self, data: bytes, *, timeout: float, again: float = 0.25) -> bytes | None:
        """Send `data` every `again` seconds until something comes back; None if nothing does within `timeout`."""
        from vmkit.system.clock import Deadline

        deadline = Deadline(timeout)
        with contextlib.suppress(OSError):
            while not deadline.passed:
                self.send(data)
                if answers := self.receive(min(again, deadline.left)):
                    return answers[0]
        return None
