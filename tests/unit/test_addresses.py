"""Addresses of all sources merged, and what is read from a host's and a guest's answers."""

from __future__ import annotations

import pytest

from vmkit.vm.addresses import Claim, Source, merge
from vmkit.vm.addresses import Found as Discovery
from vmkit.vm.describe import Nic, describe, paired
from vmkit.vm.reach import judge, listening

A, B, OTHER = "52:54:00:00:00:0a", "52:54:00:00:00:0b", "02:42:00:00:00:01"
NICS = (Nic(A, "virtio", "network:net1", "vnet0"), Nic(B, "virtio", "user", None))


def agent(mac: str, ip: str) -> Claim:
    return Claim(Source.AGENT, mac, ip)


def lease(mac: str, ip: str) -> Claim:
    return Claim(Source.LEASE, mac, ip)


def test_what_several_say_is_one_address() -> None:
    claims = [
        Claim(Source.ARP, A, "192.0.2.5"),
        lease(A, "192.0.2.5"),
        agent(A, "192.0.2.5"),
        Claim(Source.RESERVATION, A, "192.0.2.5"),
    ]
    (found,) = merge(claims, NICS, agent=True)
    assert found.sources == (Source.AGENT, Source.LEASE, Source.ARP, Source.RESERVATION)
    assert (found.network, found.reachable, found.doubtful) == ("network:net1", True, False)


def test_the_agent_outdates_a_lease_of_an_earlier_boot() -> None:
    found = merge([lease(A, "192.0.2.4"), agent(A, "192.0.2.5")], NICS, agent=True)
    assert [(a.ip, a.doubtful) for a in found] == [("192.0.2.5", False), ("192.0.2.4", True)]
    silent = merge([lease(A, "192.0.2.4")], NICS, agent=False)
    assert [a.doubtful for a in silent] == [False]
    # Of a card that the agent says nothing about, the lease is the best there is.
    other = merge([lease(A, "192.0.2.4"), agent(B, "10.0.2.15")], NICS, agent=True)
    assert not any(a.doubtful for a in other)


def test_the_order_is_that_of_trust() -> None:
    claims = [
        agent(OTHER, "172.17.0.1"),
        Claim(Source.SPEC, A, "192.0.2.9"),
        agent(A, "2001:db8::5"),
        agent(B, "10.0.2.15"),
        lease(A, "192.0.2.8"),
        agent(A, "192.0.2.5"),
        agent(A, "fe80::1"),
        agent(A, "127.0.0.1"),
    ]
    found = Discovery(merge(claims, NICS, agent=True), {})
    assert [a.ip for a in found.addresses] == [
        *("192.0.2.5", "10.0.2.15", "2001:db8::5"),
        *("192.0.2.8", "192.0.2.9"),
        "172.17.0.1",
    ]
    assert found.good == ("192.0.2.5", "10.0.2.15", "2001:db8::5")
    assert found.best is not None
    assert found.best.ip == "192.0.2.5"
    assert [a.reachable for a in found.addresses] == [True, False, True, True, True, False]


def test_addresses_that_the_guest_made_itself_are_not_the_vms() -> None:
    found = Discovery(merge([agent(OTHER, "172.17.0.1")], NICS, agent=True), {})
    assert found.best is None
    # A card that was handed over as a PCI device has a MAC address that nobody but the guest knows.
    card = Discovery(merge([agent(OTHER, "192.0.2.7")], (Nic(None, None, "hostdev", None),), agent=True), {})
    assert card.best is not None


@pytest.mark.parametrize(
    ("text", "alive"),
    [
        (f"alive\n192.0.2.5 dev virbr0 lladdr {A} REACHABLE\n", True),
        (f"alive\n192.0.2.5 dev virbr0 lladdr {A} STALE\n", True),
        (f"192.0.2.5 dev virbr0 lladdr {A} REACHABLE\n", True),
        (f"192.0.2.5 dev virbr0 lladdr {A} REACHABLE \n", True),  # as iproute2 6.1 prints it
        (f"192.0.2.5 dev virbr0 lladdr {A} STALE\n", False),
        (f"alive\n192.0.2.5 dev virbr0 lladdr {B} REACHABLE\n", False),
        ("192.0.2.5 dev virbr0 FAILED\n", False),
        ("192.0.2.5 dev virbr0 INCOMPLETE\n", False),
        ("alive\n", True),
        ("", False),
    ],
)
def test_an_address_answers_if_its_owner_does(text: str, alive: bool) -> None:
    assert judge(text, A) is alive


def test_listening_ports_are_read() -> None:
    table = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0F02000A:0050 0202000A:D2F0 01 00000000:00000000 00:00000000 00000000     0        0 3
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0 0 0 0 0 4
   1: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 0 0 0 0 0 5
"""
    assert [port for port in (22, 25, 80, 443, 8080) if listening(table, port)] == [22, 443]


DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>v</name>
<devices><interface type='network'><mac address='52:54:00:00:00:0a'/><source network='net1'/></interface></devices>
<qemu:commandline><qemu:arg value='-device'/><qemu:arg value='edu'/>
<qemu:arg value='-netdev'/><qemu:arg value='user,id=vmkit-forward0,hostfwd=tcp:127.0.0.1:2222-:22'/>
<qemu:arg value='-device'/><qemu:arg value='virtio-net-pci,netdev=vmkit-forward0,mac=52:54:00:00:00:0b,addr=0x14'/>
<qemu:arg value='-netdev'/><qemu:arg value='user,id=mine'/></qemu:commandline></domain>"""


def test_a_card_that_forwards_ports_is_a_card() -> None:
    found = describe(DOMAIN)
    assert found.nics[1] == Nic(B, "virtio", "user", None, ("tcp:127.0.0.1:2222:22",))
    assert found.qemu_args == ("-device", "edu", "-netdev", "user,id=mine")


def test_cards_of_the_spec_are_found_again() -> None:
    asked = [
        {"network": "user", "forward": ["2222:22"]},
        {"network": "none"},
        {"network": "net1", "address": "192.0.2.5/24"},
    ]
    pairs = paired(asked, describe(DOMAIN).nics)
    assert [(c["network"], n.mac) for c, n in pairs] == [("net1", A), ("user", B)]
    assert paired(asked[:1], describe(DOMAIN).nics) == []
