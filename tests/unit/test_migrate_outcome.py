"""What became of a migration: the decision table over what both hosts say."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import CancelledError, DeadlineError, EffectError, IndeterminateError, RefusedError
from vmkit.hypervisor.domain import DomainState, JobStats
from vmkit.hypervisor.migration import Sighting
from vmkit.migrate.failing import failure
from vmkit.migrate.outcome import Action, Intent, Place, Seen, Verdict, classify, decide
from vmkit.migrate.recovery import intent_of, no_resume
from vmkit.migrate.session import Stop, StopReason, Transfer
from vmkit.migrate.settle import Settled

INTENT = Intent(was_paused=False, persistent=True, target_defined=False)
TRANSIENT = Intent(was_paused=False, persistent=False, target_defined=False)
PAUSED = Intent(was_paused=True, persistent=True, target_defined=False)
DEFINED_BOTH = Intent(was_paused=False, persistent=True, target_defined=True)
COLD = replace(INTENT, cold=True)
COLD_DEFINED_BOTH = replace(DEFINED_BOTH, cold=True)

R, A, D, H, B, P, U, C, HANDED, PULLING, BROKEN = (
    Seen.RUNNING,
    Seen.ABSENT,
    Seen.DEFINED,
    Seen.HALTED,
    Seen.BUSY,
    Seen.PAUSED,
    Seen.UNREACHABLE,
    Seen.CRASHED,
    Seen.HANDED,
    Seen.PULLING,
    Seen.BROKEN,
)


@pytest.mark.parametrize(
    ("source", "target", "intent", "place", "actions"),
    [
        # nothing went across
        (R, A, INTENT, Place.SOURCE, ()),
        (R, H, INTENT, Place.SOURCE, (Action.REMOVE_INCOMING,)),
        (R, D, INTENT, Place.SOURCE, (Action.FORGET_TARGET,)),
        (R, D, DEFINED_BOTH, Place.SOURCE, ()),
        (P, A, INTENT, Place.SOURCE, ()),
        (P, H, PAUSED, Place.SOURCE, (Action.REMOVE_INCOMING,)),
        # all of it did
        (A, R, INTENT, Place.TARGET, (Action.DEFINE_TARGET,)),
        (A, P, PAUSED, Place.TARGET, (Action.DEFINE_TARGET,)),
        (D, R, INTENT, Place.TARGET, (Action.DEFINE_TARGET, Action.FORGET_SOURCE)),
        (H, R, INTENT, Place.TARGET, (Action.DEFINE_TARGET, Action.STOP_SOURCE, Action.FORGET_SOURCE)),
        (A, R, TRANSIENT, Place.TARGET, ()),
        (H, R, TRANSIENT, Place.TARGET, (Action.STOP_SOURCE,)),
        # cut off in the switch-over
        (H, A, INTENT, Place.SOURCE, (Action.RESUME_SOURCE,)),
        (H, A, PAUSED, Place.SOURCE, ()),
        (H, A, TRANSIENT, Place.UNKNOWN, ()),
        (H, D, DEFINED_BOTH, Place.UNKNOWN, ()),
        (H, D, INTENT, Place.UNKNOWN, ()),
        (H, H, INTENT, Place.WAIT, ()),
        (A, H, INTENT, Place.UNKNOWN, ()),
        # libvirt is still at it
        (B, A, INTENT, Place.WAIT, ()),
        (B, B, INTENT, Place.WAIT, ()),
        (R, B, INTENT, Place.WAIT, ()),
        # two copies, or a host that is silent
        (R, R, INTENT, Place.UNKNOWN, ()),
        (R, P, INTENT, Place.UNKNOWN, ()),
        (U, R, INTENT, Place.UNKNOWN, ()),
        (R, U, INTENT, Place.UNKNOWN, ()),
        (U, U, INTENT, Place.UNKNOWN, ()),
        # the guest ended by itself
        (D, A, INTENT, Place.NOWHERE, ()),
        (D, H, INTENT, Place.NOWHERE, (Action.REMOVE_INCOMING,)),
        (D, D, INTENT, Place.NOWHERE, (Action.FORGET_TARGET,)),
        (A, D, INTENT, Place.NOWHERE, ()),
        (A, A, TRANSIENT, Place.NOWHERE, ()),
        (A, A, INTENT, Place.UNKNOWN, ()),
        (C, A, INTENT, Place.SOURCE, ()),
        # post-copy: under way, done but for the source, and cut off
        (HANDED, PULLING, INTENT, Place.WAIT, ()),
        (A, PULLING, INTENT, Place.WAIT, ()),
        (HANDED, R, INTENT, Place.TARGET, (Action.DEFINE_TARGET, Action.STOP_SOURCE, Action.FORGET_SOURCE)),
        (HANDED, P, TRANSIENT, Place.TARGET, (Action.STOP_SOURCE,)),
        (HANDED, A, INTENT, Place.UNKNOWN, ()),
        (HANDED, D, INTENT, Place.UNKNOWN, ()),
        (HANDED, H, INTENT, Place.UNKNOWN, ()),
        (BROKEN, BROKEN, INTENT, Place.SPLIT, ()),
        (BROKEN, PULLING, INTENT, Place.SPLIT, ()),
        (HANDED, BROKEN, INTENT, Place.SPLIT, ()),
        (BROKEN, A, INTENT, Place.UNKNOWN, ()),
        (A, BROKEN, INTENT, Place.UNKNOWN, ()),
        (D, BROKEN, INTENT, Place.UNKNOWN, ()),
        (BROKEN, U, INTENT, Place.UNKNOWN, ()),
        (PULLING, R, INTENT, Place.UNKNOWN, ()),
        (PULLING, A, INTENT, Place.UNKNOWN, ()),
        # it was shut off
        (D, A, COLD, Place.SOURCE, ()),
        (D, D, COLD, Place.SOURCE, (Action.FORGET_TARGET,)),
        (D, D, COLD_DEFINED_BOTH, Place.SOURCE, ()),
        (A, D, COLD, Place.TARGET, ()),
        (A, D, COLD_DEFINED_BOTH, Place.TARGET, ()),
        (A, R, COLD, Place.TARGET, ()),
        (D, R, COLD, Place.TARGET, (Action.FORGET_SOURCE,)),  # started there before it was forgotten here
        (R, D, COLD, Place.SOURCE, (Action.FORGET_TARGET,)),
        (R, A, COLD, Place.SOURCE, ()),
        (R, R, COLD, Place.UNKNOWN, ()),
        (A, A, COLD, Place.UNKNOWN, ()),
        (U, D, COLD, Place.UNKNOWN, ()),
        (D, U, COLD, Place.UNKNOWN, ()),
        (D, B, COLD, Place.UNKNOWN, ()),
    ],
)
def test_table(source: Seen, target: Seen, intent: Intent, place: Place, actions: tuple[Action, ...]) -> None:
    verdict = decide(source, target, intent)
    assert (verdict.place, verdict.actions) == (place, actions)
    assert verdict.why


intents = st.builds(Intent, *[st.booleans()] * 3, touched=st.just(True), cold=st.booleans())


@given(st.sampled_from(Seen), st.sampled_from(Seen), intents)
def test_never_two_copies_and_never_none_by_our_own_doing(source: Seen, target: Seen, intent: Intent) -> None:
    verdict = decide(source, target, intent)
    if Action.RESUME_SOURCE in verdict.actions:
        assert (source, target) == (Seen.HALTED, Seen.ABSENT)
        assert intent.persistent
        assert not intent.was_paused
    if Action.STOP_SOURCE in verdict.actions:  # the copy that goes stands still, and the other is alive
        assert source in (Seen.HALTED, Seen.HANDED)
        assert target in (Seen.RUNNING, Seen.PAUSED, Seen.CRASHED)
    if {source, target} & {Seen.PULLING, Seen.BROKEN}:  # neither half of a post-copy is ever touched
        assert verdict.actions == ()
    if Action.REMOVE_INCOMING in verdict.actions:
        assert target is Seen.HALTED
    if Action.FORGET_TARGET in verdict.actions:
        assert not intent.target_defined
        assert target is Seen.DEFINED
    if Action.FORGET_SOURCE in verdict.actions:
        assert verdict.place is Place.TARGET
    if verdict.place in (Place.UNKNOWN, Place.WAIT):
        assert verdict.actions == ()


def test_a_host_that_is_silent_is_never_acted_upon() -> None:
    for other, intent in itertools.product(Seen, (INTENT, TRANSIENT, PAUSED)):
        assert decide(Seen.UNREACHABLE, other, intent) == decide(Seen.UNREACHABLE, other, intent)
        assert decide(Seen.UNREACHABLE, other, intent).place is Place.UNKNOWN
        assert decide(other, Seen.UNREACHABLE, intent).place is Place.UNKNOWN


def test_nothing_is_done_where_nothing_was_touched() -> None:
    intent = intent_of("preflight", {"uuid": "x", "source": "a", "target": "b"})
    assert decide(Seen.RUNNING, Seen.RUNNING, intent) == Verdict(
        Place.SOURCE, (), "the transfer had not begun, so nothing was touched"
    )
    assert intent_of("transfer", {"was_paused": True, "persistent": False}).touched


@pytest.mark.parametrize(
    ("state", "reason", "migrating", "expected"),
    [
        (DomainState.RUNNING, "", False, Seen.RUNNING),
        (DomainState.RUNNING, "", True, Seen.BUSY),
        (DomainState.PAUSED, "user", False, Seen.PAUSED),
        (DomainState.PAUSED, "I/O error", False, Seen.PAUSED),
        (DomainState.PAUSED, "migration", False, Seen.HALTED),
        (DomainState.PAUSED, "starting up", False, Seen.HALTED),
        (DomainState.PAUSED, "migration", True, Seen.BUSY),
        (DomainState.PAUSED, "post-copy", True, Seen.BUSY),
        (DomainState.PAUSED, "post-copy", False, Seen.HANDED),
        (DomainState.PAUSED, "post-copy failed", True, Seen.BROKEN),
        (DomainState.RUNNING, "post-copy", False, Seen.PULLING),
        (DomainState.RUNNING, "post-copy failed", False, Seen.BROKEN),
        (DomainState.SHUTOFF, "", False, Seen.DEFINED),
        (DomainState.CRASHED, "", False, Seen.CRASHED),
    ],
)
def test_reading_one_hosts_answer(state: DomainState, reason: str, migrating: bool, expected: Seen) -> None:
    seen = Sighting("web1", "u", state, reason, persistent=True, autostart=False, job=migrating, migrating=migrating)
    assert classify(seen) is expected
    assert classify(None) is Seen.ABSENT


# -- the error that a failed transfer becomes

STATS = JobStats(True, 6000, 2**28, 2**27, 2**26, 10 * 2**20, 40 * 2**20, 5, 900, {})


def settled(place: Place, source: Seen = Seen.RUNNING, target: Seen = Seen.ABSENT) -> Settled:
    return Settled(Verdict(place, (), "because"), source, target, 1, (), ())


def error_of(state: Transfer, outcome: Settled) -> Exception:
    return failure("web1", state, outcome, source="qemu://a", target="qemu://b", deadline=6.0)


def test_a_deadline_says_where_the_vm_is_and_why_it_was_slow() -> None:
    error = error_of(Transfer(stop=Stop(StopReason.DEADLINE), last=STATS, rounds=5), settled(Place.SOURCE))
    assert isinstance(error, DeadlineError)
    assert error.message == "the migration of web1 was given up after 6.0 s; the VM runs on at qemu://a"
    assert error.details == (
        "64M were still to be sent in round 5; 40M/s became dirty, 10M/s could be sent: it would never have ended",
    )


def test_who_cancelled_is_named() -> None:
    error = error_of(Transfer(stop=Stop(StopReason.CANCELLED, "Ctrl-C")), settled(Place.SOURCE))
    assert isinstance(error, CancelledError)
    assert "cancelled by Ctrl-C; the VM runs on at qemu://a" in str(error)
    foreign = error_of(Transfer(error=CancelledError("x")), settled(Place.SOURCE))
    assert "aborted by another program" in str(foreign)


def test_other_ends() -> None:
    assert isinstance(error_of(Transfer(), settled(Place.UNKNOWN, Seen.HALTED)), IndeterminateError)
    assert isinstance(error_of(Transfer(), settled(Place.NOWHERE, Seen.DEFINED)), EffectError)
    refused = RefusedError("no")
    assert error_of(Transfer(error=refused), settled(Place.SOURCE)) is refused
    failed = error_of(Transfer(error=EffectError("connection refused")), settled(Place.SOURCE))
    assert isinstance(failed, EffectError)
    assert "connection refused" in str(failed)
    assert "the VM runs on at qemu://a" in str(failed)


def test_a_split_vm_is_never_called_failed() -> None:
    error = error_of(Transfer(switched=2.0), settled(Place.SPLIT, Seen.BROKEN, Seen.BROKEN))
    assert isinstance(error, IndeterminateError)
    assert "stop neither" in str(error.hint)


@pytest.mark.parametrize(
    ("here", "there", "word"),
    [
        ((11, 4, 0), (11, 4, 0), None),
        ((8, 5, 0), (11, 1, 0), None),
        ((11, 3, 0), (11, 4, 0), "crash"),
        ((11, 4, 0), (11, 2, 0), "crash"),
        ((8, 4, 0), (11, 4, 0), "8.5"),
    ],
)
def test_where_a_post_copy_can_be_taken_up(
    here: tuple[int, int, int], there: tuple[int, int, int], word: str | None
) -> None:
    why = no_resume(here, there)
    assert why is None if word is None else word in str(why)


def test_a_transfer_that_was_given_up_says_why_and_what_to_try() -> None:
    stop = Stop(StopReason.GAVE_UP, "it would never end", "try --mode hybrid")
    error = error_of(Transfer(stop=stop, last=STATS), settled(Place.SOURCE))
    assert isinstance(error, EffectError)
    assert str(error) == "the migration of web1 was given up: it would never end; the VM runs on at qemu://a"
    assert error.hint == "try --mode hybrid"
    late = Stop(StopReason.GAVE_UP, "too slow", "", late=True)
    assert isinstance(error_of(Transfer(stop=late), settled(Place.SOURCE)), DeadlineError)
