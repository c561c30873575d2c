"""VMs as an inventory of Ansible's: what is in which group, and how each is reached."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from vmkit.vm.inventory import answer_list, group_name, inventory, variables
from vmkit.vm.overview import Overview

WEB = Overview(
    name="web1",
    state="running",
    vcpus=2,
    memory=512 << 20,
    image="debian",
    managed=True,
    accelerator="kvm",
    addresses=("192.168.122.5", "10.0.0.5"),
    autostart=False,
    uuid="6d1b3f0e-8d7d-4b3f-9d53-1f0c4a3c2b1a",
    user="ops",
    entrance=("192.168.122.5", 22),
    key="/root/.ssh/id_ed25519",
    labels={"role": "front-end", "ansible_port": "2222"},
)
OFF = replace(
    WEB, name="db.1", state="shut off", image=None, addresses=(), user=None, entrance=None, key=None, labels={}
)


def test_groups_by_state_image_and_label() -> None:
    found = inventory([WEB, OFF])["vmkit"]
    assert list(found["hosts"]) == ["web1", "db.1"]
    assert {k: list(v["hosts"]) for k, v in found["children"].items()} == {
        "image_debian": ["web1"],
        "label_role_front_end": ["web1"],
        "state_running": ["web1"],
        "state_shut_off": ["db.1"],
    }


def test_how_a_vm_is_reached() -> None:
    known = variables(WEB)
    assert known["ansible_host"] == "192.168.122.5"
    assert known["ansible_user"] == "ops"
    assert known["ansible_ssh_private_key_file"] == "/root/.ssh/id_ed25519"
    assert known["ansible_port"] == "2222"  # a label has the last word
    assert "ansible_ssh_common_args" not in known
    assert not [name for name in variables(OFF) if name.startswith("ansible_")]


def test_a_vm_on_a_user_network_is_reached_by_its_forward() -> None:
    known = variables(replace(WEB, addresses=("10.0.2.15",), entrance=("127.0.0.1", 2222), labels={}))
    assert (known["ansible_host"], known["ansible_port"]) == ("127.0.0.1", 2222)
    assert "ansible_host" not in variables(replace(WEB, addresses=("10.0.2.15",), entrance=None))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("qemu:///system", None),
        ("qemu+tcp://h/system", None),
        ("qemu+ssh://h/system", "-o ProxyCommand='ssh -W %h:%p -q h'"),
        (
            "qemu+ssh://root@h:2222/system?keyfile=/k/id",
            "-o ProxyCommand='ssh -W %h:%p -q -i /k/id -p 2222 -l root h'",
        ),
        ("qemu+ssh://root@h/system?command=/lab/ssh", "-o ProxyCommand='/lab/ssh -W %h:%p -q -l root h'"),
        ("qemu+ssh://h/system?keyfile=/my%20keys/id", None),
        ("qemu+ssh://h/system?keyfile=/k%27;reboot;%27", None),
        ("qemu+ssh://-oProxyCommand=x/system", None),
    ],
)
def test_vms_behind_another_machine_are_reached_through_it(uri: str, expected: str | None) -> None:
    assert variables(WEB, uri).get("ansible_ssh_common_args") == expected


@pytest.mark.parametrize("words", [("label", "a b", "c/d"), ("9",), ("state", "shut off"), ("ü", "x"), ("a" * 300,)])
def test_group_names_are_ones_that_ansible_takes(words: tuple[str, ...]) -> None:
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", group_name(*words))


def test_the_answer_of_a_script_has_all_variables_at_once() -> None:
    answer = answer_list(inventory([WEB, OFF]))
    assert answer["_meta"]["hostvars"]["web1"]["ansible_host"] == "192.168.122.5"
    assert answer["vmkit"]["hosts"] == ["db.1", "web1"]
    assert answer["state_running"] == {"hosts": ["web1"]}
    for group in answer["vmkit"]["children"]:
        assert group in answer
    assert answer_list(inventory([])) == {
        "_meta": {"hostvars": {}},
        "all": {"children": ["vmkit"]},
        "vmkit": {"hosts": []},
    }
