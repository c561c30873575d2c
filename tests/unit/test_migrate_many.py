"""Emptying a host and evening several out: the plans, on fleets of all kinds."""

from __future__ import annotations

import random
import statistics
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from vmkit.migrate.many.solve import Fleet, Limits, Move, Need, Room, carried_out, drain, may_start, rebalance, stuck

GIB = 2**30


def fleet(rooms: dict[str, tuple[int, int]], **at: list[int]) -> Fleet:
    """Hosts with GiB and vCPUs, and VMs of so many GiB and one vCPU on them."""
    vms = {h: tuple(Need(f"{h}-{i}", size * GIB, 1) for i, size in enumerate(at.get(h, []))) for h in rooms}
    return Fleet({h: Room(memory * GIB, vcpus) for h, (memory, vcpus) in rooms.items()}, vms)


def test_each_vm_moves_once() -> None:
    f = fleet({"a": (32, 32), "b": (16, 32), "c": (16, 32)}, a=[8, 4, 4, 2], b=[8])
    moves = drain(f, "a")
    assert moves is not None
    assert sorted(m.vm for m in moves) == ["a-0", "a-1", "a-2", "a-3"]
    assert {m.target for m in moves} == {"b", "c"}  # the emptier one first, so both are used
    assert carried_out(f, moves).at["a"] == ()


def test_room_is_made_where_it_must_be_and_only_there() -> None:
    """8 GiB fit nowhere until a VM of 4 GiB has gone from one host to the other."""
    f = fleet({"a": (16, 32), "b": (12, 32), "c": (12, 32)}, a=[8], b=[4, 4], c=[4, 4])
    moves = drain(f, "a")
    assert moves is not None
    assert [m.why for m in moves] == ["to make room", "it leaves that host"]
    assert carried_out(f, moves).at["a"] == ()


def test_what_fits_nowhere() -> None:
    f = fleet({"a": (32, 32), "b": (8, 32)}, a=[16, 2])
    assert drain(f, "a") is None
    assert [v.name for v in stuck(f, "a")] == ["a-0"]
    f = fleet({"a": (32, 32), "b": (8, 1)}, a=[2, 2])  # too few CPUs
    assert drain(f, "a") is None
    assert stuck(f, "a") == []


def test_what_a_host_cannot_run_goes_to_another() -> None:
    f = fleet({"a": (8, 8), "b": (64, 64), "c": (8, 8)}, a=[2])
    banned = Fleet(f.rooms, f.at, frozenset([("a-0", "b")]))
    assert [m.target for m in drain(banned, "a") or ()] == ["c"]
    assert [v.name for v in stuck(Fleet(f.rooms, f.at, frozenset(product(["a-0"], "bc"))), "a")] == ["a-0"]


def test_one_move_where_one_will_do() -> None:
    f = fleet({"a": (16, 64), "b": (16, 64)}, a=[4, 2, 1, 1])
    (move,) = rebalance(f, 0.05)
    assert (move.vm, move.target) == ("a-0", "b")
    assert rebalance(carried_out(f, [move]), 0.05) == ()


def test_nothing_to_even_out() -> None:
    assert rebalance(fleet({"a": (16, 16), "b": (16, 16)}, a=[4], b=[4]), 0.1) == ()
    assert rebalance(fleet({"a": (16, 16), "b": (16, 16)}, a=[8]), 0.1) == ()  # it would only change sides


def test_how_many_at_once() -> None:
    f = fleet({"a": (64, 64), "b": (64, 64), "c": (6, 64)}, a=[4, 4, 4, 4])
    first, second, third = (Move(f"a-{i}", "a", "b") for i in range(3))
    assert may_start(f, first, [], Limits(1, 1))
    assert not may_start(f, second, [first], Limits(1, 1))
    assert may_start(f, second, [first], Limits(2, 2))
    assert not may_start(f, second, [first], Limits(2, 1))
    assert not may_start(f, third, [first, second], Limits(2, 2))
    away = Move("a-1", "a", "c")
    assert may_start(f, away, [first], Limits(2, 1))
    assert not may_start(f, away, [Move("a-0", "a", "c")], Limits(4, 4))  # 8 GiB would be on the way to 6


