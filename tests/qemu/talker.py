"""A TCP connection to a guest that is in use while the guest moves."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time

PORT = 7100
PIECE = 16 * 2**10
PAUSE_S = 0.02
PATIENCE_S = 120.0


class Transfer:
    """A file that goes into the guest and is sent back by it, piece by piece, until `finish` ends it.

    Attributes:
        sent, back: bytes so far.
    """

    def __init__(self, address: str) -> None:
        self.sent = self.back = 0
        self.digests = (hashlib.sha256(), hashlib.sha256())
        self.trouble: list[str] = []
        self._chance = random.Random(PORT)  # noqa: S311
        self._enough = threading.Event()
        self._socket = _connected(address)
        self._threads = [threading.Thread(target=self._guarded, args=(w,)) for w in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _guarded(self, work: object) -> None:
        try:
            assert callable(work)
            work()
        except OSError as e:
            self.trouble.append(f"{getattr(work, '__name__', '')}: {e!r}")

    def _send(self) -> None:
        while not self._enough.wait(PAUSE_S):
            piece = self._chance.randbytes(PIECE)
            self._socket.sendall(piece)
            self.digests[0].update(piece)
            self.sent += len(piece)
        self._socket.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        while piece := self._socket.recv(PIECE):
            self.digests[1].update(piece)
            self.back += len(piece)

    def wait_for(self, count: int) -> None:
        """Until so many more bytes have come back."""
        wanted, end = self.back + count, time.monotonic() + PATIENCE_S
        while self.back < wanted:
            assert not self.trouble, self.trouble
            assert time.monotonic() < end, f"{self.sent} bytes were sent, {self.back} came back"
            time.sleep(0.05)

    def finish(self) -> None:
        """Send no more, and wait for the rest."""
        self._enough.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._socket.close()
        assert not any(t.is_alive() for t in self._threads), f"{self.sent} bytes were sent, {self.back} came back"


def _connected(address: str) -> socket.socket:
    """To the guest's echo, as soon as it listens."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            made = socket.create_connection((address, PORT), timeout=PATIENCE_S)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
            continue
        made.settimeout(PATIENCE_S)
        return made
