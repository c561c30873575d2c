"""Steering a transfer, shown recorded runs of the pair lab and made-up ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vmkit.errors import NotFoundError, SpecError
from vmkit.migrate.control import AllowDowntime, Decision, GiveUp, Look, PostCopy, Steering, Terms
from vmkit.migrate.modes import Mode
from vmkit.migrate.policies import POLICIES, Kubevirt, Nova, Ovirt, Proxmox, Xen
from vmkit.migrate.replay import Recording, load, replay, replay_all, save

RUNS = Path(__file__).parents[1] / "data" / "migrate" / "runs"
MIB = 2**20


def decisions(policy: Steering, looks: list[Look]) -> list[tuple[Look, Decision]]:
    return [(look, d) for look in looks if (d := policy.step(look)) is not None]


def run(name: str) -> Recording:
    return load(RUNS / f"{name}.json")


def first_pass_done(recording: Recording) -> float:
    return next(look.t for look in recording.looks if look.iteration > 1)


def rounds(*dirty: int, bandwidth: int = 30, rate: int = 30, first: int = 180, poll: float = 0.5) -> Iterator[Look]:
    """A transfer with these MiB left at the start of each round, at `bandwidth` and `rate` MiB a second."""
    t, sent = 0.0, 0
    for number, size in enumerate((first, *dirty), 1):
        left = float(size)
        while left > 0:
            yield Look(t, number, 256 * MIB, sent, int(left * MIB), bandwidth * MIB, rate * MIB if number > 1 else 0)
            t, left, sent = t + poll, left - bandwidth * poll, sent + int(bandwidth * poll * MIB)


TERMS = Terms(budget=0.3, deadline=120.0, used=150 * MIB)


# -- recorded runs


def test_an_idle_guest_is_left_alone() -> None:
    recording = run("idle-again")
    assert recording.outcome["result"] == "arrived"
    assert decisions(Steering(recording.terms), recording.looks) == []


def test_a_guest_that_converges_is_left_alone() -> None:
    recording = run("64m-10m-at-30m")
    assert decisions(Steering(recording.terms), recording.looks) == []


def test_a_guest_that_never_converges_is_refused_within_5_s_of_the_evidence() -> None:
    recording = run("100m-max-at-30m")
    ((look, decision),) = decisions(Steering(recording.terms), recording.looks)
    assert isinstance(decision, GiveUp)
    assert "it would never end" in decision.why
    assert "--mode hybrid" in decision.hint
    assert look.t - first_pass_done(recording) < 5.0


def test_it_is_stopped_at_once_where_the_budget_allows() -> None:
    recording = run("100m-max-at-30m")
    ((look, decision),) = decisions(Steering(replace(recording.terms, budget=3.0)), recording.looks[:60])
    assert isinstance(decision, AllowDowntime)
    assert look.t - first_pass_done(recording) < 1.0
    assert decision.seconds * look.bandwidth > look.remaining  # QEMU does it


def test_it_goes_over_to_post_copy_where_that_is_allowed() -> None:
    recording = run("100m-max-at-30m")
    ((look, decision),) = decisions(Steering(replace(recording.terms, post_copy=True)), recording.looks)
    assert isinstance(decision, PostCopy)
    assert look.t - first_pass_done(recording) < 1.0


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.json")), ids=lambda p: p.stem)
def test_what_was_recorded_is_what_it_would_decide_again(path: Path) -> None:
    recording = load(path)
    again = replay(recording, Steering(recording.terms))
    ended = [m.what for m in recording.made]
    if ended == ["post-copy"]:
        assert again.end == "post-copy"
    elif not ended:
        assert again.end in ("switch", "goes on")  # the last look may be before the end


# -- made-up runs


def test_a_slow_convergence_is_waited_for() -> None:
    looks = list(rounds(100, 85, 72, 61, 52, 44, 37, 31, rate=25))
    assert decisions(Steering(TERMS), looks) == []


def test_the_budget_is_never_passed() -> None:
    for budget in (0.2, 0.5, 1.0, 2.0):
        policy = Steering(replace(TERMS, budget=budget))
        for look, decision in decisions(policy, list(rounds(*[40] * 12))):
            if isinstance(decision, AllowDowntime):
                assert decision.seconds <= budget + 0.001, look
                assert decision.seconds * look.bandwidth <= budget * max(look.bandwidth, policy.terms.link or 0) + 1


def test_a_known_link_lets_it_stop_for_more_at_the_same_budget() -> None:
    looks = list(rounds(*[60] * 6))
    slow = decisions(Steering(TERMS), looks)
    fast = decisions(Steering(replace(TERMS, link=500 * MIB)), looks)
    assert isinstance(slow[-1][1], GiveUp)
    assert [type(d) for _, d in fast] == [AllowDowntime]


def test_a_throttled_guest_is_given_time_while_it_gets_better() -> None:
    looks = [replace(look, throttle=40) for look in rounds(*[100] * 10)]
    assert decisions(Steering(replace(TERMS, throttle=True)), looks) == []
    stalled = [replace(look, throttle=99) for look in rounds(*[100] * 20)]
    ((_, decision),) = decisions(Steering(replace(TERMS, throttle=True)), stalled)
    assert isinstance(decision, GiveUp)


def test_a_first_pass_that_cannot_end_in_time_is_given_up_early() -> None:
    looks = list(rounds(first=250, bandwidth=5))
    ((look, decision),) = decisions(Steering(replace(TERMS, deadline=20.0)), looks)
    assert isinstance(decision, GiveUp)
    assert decision.late
    assert look.t <= 3.0


def test_modes() -> None:
    looks = list(rounds(100, 100, 100))
    ((look, decision),) = decisions(Steering(replace(TERMS, mode=Mode.POST_COPY, post_copy=True)), looks)
    assert (look.iteration, type(decision)) == (1, PostCopy)
    ((look, decision),) = decisions(Steering(replace(TERMS, mode=Mode.HYBRID, post_copy=True)), looks)
    assert (look.iteration, type(decision)) == (2, PostCopy)
    assert decisions(Steering(replace(TERMS, mode=Mode.STOP_COPY)), looks) == []
    little = list(rounds(4, 4, 4))
    ((_, decision),) = decisions(Steering(replace(TERMS, mode=Mode.HYBRID, post_copy=True)), little)
    assert isinstance(decision, AllowDowntime)


# -- other controllers


def test_published_policies_decide_as_published() -> None:
    looks = list(rounds(*[100] * 40))
    recording = Recording("guest", TERMS, looks)
    ends = {r.policy: r for r in replay_all(recording)}
    assert set(ends) == {make(TERMS).name for make in POLICIES}
    assert ends["virsh"].end == "goes on"
    assert (ends["xen"].end, ends["xen"].why) == ("switch", ends["xen"].why)
    assert ends["xen"].t < ends["ovirt"].t < ends["kubevirt"].t
    assert ends["ovirt"].end == ends["kubevirt"].end == "give up"
    assert ends["nova"].end == "goes on"  # by the clock: 75 s a GiB between its steps
    assert ends["proxmox"].end == "switch"  # it doubles without an end
    assert ends["vmkit"].end == "give up"
    assert ends["vmkit"].t < ends["xen"].t


def test_other_controllers_with_post_copy() -> None:
    recording = Recording("guest", replace(TERMS, post_copy=True), list(rounds(*[100] * 40)))
    for make in (Ovirt, Kubevirt):
        assert replay(recording, make(recording.terms)).end == "post-copy"
    slow = [replace(look, t=look.t * 40) for look in recording.looks]
    assert replay(Recording("guest", recording.terms, slow), Nova(recording.terms)).end in ("switch", "post-copy")
    for make in (Xen, Proxmox):
        assert replay(recording, make(recording.terms)).end == "switch"


def test_recordings_are_kept_whole(tmp_path: Path) -> None:
    recording = run("100m-max-at-30m-hybrid")
    save(recording, tmp_path / "again.json")
    assert load(tmp_path / "again.json") == recording
    with pytest.raises(NotFoundError):
        load(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"format": 1}')
    with pytest.raises(SpecError, match="not a recording"):
        load(tmp_path / "other.json")
