"""What the users of a guest see of its migration: a prober outside that asks it for an echo every few milliseconds."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from vmkit.errors import RefusedError, SpecError
from vmkit.system.udp import UdpPeer
from vmkit.values import quoted

ECHO_PORT: Final = 7
"""The echo service, RFC 862."""
INTERVAL_S: Final = 0.005
_QUIET_S: Final = 0.5
_TAIL_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the prober saw.

    Attributes:
        address, port: whom it asked.
        interval_ms: between two questions: the resolution of the figures.
        sent, lost: questions, and how many never had an answer.
        gap_ms: longest time between two answers, while the migration ran.
        quiet_gap_ms: the same in the half second before it: the noise of the measurement.
    """

    address: str
    port: int
    interval_ms: float
    sent: int
    lost: int
    gap_ms: float
    quiet_gap_ms: float


@dataclass(slots=True)
class GapMeter:
    """Counts questions and answers. Pure: the times come from outside, in seconds of one clock.

    An answer is known by its sequence number; a second copy of it counts for nothing.
    """

    begin: float
    sent: int = 0
    gap: float = 0.0
    gap_at: float = 0.0
    _last: float = field(init=False)
    _open: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._last = self.begin

    def ask(self) -> int:
        """Count a question; returns its sequence number."""
        number = self.sent
        self.sent += 1
        self._open.add(number)
        return number

    def answer(self, number: int, now: float) -> bool:
        """Count an answer. False if it is none to an open question."""
        if number not in self._open:
            return False
        self._open.discard(number)
        self._stretch(now)
        self._last = now
        return True

    def close(self, now: float) -> None:
        """The measurement ends: a silence that still lasts counts as a gap."""
        if self._open:
            self._stretch(now)

    def restart(self, now: float) -> float:
        """Forget the longest gap, and return it in seconds. Open questions stay open."""
        gap, self.gap, self._last = self.gap, 0.0, now
        return gap

    @property
    def lost(self) -> int:
        """Questions without an answer so far."""
        return len(self._open)

    def _stretch(self, now: float) -> None:
        if now - self._last > self.gap:
            self.gap, self.gap_at = now - self._last, self._last


def parse_target(text: str) -> tuple[str, int]:
    """'192.0.2.7', 'web1:7007' or '[2001:db8::7]:7' as address and port; the port is 7 (echo) if not given.

    Raises:
        SpecError: it is none of these.
    """
    hint = "write it like 192.0.2.7 or 192.0.2.7:7"
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") > 1:
        address, port = text, ""
    else:
        address, _, port = text.partition(":")
    if not address or not address.isprintable() or " " in address or text.endswith(":"):
        raise SpecError(f"{quoted(text)} is not an address", path="--probe", hint=hint)
    if not port:
        return address, ECHO_PORT
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise SpecError(f"{quoted(port)} is not a port", path="--probe", hint=hint)
    return address, int(port)


class Prober:
    """A running probe. Made by `probing`."""

    def __init__(self, address: str, port: int, peer: UdpPeer, interval: float) -> None:
        self._peer = peer
        self._address, self._port, self._interval = address, port, interval
        self._stop = threading.Event()
        self._meter = GapMeter(time.monotonic())
        self._lock = threading.Lock()
        self._quiet = 0.0
        self._answered = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vmkit-probe", daemon=True)

    def start(self) -> None:
        """Begin, and take the measure of the quiet guest first. Takes half a second."""
        self._thread.start()
        time.sleep(_QUIET_S)
        with self._lock:
            self._quiet = self._meter.restart(time.monotonic())

    def finish(self) -> ProbeReport:
        """Wait for one more answer (up to 3 s), stop, and say what was seen."""
        self._answered.clear()
        self._answered.wait(_TAIL_S)
        self.stop()
        with self._lock:
            meter = self._meter
            meter.close(time.monotonic())
            return ProbeReport(
                self._address,
                self._port,
                self._interval * 1000,
                meter.sent,
                meter.lost,
                round(meter.gap * 1000, 1),
                round(self._quiet * 1000, 1),
            )

    def stop(self) -> None:
        """End the thread. It is safe to call twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            if now >= due:
                with self._lock:
                    number = self._meter.ask()
                self._peer.send(b"vmkit %d" % number)
                due = max(due + self._interval, now)  # no burst after a stall of our own
            for data in self._peer.receive(due - time.monotonic()):
                word = data.removeprefix(b"vmkit ")
                ours = word != data and word.isdigit()
                with self._lock:
                    if ours and self._meter.answer(int(word), time.monotonic()):
                        self._answered.set()


@contextlib.contextmanager
def probing(text: str | None, *, interval: float = INTERVAL_S, patience: float = 3.0) -> Iterator[Prober | None]:
    """Probe the address while the block runs; None without one.

    Raises:
        SpecError: it is not an address.
        RefusedError: nothing answers there, so there would be nothing to measure.
    """
    if text is None:
        yield None
        return
    address, port = parse_target(text)
    with UdpPeer(address, port) as peer:
        if peer.ask(b"vmkit", timeout=patience) is None:
            raise RefusedError(
                f"nothing answers by UDP at {address} port {port}, so the gap could not be measured",
                hint="give the address of a guest that echoes UDP (the micro image does), or leave --probe out",
            )
        prober = Prober(address, port, peer, interval)
        try:
            prober.start()
            yield prober
        finally:
            prober.stop()
