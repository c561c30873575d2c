"""Carrying many moves out: side by side within the limits, past failures, and to a stop where that is due."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vmkit.errors import CancelledError, EffectError, IndeterminateError, RefusedError, VmkitError
from vmkit.migrate.many import perform as module
from vmkit.migrate.many.api import Planned
from vmkit.migrate.many.facts import OWN, Observed, room
from vmkit.migrate.many.perform import perform
from vmkit.migrate.many.solve import Fleet, Limits, Move, Need, Room, drain
from vmkit.progress import Event, Note, Started, silent


class Hosts:
    """Stands for the sessions: each takes a moment, and fails if it was told to."""

    def __init__(self) -> None:
        self.fails: dict[str, VmkitError] = {}
        self.now: list[str] = []
        self.most = 0
        self.begun: list[str] = []
        self._lock = threading.Lock()

    def migrate(self, vm: str, to: str, *, reporter: Any, **how: Any) -> Any:
        with self._lock:
            self.begun.append(vm)
            self.now.append(vm)
            self.most = max(self.most, len(self.now))
        reporter(Started("transfer"))
        reporter(Note("moving"))
        time.sleep(0.02)
        with self._lock:
            self.now.remove(vm)
        if vm in self.fails:
            raise self.fails[vm]
        return SimpleNamespace(total_ms=20, downtime_ms=1)


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    made = Hosts()

    @contextlib.contextmanager
    def open_host(*_args: object) -> Iterator[None]:
        yield None

    monkeypatch.setattr(module, "bounded", open_host)
    monkeypatch.setattr(module, "Migrations", lambda _connect: made)
    return made


def seen(*sizes: int, there: int = 100) -> Observed:
    vms = tuple(Need(f"u{i}", size, 1) for i, size in enumerate(sizes))
    fleet = Fleet({"a": Room(1000, 99), "b": Room(there, 99)}, {"a": vms, "b": ()})
    return Observed(fleet, {v.name: f"web{v.name[1:]}" for v in vms}, {"a": ("off",), "b": ()})


def test_no_more_at_once_than_may_be(hosts: Hosts) -> None:
    what = seen(1, 2, 3, 4, 5)
    moves = drain(what.fleet, "a") or ()
    done = perform(what, moves, Limits(2, 2), {}, silent)
    assert [d.error for d in done] == [None] * 5
    assert (done[0].total_ms, done[0].downtime_ms) == (20, 1)
    assert sorted(d.vm for d in done) == [f"web{i}" for i in range(5)]
    assert hosts.most <= 2
    assert hosts.begun == [m.vm for m in moves]


def test_events_say_of_which_vm(hosts: Hosts) -> None:
    what, events = seen(1), list[Event]()
    perform(what, drain(what.fleet, "a") or (), Limits(), {}, events.append)
    assert events == [Started("web0: transfer"), Note("web0: moving")]


def test_others_go_on_where_one_fails(hosts: Hosts) -> None:
    hosts.fails["u4"] = EffectError("the link broke")
    what = seen(1, 2, 3, 4, 5)
    done = perform(what, drain(what.fleet, "a") or (), Limits(1, 1), {}, silent)
    assert {d.vm for d in done if d.error is None} == {"web0", "web1", "web2", "web3"}


def test_what_waited_for_the_room_of_one_that_failed(hosts: Hosts) -> None:
    hosts.fails["u1"] = RefusedError("no")
    fleet = Fleet({h: Room(9, 9) for h in "abc"}, {"a": (Need("u0", 8, 1),), "b": (Need("u1", 4, 1),), "c": ()})
    what = Observed(fleet, {"u0": "big", "u1": "small"}, {})
    done = perform(what, [Move("u1", "b", "c"), Move("u0", "a", "b")], Limits(), {}, silent)
    assert [d.vm for d in done] == ["small", "big"]
    assert "no room for it on b" in str(done[1].error)
    assert hosts.begun == ["u1"]


@pytest.mark.parametrize("error", [IndeterminateError("where?"), KeyError("a mistake")])
def test_nothing_begins_while_it_is_not_known_where_one_is(hosts: Hosts, error: Exception) -> None:
    hosts.fails["u2"] = error  # type: ignore[assignment]
    what = seen(1, 2, 3)
    done = perform(what, drain(what.fleet, "a") or (), Limits(1, 1), {}, silent)
    assert hosts.begun == ["u2"]
    assert isinstance(done[0].error, IndeterminateError)
    assert all("not begun" in str(d.error) for d in done[1:])


def test_ctrl_c_begins_nothing_more(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def pressed() -> Iterator[Any]:
        yield lambda: "Ctrl-C"

    monkeypatch.setattr("vmkit.system.interrupts.deferred", pressed)
    what = seen(1, 2)
    done = perform(what, drain(what.fleet, "a") or (), Limits(), {}, silent)
    assert hosts.begun == []
    assert all(isinstance(d.error, CancelledError) for d in done)


def test_the_plan_says_how_full_hosts_become() -> None:
    what = seen(10, 20)
    plan = Planned("Empty a", "again", what, drain(what.fleet, "a") or (), (), ("off stays",)).plan(Limits())
    assert [(s.verb, s.what) for s in plan.steps] == [
        ("migrate", "web1 from a to b"),
        ("migrate", "web0 from a to b"),
    ]
    assert {c.subject: c.value for c in plan.choices}["host b"] == "0% full, then 30%"
    assert plan.warnings == ("off stays",)


def test_room_of_a_host() -> None:
    gib = 2**30
    assert room((8 * gib, 4 * gib), 4, 2 * gib, 4.0) == Room(6 * gib - OWN, 16)  # what is free, and what its VMs have
    assert room((8 * gib, 7 * gib), 4, 6 * gib, 1.5).memory == 8 * gib - OWN  # they have not touched all of theirs
    assert room((100 * gib, 100 * gib), 1, 0, 1.0).memory == 95 * gib
    assert room((gib // 4, 0), 1, 0, 1.0).memory == 0
