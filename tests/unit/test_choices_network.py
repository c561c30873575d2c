"""Fixed addresses and port forwards, decided over hosts that were written down."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from xml.etree import ElementTree as ET

import pytest

from tests.unit.test_choices import HOST, made
from vmkit.errors import ConflictError, SpecError, UnsupportedError
from vmkit.network.facts import NetworkFacts, Reserved
from vmkit.system.templates import template
from vmkit.vm.describe import describe
from vmkit.vm.metadata import Remembered
from vmkit.vm.reservations import dns_name, of_design
from vmkit.vm.xml import Placement, domain_xml

MAC = "52:54:00:00:00:09"
NET = NetworkFacts(
    "net1",
    "u",
    "nat",
    "virbr1",
    IPv4Network("192.168.150.0/24"),
    "192.168.150.1",
    ("192.168.150.128", "192.168.150.254"),
    reserved=(Reserved(MAC, "192.168.150.9", "db1"),),
    spec={"name": "net1"},
    lent={"192.168.150.200": MAC},
)
FACTS = replace(HOST, networks={"default": True, "net1": True}, reservable={"net1": NET})


def nic(address: str, **more: object) -> list[dict[str, object]]:
    return [{"network": "net1", "address": address, **more}]


def test_a_fixed_address_is_kept_by_its_network_and_asked_for_by_dhcp() -> None:
    design, plan = made(FACTS, nics=nic("192.168.150.10/24", gateway="192.168.150.1"))
    assert design.nics[0].reserve == "192.168.150.10"
    assert "vmkit.ip=dhcp" in (design.cmdline or "").split()
    assert "vmkit.gw" not in (design.cmdline or "")
    assert "192.168.150.10 in network net1" in [s.what for s in plan.steps if s.verb == "reserve"]
    kept = of_design(replace(design, nics=(replace(design.nics[0], mac=MAC),)))
    assert kept[0].reserved == Reserved(MAC, "192.168.150.10", "web1")


def test_where_nobody_hands_out_addresses_the_guest_is_told() -> None:
    design, _ = made(
        replace(FACTS, reservable={"net1": replace(NET, subnet=None, dhcp=None)}), nics=nic("192.0.2.5/24")
    )
    assert design.nics[0].reserve == ""
    assert "vmkit.ip=192.0.2.5/24" in (design.cmdline or "").split()


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        ("192.168.151.10/24", SpecError, "is not in 192.168.150.0/24"),
        ("192.168.150.1/24", SpecError, "the host's"),
        ("192.168.150.10/16", SpecError, "is 192.168.150.0/24"),
        ("192.168.150.9/24", ConflictError, "kept for db1"),
        ("192.168.150.200/24", ConflictError, f"is lent to {MAC}"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused(address: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        made(FACTS, nics=nic(address))


def test_what_is_kept_for_the_vm_itself_is_no_obstacle() -> None:
    assert made(FACTS, name="db1", nics=nic("192.168.150.9/24"))[0].nics[0].reserve == "192.168.150.9"
    assert made(FACTS, nics=nic("192.168.150.200/24", mac=MAC))[0].nics[0].reserve == "192.168.150.200"


def test_an_address_twice_in_one_vm() -> None:
    with pytest.raises(SpecError, match="there twice"):
        made(FACTS, nics=[*nic("192.168.150.10/24"), *nic("192.168.150.10/24")])


def test_networks_of_other_tools_are_not_judged() -> None:
    foreign = replace(FACTS, reservable={"net1": replace(NET, spec=None)})
    design, plan = made(foreign, nics=nic("10.0.0.5/8"))
    assert design.nics[0].reserve == ""
    assert any("is not in 192.168.150.0/24" in w for w in plan.warnings)
    assert made(foreign, nics=nic("192.168.150.10/24"))[0].nics[0].reserve == "192.168.150.10"


def test_names_that_dns_does_not_know_are_left_out() -> None:
    assert [dns_name(n) for n in ("web1", "web-1", "web_1", "web.1", "web-")] == ["web1", "web-1", "", "", ""]


def test_a_card_that_forwards_ports_is_on_the_user_network() -> None:
    design, plan = made(nics=[{"forward": ["2222:22", "udp:0.0.0.0:5353:53"]}, {"network": "default"}])
    first = design.nics[0]
    assert (first.kind, [f.qemu for f in first.forward]) == (
        "user",
        ["tcp:127.0.0.1:2222-:22", "udp:0.0.0.0:5353-:53"],
    )
    assert f"vmkit.mac={first.mac}" in (design.cmdline or "").split()
    said = [c.reason for c in plan.choices if c.subject == "nics[0].forward"]
    assert said == ["asked for: for the host alone", "asked for: for whoever reaches 0.0.0.0"]
    base = template("domain.xml").read_text()
    remembered = Remembered({}, "micro", (), None)
    text = domain_xml(base, design, Placement(volumes=dict.fromkeys(design.volumes, "/d")), remembered, "0" * 32)
    assert len(ET.fromstring(text).findall("devices/interface")) == 1
    assert "bus=pcie.0,addr=0x14" in text
    cards = describe(text).nics
    assert [c.network for c in cards] == ["network:default", "user"]
    assert cards[1].forwards == ("tcp:127.0.0.1:2222:22", "udp:0.0.0.0:5353:53")
    assert cards[1].mac == first.mac
    assert describe(text).qemu_args == ()


def test_forwards_take_qemu() -> None:
    with pytest.raises(UnsupportedError, match="only QEMU forwards"):
        made(replace(HOST, driver="TEST", domain_types=frozenset({"test"})), nics=[{"forward": ["2222:22"]}])