# -- properties


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    hosts = [f"h{i}" for i in range(draw(st.integers(2, 4)))]
    rooms = {h: Room(draw(st.integers(4, 16)), draw(st.integers(4, 16))) for h in hosts}
    at: dict[str, tuple[Need, ...]] = {}
    for h in hosts:
        vms: list[Need] = []
        for i in range(draw(st.integers(0, 4))):
            one = Need(f"{h}-{i}", draw(st.integers(1, 6)), draw(st.integers(1, 3)))
            if Fleet(rooms, {h: tuple(vms)}).fits(one, h):
                vms.append(one)
        at[h] = tuple(vms)
    pairs = [(v.name, h) for host in hosts for v in at[host] for h in hosts if h != host]
    bans = draw(st.sets(st.sampled_from(pairs), max_size=3)) if pairs else set()
    return Fleet(rooms, at, frozenset(bans))


def within(f: Fleet) -> None:
    for host, room in f.rooms.items():
        used = f.used(host)
        assert used.memory <= room.memory
        assert used.vcpus <= room.vcpus


def direct(f: Fleet, host: str) -> bool:
    """Whether some placement without moves of other VMs exists: all of them are tried."""
    others = [h for h in f.rooms if h != host]
    for targets in product(others, repeat=len(f.at[host])):
        try:
            carried_out(f, [Move(v.name, host, t) for v, t in zip(f.at[host], targets, strict=True)])
        except ValueError:
            continue
        return True
    return False


@given(fleets())
def test_a_drained_host_is_empty_and_nothing_is_ever_too_full(f: Fleet) -> None:
    moves = drain(f, "h0")
    if moves is None:
        assert not direct(f, "h0")
        return
    after = carried_out(f, moves, within)
    assert after.at["h0"] == ()
    assert sum(len(v) for v in after.at.values()) == sum(len(v) for v in f.at.values())
    assert all(m.target != "h0" for m in moves)
    if direct(f, "h0"):  # then the fewest moves are one for each VM
        assert len(moves) == len(f.at["h0"])


def uneven(f: Fleet) -> float:
    return statistics.pvariance([f.share(h) for h in f.rooms])


@given(fleets(), st.floats(0.02, 0.5))
def test_evening_out_never_makes_it_worse(f: Fleet, tolerance: float) -> None:
    moves = rebalance(f, tolerance)
    after = carried_out(f, moves, within)
    if f.spread <= tolerance:
        assert moves == ()
    elif moves and after.spread > tolerance:  # as near as could be had
        assert uneven(after) < uneven(f)
    if len(moves) > 1:  # one would not have done
        for source, target in product(f.rooms, f.rooms):
            for vm in f.at[source]:
                if source != target and f.share(source) > f.share(target) and f.takes(vm, target):
                    assert f.moved(vm, source, target).spread > tolerance


@given(fleets(), st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_side_by_side_in_any_order_of_ending(f: Fleet, host: int, link: int, chance: random.Random) -> None:
    """Moves begin in their order and end in any: nothing is too full with every VM on both hosts, and all get done."""
    moves = list(drain(f, "h0") or rebalance(f, 0.1))
    limits, under_way, waiting = Limits(host, link), list[Move](), list(moves)
    while waiting or under_way:
        while waiting and may_start(f, waiting[0], under_way, limits):
            under_way.append(waiting.pop(0))
        assert under_way, "nothing is under way and the next one may not begin"
        vms = {v.name: v for vms in f.at.values() for v in vms}
        for name in f.rooms:
            coming = [vms[m.vm] for m in under_way if m.target == name]
            assert f.used(name).memory + sum(v.memory for v in coming) <= f.rooms[name].memory
            assert sum(name in (m.source, m.target) for m in under_way) <= host
        ended = under_way.pop(chance.randrange(len(under_way)))
        f = f.moved(vms[ended.vm], ended.source, ended.target)
    if moves and all(m.source == "h0" for m in moves) and f.at["h0"] == ():
        within(f)


def test_many_vms() -> None:
    rooms = {f"h{i}": (256, 256) for i in range(6)}
    f = fleet(rooms, h0=[1 + i % 4 for i in range(40)], h1=[4] * 20)
    moves = drain(f, "h0")
    assert moves is not None
    assert len(moves) == 40
    shares = [carried_out(f, moves).share(h) for h in rooms if h != "h0"]
    assert max(shares) - min(shares) < 0.5
    assert rebalance(f, 0.1)
