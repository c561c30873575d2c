"""The gap that a prober sees: the arithmetic with made-up times, the thread against an echo on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import RefusedError, SpecError
from vmkit.migrate.probe import GapMeter, parse_target, probing


def test_the_gap_is_the_longest_time_between_two_answers() -> None:
    meter = GapMeter(begin=0.0)
    for i in range(10):  # answered at once, every 5 ms, until 45 ms
        assert meter.answer(meter.ask(), i * 0.005)
    lost = [meter.ask() for _ in range(20)]
    assert meter.answer(meter.ask(), 0.145)
    assert meter.gap == pytest.approx(0.1)
    assert meter.gap_at == pytest.approx(0.045)
    assert (meter.sent, meter.lost) == (31, 20)
    assert meter.answer(lost[0], 0.146)  # a late answer is an answer
    assert meter.lost == 19


def test_an_answer_counts_once_and_only_if_it_was_asked_for() -> None:
    meter = GapMeter(begin=0.0)
    number = meter.ask()
    assert not meter.answer(99, 0.1)
    assert meter.answer(number, 0.2)
    assert not meter.answer(number, 0.9)
    assert meter.gap == pytest.approx(0.2)


def test_a_silence_that_lasts_counts() -> None:
    meter = GapMeter(begin=0.0)
    meter.answer(meter.ask(), 0.01)
    meter.ask()
    meter.close(5.0)
    assert meter.gap == pytest.approx(4.99)
    quiet = GapMeter(begin=0.0)
    quiet.answer(quiet.ask(), 0.01)
    quiet.close(5.0)  # nothing was asked since
    assert quiet.gap == pytest.approx(0.01)


def test_restart_begins_a_new_measurement() -> None:
    meter = GapMeter(begin=0.0)
    meter.answer(meter.ask(), 0.3)
    assert meter.restart(0.4) == pytest.approx(0.3)
    meter.answer(meter.ask(), 0.41)
    assert meter.gap == pytest.approx(0.01)


@given(st.lists(st.floats(0.001, 10.0), min_size=1, max_size=50))
def test_gap_equals_the_largest_step(steps: list[float]) -> None:
    meter, now = GapMeter(begin=0.0), 0.0
    for step in steps:
        now += step
        meter.answer(meter.ask(), now)
    assert meter.gap == pytest.approx(max(steps))
    assert meter.lost == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.7", ("192.0.2.7", 7)),
        ("web1:7007", ("web1", 7007)),
        ("[2001:db8::7]:9", ("2001:db8::7", 9)),
        ("2001:db8::7", ("2001:db8::7", 7)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["", ":7", "a b", "192.0.2.7:", "192.0.2.7:x", "192.0.2.7:70000", "192.0.2.7:0"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(SpecError, match="--probe"):
        parse_target(text)


class Echo:
    """An echo on loopback that can be told to be silent."""

    def __init__(self) -> None:
        import socket

        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.2)
        self.port: int = self.socket.getsockname()[1]
        self.silent = False
        self.ended = False
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while not self.ended:
            try:
                data, sender = self.socket.recvfrom(2048)
            except TimeoutError:
                continue
            if not self.silent:
                self.socket.sendto(data, sender)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.ended = True
    server.thread.join(5)
    server.socket.close()


def test_a_silence_of_a_real_echo_is_measured(echo: Echo) -> None:
    with probing(f"127.0.0.1:{echo.port}") as prober:
        assert prober is not None
        echo.silent = True
        time.sleep(0.3)
        echo.silent = False
        report = prober.finish()
    assert 250 <= report.gap_ms < 2000
    assert report.quiet_gap_ms < 250
    assert report.sent >= report.lost > 10
    assert report.interval_ms == 5.0


def test_nothing_is_begun_where_nothing_answers() -> None:
    with pytest.raises(RefusedError, match="nothing answers"), probing("127.0.0.1:9", patience=0.3):
        raise AssertionError("not reached")
    with probing(None) as prober:
        assert prober is None
