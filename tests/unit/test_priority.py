"""Going before other work: for a while only, and no error where it is not permitted."""

from __future__ import annotations

import os
import threading

import pytest

from vmkit.system.priority import hurried


def test_it_ends_with_the_block() -> None:
    before = os.sched_getscheduler(0)
    inside: list[int] = []

    def look() -> None:
        inside.append(os.sched_getscheduler(0))

    with hurried():
        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert len(set(inside)) == 1
    assert inside[0] in (os.SCHED_RR, before)
    assert os.sched_getscheduler(0) == before


def test_without_permission_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    before = os.sched_getscheduler(0)
    with hurried():
        assert os.sched_getscheduler(0) == before
