"""A transfer that stands still is given up, and one whose target has gone."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from vmkit.migrate import session
from vmkit.migrate.session import StopReason, Transfer
from vmkit.progress import silent
from vmkit.system.clock import Deadline


def watch(target: Any) -> Any:
    rest: tuple[Any, ...] = (Deadline(60.0), None, None, lambda: None, lambda: None, silent)
    return session._Watch(threading.Thread(), SimpleNamespace(), target, Transfer(), *rest)  # type: ignore[arg-type]


def stats(processed: int = 0, iteration: int = 0, disks: int = 0) -> Any:
    raw = {"disk_processed": disks}
    return SimpleNamespace(processed=processed, iteration=iteration, total=4096 * bool(processed), raw=raw)


def test_one_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "STALL_S", 0.0)
    one = watch(SimpleNamespace(alive=True))
    for seen in (None, None, stats(), stats(), stats(disks=1), stats(disks=2), stats(7), stats(8), stats(8, 2), None):
        assert one._stalls(seen) is None
    assert one._stalls(stats(9, 2)) is None
    stop = one._stalls(stats(9, 2))
    assert stop.reason is StopReason.GAVE_UP
    assert "nothing has been sent for 0 s" in stop.by


def test_one_that_stands_still_for_a_moment_goes_on() -> None:
    one = watch(SimpleNamespace(alive=True))
    assert [one._stalls(stats(9)) for _ in range(5)] == [None] * 5


def test_one_whose_target_has_gone_is_given_up() -> None:
    stop = watch(SimpleNamespace(alive=False))._stalls(None)
    assert stop.reason is StopReason.GAVE_UP
    assert stop.by == "the target does not answer any more"
    assert "then try again" in stop.hint
