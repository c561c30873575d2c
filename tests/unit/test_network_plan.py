"""What is decided about a network, what libvirt is told, and what is read back."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Network
from xml.etree import ElementTree as ET

import pytest

from vmkit.errors import ConflictError, NotFoundError, RefusedError, UnsupportedError
from vmkit.network.change import plan_change
from vmkit.network.facts import HostNetworks, LinkFacts, NetworkFacts, Reserved, User, read, read_links
from vmkit.network.make import check_removal
from vmkit.network.plan import Effect, compare, decide
from vmkit.network.spec import NetworkSpec, dump, parse
from vmkit.network.xml import network_xml, with_spec

LINKS = {
    "lo": LinkFacts("lo"),
    "eth0": LinkFacts("eth0", addresses=("192.0.2.5",)),
    "eth1": LinkFacts("eth1"),
    "eth2": LinkFacts("eth2", master="br0"),
    "br0": LinkFacts("br0", kind="bridge"),
}
DEFAULT = NetworkFacts("default", "u1", "nat", "virbr0", IPv4Network("192.168.122.0/24"))
HOST = HostNetworks(
    "qemu:///system",
    "QEMU",
    {"default": DEFAULT},
    (IPv4Network("192.0.2.0/24"), IPv4Network("192.168.200.0/24")),
    frozenset({"eth0"}),
    LINKS,
)


def xml_of(spec: NetworkSpec, host: HostNetworks = HOST) -> str:
    return network_xml(decide(spec, host)[0], dump(spec), "3f2504e0-4f89-41d3-9a0c-0305e82c3301")


def test_a_subnet_is_chosen_that_nothing_overlaps() -> None:
    chosen = [decide(parse({"name": f"net{i}"}), HOST)[0].subnet for i in range(200)]
    assert len(set(chosen)) > 50
    taken = [*HOST.routes, DEFAULT.subnet]
    assert not any(s and t and s.overlaps(t) for s in chosen for t in taken)
    assert decide(parse({"name": "a"}), HOST) == decide(parse({"name": "a"}), HOST)
    everything = replace(HOST, routes=(IPv4Network("192.168.0.0/16"), IPv4Network("10.0.0.0/8")))
    with pytest.raises(RefusedError, match="no subnet is free"):
        decide(parse({"name": "a"}), everything)


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        ({"name": "default"}, ConflictError, "already"),
        ({"name": "n", "subnet": "192.168.122.0/25"}, ConflictError, "of the network 'default'"),
        ({"name": "n", "subnet": "192.0.2.0/25"}, ConflictError, "a route to"),
        ({"name": "n", "bridge": "eth1"}, ConflictError, "has an interface eth1"),
        ({"name": "n", "mode": "bridge", "bridge": "virbr0"}, ConflictError, "that of the network 'default'"),
        ({"name": "n", "mode": "bridge", "bridge": "eth1"}, ConflictError, "is a network interface"),
        ({"name": "n", "mode": "bridge", "bridge": "br0", "ports": ["eth1"]}, RefusedError, "its ports"),
        ({"name": "n", "mode": "bridge", "ports": ["eth9"]}, NotFoundError, "no interface eth9"),
        ({"name": "n", "mode": "bridge", "ports": ["eth0"]}, RefusedError, "cut the host off"),
        ({"name": "n", "mode": "bridge", "ports": ["lo"]}, RefusedError, "cut the host off"),
        ({"name": "n", "mode": "bridge", "ports": ["eth2"]}, ConflictError, "a port of br0"),
    ],
)
def test_what_would_do_harm_is_refused(data: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        decide(parse(data), HOST)


def test_ports_of_another_machine_are_not_touched() -> None:
    with pytest.raises(UnsupportedError, match="another machine"):
        decide(parse({"name": "n", "mode": "bridge", "ports": ["eth1"]}), replace(HOST, local=False))


def test_a_bridge_is_joined_or_made() -> None:
    joined, _ = decide(parse({"name": "n", "mode": "bridge", "bridge": "br0"}), HOST)
    assert (joined.forward, joined.bridge) == ("bridge", "br0")
    made, plan = decide(parse({"name": "lan", "mode": "bridge", "ports": ["eth1"]}), HOST)
    assert (made.forward, made.bridge, made.ports) == ("open", "lan", ("eth1",))
    assert [s.verb for s in plan.steps] == ["define", "start", "join", "mark"]
    assert "vmkit network start lan" in plan.warnings[0]
    assert read(xml_of(parse({"name": "lan", "mode": "bridge"}))).mode == "bridge"
    blind = replace(HOST, links=None)
    assert decide(parse({"name": "n", "mode": "bridge", "bridge": "br7"}), blind)[0].forward == "bridge"


def test_what_is_written_is_read_back() -> None:
    reservations = [{"name": "web1", "mac": "52:54:00:00:00:01", "address": "192.168.150.9"}]
    spec = parse({"name": "net1", "subnet": "192.168.150.0/24", "reservations": reservations})
    facts = read(xml_of(spec))
    assert (facts.mode, facts.gateway, facts.domain) == ("nat", "192.168.150.1", "net1")
    assert facts.subnet == IPv4Network("192.168.150.0/24")
    assert facts.dhcp == ("192.168.150.128", "192.168.150.254")
    assert facts.reserved == (Reserved("52:54:00:00:00:01", "192.168.150.9", "web1"),)
    assert facts.names == {"192.168.150.9": ("web1",)}
    assert facts.spec == dump(spec)
    assert facts.managed
    assert facts.owns_bridge
    again = read(with_spec(xml_of(spec), {"name": "net1"}))
    assert again.spec == {"name": "net1"}
    assert again.reserved == facts.reserved


def test_an_isolated_network_forwards_nothing() -> None:
    text = xml_of(parse({"name": "n", "mode": "isolated", "dhcp": "none"}))
    root = ET.fromstring(text)
    assert root.find("forward") is None
    assert root.find("ip/dhcp") is None
    assert read(text).mode == "isolated"


def test_networks_of_other_tools_are_read() -> None:
    facts = read(
        "<network><name>default</name><uuid>u</uuid><forward mode='nat'/><bridge name='virbr0'/>"
        "<ip address='192.168.122.1' netmask='255.255.255.0'><dhcp><range start='192.168.122.2' "
        "end='192.168.122.254'/></dhcp></ip><ip family='ipv6' address='fd00::1' prefix='64'/></network>"
    )
    assert facts.subnet == IPv4Network("192.168.122.0/24")
    assert not facts.managed
    damaged = (
        "<network><name>n</name><metadata><v:network xmlns:v='urn:vmkit:network:1'>{</v:network></metadata></network>"
    )
    assert read(damaged).spec is None


def test_what_iproute_says_is_read() -> None:
    links = [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
        {"ifname": "br0", "linkinfo": {"info_kind": "bridge"}, "addr_info": [{"local": "fe80::1", "scope": "link"}]},
        {"ifname": "eth1", "master": "br0"},
    ]
    routes = [{"dst": "default", "dev": "br0"}, {"dst": "10.0.0.0/8", "dev": "br0"}, {"dst": "192.0.2.7", "dev": "br0"}]
    seen, networks, default = read_links(json.dumps(links), json.dumps(routes))
    assert seen is not None
    assert seen["br0"] == LinkFacts("br0", "bridge", None, ())
    assert seen["eth1"].master == "br0"
    assert networks == (IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.7/32"))
    assert default == {"br0"}
    assert read_links("sh: ip: not found", "") == (None, (), frozenset())


def test_differences_say_what_they_take() -> None:
    old = parse({"name": "n", "subnet": "10.9.0.0/24"})
    new = parse({"name": "n", "subnet": "10.9.1.0/24", "autostart": False})
    assert [(d.field, d.effect) for d in compare(dump(old), dump(new))] == [
        ("autostart", Effect.LIVE),
        ("subnet", Effect.RECREATE),
    ]
    assert compare(dump(old), dump(old)) == ()


def known(spec: NetworkSpec, *reserved: Reserved) -> NetworkFacts:
    facts = read(xml_of(spec))
    return replace(facts, bridge="virbr9", reserved=(*facts.reserved, *reserved))


def test_a_network_is_made_again_only_when_nobody_runs_on_it() -> None:
    old = parse({"name": "n"})
    new = parse({"name": "n", "mode": "isolated"})
    there = known(old, Reserved("52:54:00:00:00:09", "192.0.2.1", "web1"))
    host = replace(HOST, networks={**HOST.networks, "n": there}, routes=(*HOST.routes, there.subnet or DEFAULT.subnet))
    differences = compare(dump(old), dump(new))
    with pytest.raises(ConflictError, match="VMs run on it: web1"):
        plan_change(new, there, host, differences, [User("web1", "52:54:00:00:00:09", True)])
    with pytest.raises(ConflictError, match=r"would be outside of it: web1 192\.0\.2\.1"):
        plan_change(new, there, host, differences, [])
    assert there.subnet is not None
    kept = Reserved("52:54:00:00:00:09", str(there.subnet.network_address + 7), "web1")
    design = plan_change(new, replace(there, reserved=(kept,)), host, differences, [])
    assert design is not None
    assert (design.forward, design.subnet, design.reserved) == ("", there.subnet, (kept,))
    live = compare(dump(old), dump(parse({"name": "n", "autostart": False})))
    assert plan_change(old, there, host, live, []) is None


def test_what_is_used_or_foreign_is_not_removed() -> None:
    mine = known(parse({"name": "n"}))
    check_removal(mine, [], force=False)
    with pytest.raises(ConflictError, match=r"web1 \(running\), web2$"):
        check_removal(mine, [User("web2", "", False), User("web1", "", True)], force=False)
    with pytest.raises(ConflictError, match="made by another tool"):
        check_removal(DEFAULT, [], force=False)
    check_removal(DEFAULT, [User("web1", "", True)], force=True)
