"""Specs of networks, alone and in a file beside VMs; port forwards of NICs."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from vmkit.cli.spec_flags import FLAGS, spec_of
from vmkit.errors import SpecError
from vmkit.network.spec import Mode, NetworkSpec, dhcp_range, dump, parse
from vmkit.vm import forward
from vmkit.vm.spec import load, load_document
from vmkit.vm.spec import parse as parse_vm

NET = IPv4Network("192.168.150.0/24")


def test_defaults_are_left_out_and_come_back() -> None:
    spec = parse({"name": "Net1"})
    assert spec == NetworkSpec(name="Net1")
    assert spec.domain_name == "net1"
    assert dump(spec) == {"name": "Net1"}
    full = {
        "name": "net1",
        "mode": "isolated",
        "subnet": "10.1.0.0/16",
        "dhcp": "10.1.0.50-10.1.0.60",
        "domain": "test.lan",
        "reservations": [{"name": "web1", "mac": "52:54:00:00:00:01", "address": "10.1.0.5"}],
        "autostart": False,
    }
    assert dump(parse(full)) == full


def test_yaml_words_for_dhcp() -> None:
    assert parse({"name": "n", "dhcp": False}).dhcp == "none"
    assert parse({"name": "n", "dhcp": True}).dhcp == "auto"


def test_dhcp_leaves_the_lower_half_for_fixed_addresses() -> None:
    first, last = dhcp_range("auto", NET) or ("", "")
    assert (str(first), str(last)) == ("192.168.150.128", "192.168.150.254")
    assert dhcp_range("none", NET) is None


def test_a_name_that_is_no_domain_has_none() -> None:
    assert parse({"name": "net_1"}).domain_name == ""
    assert parse({"name": "lan", "mode": "bridge"}).domain_name == ""
    assert parse({"name": "net1", "domain": ""}).domain_name == ""


RESERVED = {"name": "w", "mac": "52:54:00:00:00:01", "address": "192.168.150.9"}


@pytest.mark.parametrize(
    ("data", "path", "text"),
    [
        ({"name": "user"}, "name", "means something else"),
        ({"name": "a/b"}, "name", "cannot be a name"),
        ({"name": "n", "mode": "routed"}, "mode", "invalid enum value"),
        ({"name": "n", "sub": "x"}, "sub", "unknown field"),
        ({"name": "n", "subnet": "192.168.150.7/24"}, "subnet", "has host bits set"),
        ({"name": "n", "subnet": "fd00::/64"}, "subnet", "IPv6"),
        ({"name": "n", "subnet": "192.168.150.0/30"}, "subnet", "not between"),
        ({"name": "n", "subnet": "127.0.0.0/8"}, "subnet", "reserved"),
        ({"name": "n", "dhcp": "192.168.150.2-192.168.150.9"}, "dhcp", "needs a subnet"),
        ({"name": "n", "subnet": str(NET), "dhcp": "192.168.150.9"}, "dhcp", "is not FIRST-LAST"),
        ({"name": "n", "subnet": str(NET), "dhcp": "192.168.150.9-192.168.150.3"}, "dhcp", "comes after"),
        ({"name": "n", "subnet": str(NET), "dhcp": "192.168.150.1-192.168.150.3"}, "dhcp", "the host's"),
        ({"name": "n", "bridge": "a-name-too-long-for-linux"}, "bridge", "no interface's name"),
        ({"name": "n", "ports": ["eth1"]}, "ports", "has none"),
        ({"name": "n", "mode": "bridge", "subnet": str(NET)}, "subnet", "none of its own"),
        ({"name": "n", "domain": "a..b"}, "domain", "not a DNS domain"),
        ({"name": "n", "reservations": [RESERVED]}, "reservations[0].address", "needs a subnet"),
        (
            {"name": "n", "subnet": str(NET), "reservations": [{**RESERVED, "address": "192.168.151.9"}]},
            "reservations[0].address",
            "is not in",
        ),
        (
            {"name": "n", "subnet": str(NET), "reservations": [{**RESERVED, "adress": "x"}]},
            "reservations[0].adress",
            "unknown field",
        ),
        ({"name": "n", "subnet": str(NET), "reservations": [RESERVED, RESERVED]}, "reservations[1].mac", "twice"),
        ({"name": "n", "subnet": str(NET), "dhcp": False, "reservations": [RESERVED]}, "reservations", "without DHCP"),
    ],
)
def test_what_is_wrong_is_named(data: dict[str, object], path: str, text: str) -> None:
    with pytest.raises(SpecError, match=text) as caught:
        parse(data, at="networks[3]")
    assert caught.value.path == f"networks[3].{path}"


def test_the_hint_gives_the_network_that_was_meant() -> None:
    with pytest.raises(SpecError) as caught:
        parse({"name": "n", "subnet": "192.168.150.7/24"})
    assert caught.value.hint == "did you mean 192.168.150.0/24?"


def test_a_file_holds_networks_and_vms(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(
        "networks:\n- name: net1\n- {name: lan, mode: bridge, bridge: br0}\n"
        "vms:\n- name: web1\n  nics: [{network: net1, address: 192.168.150.10/24}]\n---\nname: web2\n"
    )
    found = load_document(file)
    assert [(n.name, n.mode) for n in found.networks] == [("net1", Mode.NAT), ("lan", Mode.BRIDGE)]
    assert [v.name for v in found.vms] == ["web1", "web2"]
    assert [v.name for v in load(file)] == ["web1", "web2"]
    file.write_text("networks:\n- name: net1\n")
    assert load_document(file).vms == ()
    with pytest.raises(SpecError, match="there is no VM in it"):
        load(file)
    file.write_text("networks:\n- name: a\n- name: a\n")
    with pytest.raises(SpecError, match="twice") as caught:
        load_document(file)
    assert caught.value.path == "networks[1].name"
    file.write_text("networks: []\nvm: []\n")
    with pytest.raises(SpecError, match="unknown field 'vm'"):
        load_document(file)


def test_port_forwards_are_read() -> None:
    assert str(forward.parse("2222:22")) == "tcp:127.0.0.1:2222:22"
    rule = forward.parse("udp:0.0.0.0:5353:53")
    assert rule.qemu == "udp:0.0.0.0:5353-:53"
    assert forward.of_netdev(f"user,id=x,hostfwd={rule.qemu},hostfwd=tcp:127.0.0.1:1-:2") == (
        rule,
        forward.parse("1:2"),
    )


@pytest.mark.parametrize("text", ["22", "2222:ssh", "0:22", "70000:22", "1.2.3:80:80", "sctp:1:2", "1:2,x=y", ""])
def test_what_is_no_port_forward_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_vm({"name": "v", "nics": [{"network": "user", "forward": [text]}]})


def test_forwards_go_with_user_networks_alone() -> None:
    with pytest.raises(SpecError, match="forwards none"):
        parse_vm({"name": "v", "nics": [{"network": "net1", "forward": ["2222:22"]}]})
    with pytest.raises(SpecError, match="there twice"):
        parse_vm({"name": "v", "nics": [{"forward": ["2222:22", "2222:23"]}]})
    with pytest.raises(SpecError, match="at most 4"):
        parse_vm({"name": "v", "nics": [{"forward": [f"{port}:22"]} for port in range(1, 6)]})
    spec = parse_vm({"name": "v", "nics": [{"forward": ["2222:22", "udp:2222:23"]}]})
    assert spec.nics[0].forward == ("2222:22", "udp:2222:23")


def test_the_flag_is_given_once_for_each_forward() -> None:
    flags = {**dict.fromkeys(FLAGS), "nics": ("user,forward=2222:22,forward=8080:80",)}
    assert spec_of("v", flags)["nics"] == [{"network": "user", "forward": ["2222:22", "8080:80"]}]
