"""Which functions a VM gets, and when it gets none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.device_data import (
    CAPTURED,
    LPC,
    PF,
    ROOT_DISK,
    SATA,
    SMBUS,
    VF0,
    VF1,
    WIRE_NIC,
    captured,
    claim_on,
    with_claims,
)
from vmkit.device.facts import DeviceFacts, parse
from vmkit.device.plan import Wish, changes_for, check_address, choose, stable_mac
from vmkit.device.usage import Guest, usages
from vmkit.errors import ConflictError, NotFoundError, RefusedError, SpecError, UnsupportedError, VmkitError
from vmkit.system.vf import VfSettings

ANY = Wish("nics[0]", settings=VfSettings(mac="52:54:00:00:00:01"))


def pick(facts: DeviceFacts, *wishes: Wish, guests: tuple[Guest, ...] = (), uuid: str | None = None) -> list[str]:
    uses = usages(facts, guests, lambda _: False)
    return [p.function.address for p in choose(facts, uses, wishes, vm="web1", uuid=uuid)]


def refusal(facts: DeviceFacts, *wishes: Wish, guests: tuple[Guest, ...] = ()) -> VmkitError:
    with pytest.raises(RefusedError) as caught:
        pick(facts, *wishes, guests=guests)
    return caught.value


def holder(address: str, name: str = "db1") -> Guest:
    return Guest(name, f"uuid-{name}", True, frozenset({address}), frozenset({address}))


def test_each_wish_gets_a_function_of_its_own() -> None:
    assert pick(captured(), ANY, replace(ANY, subject="nics[1]")) == [VF0, VF1]
    assert pick(captured(), replace(ANY, pf="eth2")) == [VF0]
    assert pick(captured(), replace(ANY, pf="01:00.0")) == [VF0]
    assert pick(captured(), ANY, guests=(holder(VF0),)) == [VF1]


def test_a_vm_gets_back_what_it_had_if_that_is_free() -> None:
    assert pick(captured(), replace(ANY, prefer=VF1)) == [VF1]
    assert pick(captured(), replace(ANY, prefer=VF0), guests=(holder(VF0),)) == [VF1]


def test_none_free_says_who_has_them() -> None:
    error = refusal(captured(), ANY, guests=(holder(VF0), holder(VF1, "db2")))
    assert isinstance(error, ConflictError)
    assert error.details == (f"{VF0}  db1", f"{VF1}  db2")
    assert "eth2 has 2 of 7" in str(error.hint)


def test_no_virtual_functions_yet_says_how_to_make_them() -> None:
    facts = captured()
    bare = replace(facts, functions={**facts.functions, PF: replace(facts.functions[PF], vfs=())})
    error = refusal(bare, ANY)
    assert isinstance(error, NotFoundError)
    assert error.hint == "vmkit sriov set eth2 7"
    assert "eth2, 0000:01:00.0" in str(refusal(facts, replace(ANY, pf="eth9")).hint)


def test_what_others_left_behind_is_taken_last() -> None:
    facts = with_claims(captured(), claim_on(VF0))
    uses = usages(facts, (), lambda _: False)
    assert pick(facts, ANY) == [VF1]
    second = choose(facts, uses, [ANY, replace(ANY, subject="nics[1]")], vm="web1")[1]
    assert (second.function.address, second.left_behind) == (VF0, True)
    assert "left behind" in second.reason


def test_a_vm_takes_again_what_it_left_behind_itself() -> None:
    facts = with_claims(captured(), claim_on(VF1, lent=True))
    assert pick(facts, replace(ANY, prefer=VF1), uuid="uuid-1") == [VF1]


def test_a_shared_group_is_refused_with_what_is_in_it() -> None:
    error = refusal(captured(), Wish("devices[0]", address=SATA))
    assert f"{SATA} shares IOMMU group 6 with {LPC}, {SMBUS}" in error.message
    assert any("SMBus" in line and "i801_smbus" in line for line in error.details)
    together = [Wish(f"devices[{i}]", address=a) for i, a in enumerate((LPC, SATA, SMBUS))]
    assert pick(captured(), *together) == [LPC, SATA, SMBUS]


def test_what_the_host_needs_is_refused_unless_told() -> None:
    error = refusal(captured(), Wish("devices[0]", address=ROOT_DISK))
    assert "mounted at /" in error.message
    assert "--take-from-host" in str(error.hint)
    assert pick(captured(), Wish("x", address=ROOT_DISK, from_host=True)) == [ROOT_DISK]
    assert pick(captured(), Wish("x", address=WIRE_NIC)) == [WIRE_NIC]


@pytest.mark.parametrize(
    ("address", "kind", "words"),
    [
        ("0000:00:04.0", RefusedError, "is a bridge"),
        (PF, ConflictError, "has 2 virtual functions"),
        ("0000:09:00.0", NotFoundError, "no PCI function"),
    ],
)
def test_what_nobody_gets(address: str, kind: type[VmkitError], words: str) -> None:
    error = refusal(captured(), Wish("devices[0]", address=address, from_host=True))
    assert type(error) is kind
    assert words in error.message


def test_in_use_and_left_behind_are_refused_by_address() -> None:
    wish = Wish("devices[0]", address=VF0)
    assert "db1" in refusal(captured(), wish, guests=(holder(VF0),)).message
    error = refusal(with_claims(captured(), claim_on(VF0)), wish)
    assert error.hint == f"give it back to its host first: vmkit device release {VF0}"


def test_without_an_iommu_nothing_is_given_away() -> None:
    text = "\n".join(s for s in CAPTURED.read_text().splitlines() if "/iommu_group " not in s)
    error = refusal(parse(text), Wish("devices[0]", address=WIRE_NIC))
    assert isinstance(error, UnsupportedError)
    assert "doctor" in str(error.hint)
    assert isinstance(refusal(parse(text), ANY), ConflictError)


def test_only_what_differs_is_set() -> None:
    now = VfSettings("00:00:00:00:00:00", 0, 0, 0, True, False)
    wanted = VfSettings("52:54:00:00:00:01", 100, 0, 200, True, False)
    assert changes_for(wanted, now, subject="nics[0]", driver="igb") == {
        "mac": "52:54:00:00:00:01",
        "vlan": 100,
        "qos": 0,
        "max_tx_rate": 200,
    }
    assert changes_for(now, now, subject="nics[0]", driver="igb") == {}


@pytest.mark.parametrize("field", ["trust", "max_tx_rate", "vlan"])
def test_what_the_driver_lacks_is_refused_only_if_asked_for(field: str) -> None:
    full = VfSettings("52:54:00:00:00:01", 0, 0, 0, True, False)
    lacks = replace(full, **{field: None})
    assert changes_for(full, lacks, subject="nics[0]", driver="ixgbe") == {}
    with pytest.raises(UnsupportedError, match="ixgbe does not have it"):
        changes_for(replace(full, **{field: 1}), lacks, subject="nics[0]", driver="ixgbe")


def test_addresses_as_people_write_them() -> None:
    assert check_address("01:10.0") == VF0
    assert check_address(" 0000:00:1F.2 ") == SATA
    for wrong in ("eth0", "0000:01:20.0", "01:10", "0000:01:10.8", ""):
        with pytest.raises(SpecError):
            check_address(wrong)


def test_a_mac_address_is_stable_and_of_its_vm() -> None:
    assert stable_mac("uuid-1", 0) == stable_mac("uuid-1", 0)
    assert len({stable_mac(u, i) for u in ("a", "b") for i in range(4)}) == 8
    assert stable_mac("a", 0).startswith("52:54:00:")
