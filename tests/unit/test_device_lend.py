"""Lending functions and getting them back, on a machine of which only its devices exist; killed at every step."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from tests.unit.device_data import BEFORE, DEAD, PF, VF0, VF1, FakeMachine, Killed, claim_on, file_of
from vmkit.device import lend
from vmkit.device.claim import Claim
from vmkit.device.facts import VFIO, DeviceFacts
from vmkit.device.plan import Pick, Wish
from vmkit.errors import ConflictError, EffectError, UnsupportedError
from vmkit.system.vf import VfSettings

WANTED = VfSettings("52:54:00:00:00:01", 100, 0, 200, True, True)


def picks(facts: DeviceFacts, *, settings: VfSettings | None = WANTED, left: bool = False) -> list[Pick]:
    return [
        Pick(Wish(f"nics[{i}]", settings=settings), facts.functions[a], facts.functions[PF], "", left_behind=left)
        for i, a in enumerate((VF0, VF1))
    ]


def borrow(machine: FakeMachine) -> None:
    """What the creation of a VM does; the block is where the VM starts."""
    with lend.lent(machine, picks(machine.facts()), machine.facts(), vm="web1", uuid="uuid-1", work="create web1"):
        machine.capture("")


def release_all(machine: FakeMachine) -> None:
    """What `vmkit device release` does, by another process."""
    for claim in machine.claims():
        lend.give_back(machine, claim)


def test_lent_and_given_back() -> None:
    machine = FakeMachine()
    before = machine.state()
    borrow(machine)
    assert machine.driver == {VF0: VFIO, VF1: VFIO}
    assert machine.up == {"eth2"}
    assert machine.settings[0] == WANTED
    assert all(c.lent and c.driver == "igbvf" for c in machine.claims())
    assert machine.claims()[0].before == BEFORE
    release_all(machine)
    assert machine.state() == before


def test_the_claim_comes_first_and_goes_last() -> None:
    machine = FakeMachine()
    borrow(machine)
    steps = [s for s in machine.log if s.split()[0] in ("swap", "write", "set")]
    assert steps[0].startswith("swap")
    machine.log.clear()
    lend.give_back(machine, machine.claims()[0])
    acts = [s for s in machine.log if s.split()[0] in ("swap", "write", "set")]
    assert acts[-1].startswith("swap")
    assert acts.index("write drivers_probe 0000:01:10.0") > acts.index("set mac 00:00:00:00:00:00")


def test_killed_before_any_step_one_command_gives_everything_back() -> None:
    whole = FakeMachine()
    before = whole.state()
    borrow(whole)
    for step in range(2, whole.calls):
        machine = FakeMachine()
        machine.dies_at = step
        with pytest.raises(Killed):
            borrow(machine)
        touched = machine.state() != before
        claimed = {c.address for c in machine.claims()}
        for address, driver in machine.driver.items():
            assert driver == "igbvf" or address in claimed, f"killed before step {step}: {address} has no claim"
        release_all(machine.revived())
        assert machine.state() == before, f"killed before step {step}"
        assert touched or not claimed


def test_killed_while_giving_back() -> None:
    whole = FakeMachine()
    before = whole.state()
    borrow(whole)
    start = whole.calls
    release_all(whole)
    for step in range(start, whole.calls):
        machine = FakeMachine()
        borrow(machine)
        machine.dies_at = step
        with pytest.raises(Killed):
            release_all(machine)
        release_all(machine.revived())
        assert machine.state() == before, f"killed before step {step}"


def test_a_start_that_fails_leaves_nothing_behind() -> None:
    machine = FakeMachine()
    before = machine.state()
    with (
        pytest.raises(ValueError, match="no start"),
        lend.lent(machine, picks(machine.facts()), machine.facts(), vm="web1", uuid="u", work="create web1"),
    ):
        raise ValueError("no start")
    assert machine.state() == before


@pytest.mark.parametrize("refused", ["max_tx_rate", VFIO])
def test_half_done_is_undone(refused: str) -> None:
    machine = FakeMachine()
    machine.refuses.add(refused)
    before = machine.state()
    with pytest.raises(EffectError):
        borrow(machine)
    assert machine.state() == before


def test_a_setting_that_the_driver_lacks_stops_it_before_the_driver_is_taken() -> None:
    machine = FakeMachine()
    machine.settings[0] = replace(BEFORE, trust=None)
    with pytest.raises(UnsupportedError):
        borrow(machine)
    assert not [s for s in machine.log if s.startswith("write driver_override vfio")]
    assert machine.claims() == []


def test_of_two_only_one_takes_a_function() -> None:
    machine = FakeMachine()
    facts = machine.facts()
    borrow(machine)
    taken = machine.state()
    with (
        pytest.raises(ConflictError, match="just been taken"),
        lend.lent(machine, picks(facts), facts, vm="web2", uuid="uuid-2", work="create web2"),
    ):
        pytest.fail("it was given to both")
    assert machine.state() == taken


def test_what_was_left_behind_is_given_back_before_it_is_taken_again() -> None:
    machine = FakeMachine()
    borrow(machine)
    machine.driver = {VF0: "igbvf", VF1: "igbvf"}  # libvirt gave the driver back when the guest ended
    facts = machine.facts()
    other = replace(WANTED, vlan=200, trust=False)
    with lend.lent(machine, picks(facts, settings=other, left=True), facts, vm="web2", uuid="u2", work="create web2"):
        assert machine.settings[0] == other
    assert all(c.before in (BEFORE, FakeMachine().settings[1]) for c in machine.claims())
    release_all(machine)
    assert machine.settings == FakeMachine().settings


def test_a_driver_that_does_not_take_it_back_keeps_the_claim() -> None:
    machine = FakeMachine()
    borrow(machine)
    machine.refuses.add("igbvf")
    claim = machine.claims()[0]
    with pytest.raises(EffectError, match="does not take it back") as caught:
        lend.give_back(machine, claim)
    assert "modprobe igbvf" in str(caught.value.hint)
    assert claim.address in {c.address for c in machine.claims()}
    machine.refuses.clear()
    release_all(machine)
    assert machine.state() == FakeMachine().state()


def test_a_setting_that_cannot_be_restored_is_said_and_the_driver_is_back() -> None:
    machine = FakeMachine()
    borrow(machine)
    machine.refuses.add("trust")
    with pytest.raises(EffectError, match="trust cannot be set"):
        lend.give_back(machine, machine.claims()[0])
    assert machine.driver[VF0] == "igbvf"


def test_a_function_that_vanished_only_loses_its_claim() -> None:
    machine = FakeMachine()
    gone: Claim = claim_on("0000:07:00.0", by=DEAD)
    machine.files = file_of(gone)
    assert "not there" in lend.give_back(machine, gone)
    assert machine.claims() == []


def test_a_function_that_a_process_has_open_is_not_torn_away() -> None:
    machine = FakeMachine()
    facts = machine.facts()
    plain = machine.capture

    def held(script: str) -> str:
        return plain(script).replace("@vfio", "@vfio\n/proc/9 /dev/vfio/8 qemu\n/proc/9 /dev/vfio/9 qemu")

    with (
        contextlib.suppress(ValueError),
        lend.lent(machine, picks(facts), facts, vm="web1", uuid="u", work="create web1"),
    ):
        machine.capture = held  # type: ignore[method-assign]
        raise ValueError
    assert machine.driver == {VF0: VFIO, VF1: VFIO}
    assert len(machine.claims()) == 2
