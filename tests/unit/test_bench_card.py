"""A virtual function among what is measured: which card lends it, its addresses, and that the card is given back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Self

import pytest

from tests.unit.device_data import PF, VF0, VF1, captured, claim_on, with_claims
from tests.unit.test_bench import EVERY, NESTED_HOST
from vmkit.bench import lending
from vmkit.bench.card import Card, find_card, link_local
from vmkit.bench.layout import Guest, lay_out, spec
from vmkit.bench.workloads import WORKLOADS, chosen
from vmkit.device.api import Seen
from vmkit.device.facts import DeviceFacts
from vmkit.device.usage import Guest as Domain
from vmkit.device.usage import usages
from vmkit.errors import ConflictError, EffectError, NotFoundError, SpecError
from vmkit.host.measured import Area, Mode
from vmkit.progress import Event, Note
from vmkit.system.journal import journalled
from vmkit.vm.spec import parse

CARD = Card("eth2", PF, make=False, host="169.254.7.1", guest="169.254.7.2", mac="52:54:00:11:22:33")
NAMES = frozenset({"vmkit-bench-kvm-nested"})
HOST: Any = object()


def card_of(facts: DeviceFacts, *guests: Domain, networks: tuple[IPv4Network, ...] = ()) -> Card | str:
    return find_card(facts, usages(facts, guests, lambda _: False), networks)


def changed(facts: DeviceFacts, address: str, **fields: Any) -> DeviceFacts:
    return replace(facts, functions={**facts.functions, address: replace(facts.functions[address], **fields)})


def free_host() -> DeviceFacts:
    """The captured host, if its card did not lead out."""
    return changed(captured(), PF, needed=())


def without_vfs(facts: DeviceFacts) -> DeviceFacts:
    kept = {a: f for a, f in facts.functions.items() if a not in (VF0, VF1)}
    return changed(replace(facts, functions=kept), PF, vfs=())


def holder(address: str, name: str) -> Domain:
    return Domain(name, f"uuid-{name}", True, frozenset({address}), frozenset({address}))


# ---- which card


def test_a_card_with_a_free_function_is_taken_as_it_is() -> None:
    found = card_of(free_host())
    assert isinstance(found, Card)
    assert (found.net, found.address, found.make) == ("eth2", PF, False)
    assert card_of(free_host(), holder(VF0, "db1")) == found
    assert card_of(changed(free_host(), PF, needed=("address 10.9.0.5 on eth2",))) == found


def test_a_card_without_functions_gets_one_if_nobody_uses_it() -> None:
    found = card_of(without_vfs(free_host()))
    assert isinstance(found, Card)
    assert found.make
    reason = card_of(changed(without_vfs(free_host()), PF, needed=("address 10.9.0.5 on eth2",)))
    assert reason == (
        "eth2 has no virtual functions, and making one interrupts it while the host uses it "
        "(address 10.9.0.5 on eth2): vmkit sriov set eth2 1"
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"needed": ("default route by eth2", "address 10.9.0.5 on eth2")}, "itself needs eth2: default route by eth2"),
        ({"needed": ("eth2 is part of br0",)}, "itself needs eth2: eth2 is part of br0"),
        ({"needed": ("your ssh session by eth2",)}, "itself needs eth2: your ssh session"),
        ({"nets": ()}, "no network interface"),
        ({"nets": ("eth7",)}, "eth7 is down, or has no cable: ip link set eth7 up"),
        ({"group": None}, "no IOMMU is in use"),
    ],
)
def test_why_a_card_is_left_alone(fields: dict[str, Any], reason: str) -> None:
    found = card_of(changed(free_host(), PF, **fields))
    assert isinstance(found, str)
    assert reason in found


def test_why_none_of_its_functions_is_taken() -> None:
    busy = card_of(free_host(), holder(VF0, "db1"), holder(VF1, "db2"))
    assert busy == "none of the 2 virtual functions of eth2 is free"
    group = free_host().functions[PF].group
    assert card_of(changed(changed(free_host(), VF1, group=group), VF0, group=group)) == busy
    assert card_of(changed(free_host(), PF, driver="vfio-pci")) == (
        "eth2 is in use: orphan: bound to vfio-pci, and no VM has it"
    )
    nothing = replace(free_host(), functions={})
    assert card_of(nothing) == "no network card here has virtual functions (SR-IOV)"


def test_the_network_is_link_local_of_this_host_and_free() -> None:
    first = link_local("a", ())
    assert first == link_local("a", (IPv4Network("169.254.0.0/16"), IPv4Network("0.0.0.0/0")))
    assert first != link_local("b", ())
    assert first
    assert first.subnet_of(IPv4Network("169.254.0.0/16"))
    second = link_local("a", (first,))
    assert second
    assert not second.overlaps(first)
    third = link_local("a", [IPv4Network(f"169.254.{n}.0/24") for n in range(256) if n != 77])
    assert third
    assert third.subnet_of(IPv4Network("169.254.77.0/24"))
    taken = [IPv4Network(f"169.254.{n}.0/24") for n in range(256) if n != 169]
    assert link_local("a", taken) is None  # what is left is where clouds keep their metadata
    assert card_of(free_host(), networks=tuple(taken)) == "every network of 169.254.0.0/16 is in use here"


def test_two_hosts_of_one_wire_differ() -> None:
    here, there = card_of(free_host()), card_of(replace(free_host(), boot="another"))
    assert isinstance(here, Card)
    assert isinstance(there, Card)
    assert here.host != there.host
    assert here.mac != there.mac


# ---- what is measured


def test_the_fastest_guest_gets_the_function_behind_its_other_cards() -> None:
    layout = lay_out(replace(NESTED_HOST, card=CARD), EVERY, WORKLOADS, shadow=True)
    guest, emulated = layout.phases[0]
    assert guest.nics == (Mode.VHOST, Mode.VIRTIO, Mode.EMULATED, Mode.VF)
    assert (guest.card, guest.bridged) == (CARD, 3)
    assert (emulated.card, layout.phases[1][0].card) == (None, None)
    assert guest.ends(Mode.VIRTIO) == ("192.0.2.9", "192.0.2.10")
    assert guest.ends(Mode.VF) == ("169.254.7.1", "169.254.7.2")
    assert Mode.VF not in {s.mode for s in layout.skipped}
    nic = parse(spec(guest, "bench")).nics[3]
    assert (nic.io.value, nic.pf, nic.address, nic.mac) == ("sriov", "eth2", "169.254.7.2/30", CARD.mac)
    left = guest.without_card()
    assert (left.nics, left.card, left.bridged) == (guest.nics[:3], None, 3)
    assert left.ends(Mode.EMULATED) == guest.ends(Mode.EMULATED)


def test_a_function_alone_takes_no_bridge() -> None:
    wanted = (Mode.NESTED, Mode.VF)
    layout = lay_out(replace(NESTED_HOST, card=CARD), wanted, chosen(("network",)), shadow=False)
    assert layout.phases == ((Guest(Mode.NESTED, (), (Mode.VF,), CARD),),)
    assert layout.phases[0][0].bridged == 0


def test_nothing_left_says_why() -> None:
    with pytest.raises(SpecError, match="nothing is left") as caught:
        lay_out(NESTED_HOST, (Mode.VF, Mode.NESTED), chosen(("network",)), shadow=False)
    assert caught.value.details == ("vf: no network card here has virtual functions (SR-IOV)",)


def test_without_a_network_workload_nothing_is_said_of_a_card() -> None:
    layout = lay_out(NESTED_HOST, EVERY, chosen(("cpu",)), shadow=False)
    assert [s.mode for s in layout.skipped] == [Mode.SHADOW]
    unprivileged = lay_out(replace(NESTED_HOST, root=False, card=CARD), EVERY, WORKLOADS, shadow=False)
    assert {s.mode for s in unprivileged.skipped if s.area is Area.NETWORK} >= {Mode.VF, Mode.VHOST}


# ---- set up and given back


@dataclass
class Ground:
    """A host of which only a card exists: what is done to it, in order."""

    facts: DeviceFacts
    done: list[str] = field(default_factory=list)
    addresses: set[str] = field(default_factory=set)
    refuses: Exception | None = None

    def see(self, _host: object) -> Seen:
        nothing: Any = None
        return Seen(nothing, self.facts, ())

    def set(self, address: str, count: int) -> None:
        if self.refuses:
            raise self.refuses
        self.done.append(f"set {address} {count}")
        self.facts = changed(without_vfs(free_host()), PF, vfs=(VF0,)) if count else without_vfs(free_host())

    def add_address(self, name: str, address: str, prefix: int) -> None:
        if address in self.addresses:
            raise ConflictError("it has it")
        self.done.append(f"add {name} {address}/{prefix}")
        self.addresses.add(address)

    def remove_address(self, name: str, address: str, prefix: int) -> bool:
        if not self.facts.functions:
            raise NotFoundError(name)
        self.done.append(f"remove {name} {address}/{prefix}")
        gone = address in self.addresses
        self.addresses.discard(address)
        return gone

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None: ...


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ground:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path))
    made = Ground(without_vfs(free_host()))
    monkeypatch.setattr(lending, "see", made.see)
    monkeypatch.setattr(lending, "Sriov", lambda _connect: made)
    monkeypatch.setattr("vmkit.system.netlink.Links", lambda: made)
    monkeypatch.setattr(lending.lend, "lives", lambda _process: False)
    monkeypatch.setattr(lending.lend, "give_back", lambda _machine, claim: f"{claim.address}: back")
    return made


def test_a_card_is_set_up_once_and_given_back(ground: Ground) -> None:
    with journalled("bench", "host", "begin") as entry:
        for _ in range(2):
            lending.set_up(HOST, entry, replace(CARD, make=True))
            lending.address(CARD)
        assert ground.done == [f"set {PF} 1", "add eth2 169.254.7.1/30"]
        said = lending.give_back(HOST, entry.record.data, NAMES)
    assert said == ["removed the address 169.254.7.1 of eth2", "took the virtual function of eth2 away"]
    assert ground.done[2:] == ["remove eth2 169.254.7.1/30", f"set {PF} 0"]
    assert not ground.addresses
    assert lending.give_back(HOST, entry.record.data, NAMES) == []
    assert lending.give_back(HOST, {}, NAMES) == []


def test_functions_of_others_stay(ground: Ground) -> None:
    ground.facts = free_host()  # made since the card was looked at
    with journalled("bench", "host", "begin") as entry:
        lending.set_up(HOST, entry, replace(CARD, make=True))
        lending.give_back(HOST, entry.record.data, NAMES)
    assert not any(line.startswith("set") for line in ground.done)


def test_the_journal_knows_of_a_card_before_it_is_touched(ground: Ground) -> None:
    ground.refuses = EffectError("no space for it")
    with journalled("bench", "host", "begin") as entry:
        with pytest.raises(EffectError):
            lending.set_up(HOST, entry, replace(CARD, make=True))
        assert entry.record.data["card"] == {"net": "eth2", "address": PF, "host": "169.254.7.1", "made": True}
        assert lending.give_back(HOST, entry.record.data, NAMES) == []


@pytest.mark.parametrize("spoil", ["used", "more", "gone"])
def test_what_has_changed_meanwhile_is_respected(ground: Ground, spoil: str) -> None:
    events: list[Event] = []
    with journalled("bench", "host", "begin") as entry:
        lending.set_up(HOST, entry, replace(CARD, make=True))
        lending.address(CARD)
        if spoil == "used":
            ground.refuses = ConflictError("1 of the 1 virtual functions of eth2 are in use")
        elif spoil == "more":
            ground.facts = free_host()
        else:
            ground.facts = replace(free_host(), functions={})
        done = lending.give_back(HOST, entry.record.data, NAMES, events.append)
    assert done == ([] if spoil == "gone" else ["removed the address 169.254.7.1 of eth2"])
    kept = "eth2 keeps the virtual function that it got: 1 of the 1 virtual functions of eth2 are in use"
    assert [e.text for e in events if isinstance(e, Note)] == ([kept] if spoil == "used" else [])
    assert f"set {PF} 0" not in ground.done


def test_a_function_that_never_reached_the_guest_goes_back(ground: Ground) -> None:
    own = claim_on(VF0, vm="vmkit-bench-kvm-nested")
    ground.facts = with_claims(free_host(), own, claim_on(VF1, vm="web1"))
    data = {"card": {"net": "eth2", "address": PF, "host": "169.254.7.1", "made": False}}
    assert lending.give_back(HOST, data, NAMES) == [f"{VF0}: back"]
