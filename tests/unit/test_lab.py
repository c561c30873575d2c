"""The deciding parts of a lab: subnet, names, identities, texts, state."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import NotFoundError, RefusedError, SpecError
from vmkit.lab.api import Labs
from vmkit.lab.layout import Layout
from vmkit.lab.pair import config
from vmkit.lab.pair import kind as pair_kind
from vmkit.lab.pair.blueprint import Blueprint, blueprint, free_subnets, link_name, mac, subnets
from vmkit.lab.state import LabState, Phase, load, save
from vmkit.values import check_mac

NET = IPv4Network("192.168.150.0/24")
LAYOUT = Layout(Path("/var/lib/vmkit/lab/pair"))


def plan(hosts: int = 2) -> Blueprint:
    return blueprint("pair", hosts, NET, "machine-1")


def settings(text: str, separator: str = "=") -> dict[str, str]:
    pairs = (line.partition(separator) for line in text.splitlines() if separator in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


# -- blueprint


def test_a_subnet_that_a_route_overlaps_is_not_taken() -> None:
    first = next(subnets("pair"))
    taken = [first, IPv4Network("10.0.0.0/8"), IPv4Network("192.168.128.0/20"), IPv4Network("192.168.200.7/32")]
    free = free_subnets("pair", taken)
    assert first in free_subnets("pair", [])
    assert free
    assert not any(subnet.overlaps(other) for subnet in free for other in taken)


def test_labs_of_different_names_begin_their_search_at_different_places() -> None:
    assert len({next(subnets(name)) for name in ("pair", "a", "b", "c", "d", "e")}) > 3


def test_no_subnet_left_is_refused_with_a_hint() -> None:
    with pytest.raises(RefusedError) as refused:
        free_subnets("pair", [IPv4Network("0.0.0.0/1"), IPv4Network("128.0.0.0/1")])
    assert refused.value.hint


def test_every_link_name_fits_linux_and_names_one_subnet() -> None:
    names = [link_name(s) for s in subnets("pair")]
    assert max(map(len, names)) <= 15
    assert len(set(names)) == len(names)


@given(st.integers(min_value=2, max_value=8))
def test_addresses_are_in_the_subnet_and_apart(count: int) -> None:
    made = plan(count)
    fixed = [made.gateway, made.switch, *(h.address for h in made.hosts)]
    assert len(set(fixed)) == count + 2
    octets = [int(a.rpartition(".")[2]) for a in (*fixed, *made.dhcp, *made.static)]
    assert all(a.startswith("192.168.150.") for a in fixed)
    assert max(octets[: count + 2]) < octets[-4] < octets[-3] < octets[-2] < octets[-1] < 255


def test_identities_are_settled_by_machine_lab_and_host() -> None:
    assert plan() == plan()
    elsewhere = blueprint("pair", 2, NET, "machine-2")
    other = blueprint("other", 2, NET, "machine-1")
    uuids = {h.uuid for p in (plan(), elsewhere, other) for h in p.hosts}
    assert len(uuids) == 6
    macs = {h.mac for p in (plan(), elsewhere, other) for h in p.hosts} | {plan().switch_mac}
    assert len(macs) == 7


@given(st.text())
def test_every_mac_is_unicast(seed: str) -> None:
    assert check_mac(mac(seed)) == mac(seed)


@pytest.mark.parametrize("count", [-1, 0, 1, 9, 1000])
def test_a_number_of_hosts_that_cannot_be(count: int) -> None:
    with pytest.raises(SpecError, match="between 2 and 8"):
        plan(count)


# -- layout


@pytest.mark.parametrize(
    "folder", ["/run/x", "/run", "/var/lib/libvirt/x", "/var/log/v", "/a b", "/a;b", "/a%b", '/a"b']
)
def test_a_folder_that_a_lab_cannot_live_in(folder: str) -> None:
    with pytest.raises(RefusedError) as refused:
        pair_kind.check_place(Layout(Path(folder) / "lab/pair"))
    assert "VMKIT_HOME" in (refused.value.hint or "")


@pytest.mark.parametrize("folder", ["/var/lib/vmkit", "/tmp/pytest-of-root/pytest-0/home0", "/runs/x", "/home/a.b/c_d"])
def test_a_folder_that_a_lab_can_live_in(folder: str) -> None:
    pair_kind.check_place(Layout(Path(folder) / "lab/pair"))


def test_the_lock_is_no_lab_and_the_alias_fits_and_tells_labs_apart() -> None:
    deep = Layout.of(Path("/" + "x" * 250 + "/" + "y" * 250), "n" * 63)
    assert deep.lock.name.startswith(".")
    assert len(deep.alias) <= 255
    assert Layout.of(Path("/a"), "pair").alias != Layout.of(Path("/b"), "pair").alias


# -- texts


def test_libvirt_of_each_host_has_its_own_uuid_and_address() -> None:
    for host in plan().hosts:
        assert settings(config.libvirtd_conf(host))["host_uuid"] == f'"{host.uuid}"'
        conf = settings(config.qemu_conf(LAYOUT, host))
        assert conf["migration_address"] == conf["migration_host"] == f'"{host.address}"'
        assert conf["cgroup_controllers"] == "[]"
        assert conf["security_driver"] == '"none"'
        assert str(LAYOUT.pool) in conf["shared_filesystems"]


def test_sshd_takes_keys_only_and_listens_on_the_hosts_address_only() -> None:
    host = plan().hosts[1]
    conf = settings(config.sshd_config(LAYOUT, host), " ")
    assert conf["ListenAddress"] == host.address
    assert conf["PasswordAuthentication"] == conf["KbdInteractiveAuthentication"] == "no"
    assert conf["PermitRootLogin"] == "prohibit-password"
    assert conf["AuthorizedKeysFile"].startswith("/etc/ssh/")
    assert conf["SetEnv"] == f'"VMKIT_HOME={LAYOUT.host(host.name)}/var-lib-vmkit"'


def test_ssh_checks_host_keys_and_keeps_off_the_users_files() -> None:
    text = config.ssh_config(LAYOUT, plan())
    conf = settings(text.partition("Host *\n")[2].replace("  ", ""), " ")
    assert conf["StrictHostKeyChecking"] == "yes"
    assert conf["UserKnownHostsFile"] == str(LAYOUT.known_hosts)
    assert conf["GlobalKnownHostsFile"] == "/dev/null"
    assert conf["IdentityAgent"] == "none"
    assert "~" not in text
    assert "Host h2\n  HostName 192.168.150.12\n" in text


def test_known_hosts_lists_each_host_by_address_and_name() -> None:
    keys = {"h1": "ssh-ed25519 AAAA1 vmkit lab\n", "h2": "ssh-ed25519 AAAA2 vmkit lab\n"}
    assert config.known_hosts(plan(), keys).splitlines() == [
        "192.168.150.11,h1 ssh-ed25519 AAAA1",
        "192.168.150.12,h2 ssh-ed25519 AAAA2",
    ]


def test_dhcp_leaves_the_fixed_addresses_alone_and_asks_nobody_outside() -> None:
    made = plan()
    lines = config.dnsmasq_conf(LAYOUT, made).splitlines()
    assert "dhcp-range=192.168.150.100,192.168.150.199,255.255.255.0,12h" in lines
    assert {"no-resolv", "no-hosts", "bind-interfaces", "except-interface=lo"} <= set(lines)
    assert "host-record=h1,h1.lab,192.168.150.11" in lines


def test_only_roots_home_and_shell_change_in_passwd() -> None:
    machine = "root:x:0:0:root:/root:/bin/zsh\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n+::::::\nodd\n"
    changed = config.passwd(machine).splitlines()
    assert changed[0] == "root:x:0:0:root:/run/root:/bin/sh"
    assert changed[1:] == machine.splitlines()[1:]


def test_the_init_config_survives_json_and_binds_only_the_hosts_own_files() -> None:
    host = plan().hosts[0]
    wanted = config.init_config(LAYOUT, host, {d: Path(f"/usr/sbin/{d}") for d in config.DAEMONS})
    assert config.InitConfig.parse(wanted.plain()) == wanted
    assert all(Path(source).is_relative_to(LAYOUT.host("h1")) for source, _ in wanted.binds)
    made = {*config.host_files(LAYOUT, plan(), host), *config.host_folders(), "passwd", "var-log"}
    assert {Path(source).name for source, _ in wanted.binds} <= made
    assert [d.name for d in wanted.daemons] == list(config.DAEMONS)


def test_the_uri_names_the_wrapper() -> None:
    uri = config.uri(LAYOUT, plan().hosts[0])
    assert uri == "qemu+ssh://root@192.168.150.11/system?command=/var/lib/vmkit/lab/pair/ssh"
    assert config.ssh_wrapper(LAYOUT).splitlines() == [
        "#!/bin/sh",
        'exec ssh -F /var/lib/vmkit/lab/pair/ssh_config "$@"',
    ]


def test_pool_and_network_are_what_the_other_parts_expect() -> None:
    pool, network = ET.fromstring(config.pool_xml(LAYOUT)), ET.fromstring(config.network_xml())
    assert (pool.findtext("name"), pool.findtext("target/path")) == ("vmkit", str(LAYOUT.pool))
    bridge = network.find("bridge")
    assert network.findtext("name") == "lab"
    assert bridge is not None
    assert bridge.get("name") == config.BRIDGE


# -- state


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    state = LabState("pair", "pair", "token", "2026-01-01T00:00:00+00:00", Phase.BUILDING)
    for written in (state, state.at(Phase.BUILDING, plan(3).plain()), replace(state, plan=plan().plain()).at(Phase.UP)):
        save(layout, written)
        assert load(layout) == written


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 1}', '{"name":"a","kind":"b","phase":"x"}'])
def test_a_state_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    layout = Layout(tmp_path)
    layout.state.write_text(text)
    assert load(layout) is None


# -- facade, as far as it decides


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", "x" * 300, "-x", "a\nb", "<a>"])
def test_names_that_cannot_be(home: Path, name: str) -> None:
    for call in (Labs().get, Labs().down, lambda n: Labs().up(name=n or "-")):
        with pytest.raises(SpecError):
            call(name)
    assert not (home / "lab").exists()


def test_an_unknown_lab_is_not_found_and_the_hint_says_what_there_is(home: Path) -> None:
    with pytest.raises(NotFoundError) as nothing:
        Labs().down("pair")
    assert "vmkit lab up pair" in (nothing.value.hint or "")
    (home / "lab/other").mkdir(parents=True)
    with pytest.raises(NotFoundError) as missing:
        Labs().get("pair")
    assert "other" in (missing.value.hint or "")


def test_only_root_may_bring_a_lab_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RefusedError) as refused:
        Labs().up("pair")
    assert refused.value.exit_code == 3
    assert "sudo vmkit lab up pair" in (refused.value.hint or "")
    assert not (home / "lab").exists()


def test_no_labs_is_an_empty_list(home: Path) -> None:
    assert Labs().list() == []
    with pytest.raises(NotFoundError):
        Labs().find("h1")
