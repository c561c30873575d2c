"""Networks through API and command line, on libvirt's test driver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.libvirt.test_cli import vmkit
from vmkit import Client
from vmkit.errors import ConflictError, NotFoundError
from vmkit.system.journal import records


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path))
    with Client("test:///default") as client:
        yield client


def test_life_of_a_network(client: Client) -> None:
    made = client.networks.create({"name": "net1", "subnet": "192.168.150.0/24"})
    assert (made.state, made.mode, made.subnet, made.managed) == ("active", "nat", "192.168.150.0/24", True)
    assert [n.name for n in client.networks.list()] == ["default", "net1"]
    with pytest.raises(ConflictError, match="already"):
        client.networks.create({"name": "net1"})
    with pytest.raises(ConflictError, match="overlaps"):
        client.networks.create({"name": "net2", "subnet": "192.168.150.0/25"})
    assert client.networks.start("net1") is False
    client.networks.delete("net1")
    with pytest.raises(NotFoundError, match="no network named 'net1'"):
        client.networks.show("net1")
    assert records() == []


def test_what_vms_are_on_is_kept(client: Client) -> None:
    client.networks.create({"name": "net1"})
    client.vms.create({"name": "a", "disks": [{"size": "1G"}], "nics": [{"network": "net1"}]})
    assert next(n.vms for n in client.networks.list() if n.name == "net1") == 1
    with pytest.raises(ConflictError, match=r"VMs are on the network 'net1': a \(running\)"):
        client.networks.delete("net1")
    client.vms.get("a").delete(force=True)
    client.networks.delete("net1")


def test_networks_of_other_tools_take_force(client: Client) -> None:
    with pytest.raises(ConflictError, match="made by another tool"):
        client.networks.delete("default")
    with pytest.raises(ConflictError, match="another tool made it"):
        client.networks.apply({"name": "default"})
    client.networks.delete("default", force=True)
    assert client.networks.list() == []


def test_apply_twice(client: Client) -> None:
    spec: dict[str, object] = {"name": "net1", "mode": "isolated", "subnet": "192.168.150.0/24"}
    assert client.networks.check(spec) is None
    assert client.networks.apply(spec).action == "created"
    assert client.networks.check(spec) == ()
    assert client.networks.apply(spec).action == "unchanged"
    changed = {**spec, "subnet": "192.168.151.0/24", "autostart": False}
    assert [(d.field, d.effect.value) for d in client.networks.check(changed) or ()] == [
        ("autostart", "live"),
        ("subnet", "re-creation"),
    ]
    assert client.networks.apply(changed).action == "changed"
    made = client.networks.show("net1")
    assert (made.subnet, made.autostart, made.state) == ("192.168.151.0/24", False, "active")
    assert client.networks.apply(changed).action == "unchanged"


def test_the_command_line(tmp_path: Path) -> None:
    listed = vmkit("network", "list", "-o", "json", home=tmp_path)
    assert [n["name"] for n in json.loads(listed.stdout)] == ["default"]
    planned = vmkit("network", "create", "net1", "--plan", home=tmp_path)
    assert "nobody reaches them from there" in planned.stdout
    assert vmkit("network", "create", "net1", home=tmp_path).stdout.startswith("net1: nat, ")


def test_addresses_are_shown(tmp_path: Path) -> None:
    assert vmkit("ip", "test", "-o", "name", home=tmp_path).stdout == "192.168.122.3\n"
    (row,) = json.loads(vmkit("ip", "test", "-o", "json", home=tmp_path).stdout)
    assert (row["network"], row["doubtful"]) == ("network:default", False)


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (("network", "create", "auto"), 2, "means something else to a NIC"),
        (("network", "create", "n", "--mode", "nats"), 2, "one of nat, isolated, bridge"),
        (("network", "create", "n", "--subnet", "10.0.0.1/8"), 2, "did you mean 10.0.0.0/8?"),
        (("network", "show", "defalt"), 3, "did you mean default?"),
        (("network", "delete", "default"), 3, "--force"),
        (("network", "release", "default", "web1"), 3, "nothing is reserved"),
        (("wait", "test", "--for", "everything"), 2, "cloud-init, port:N"),
        (("wait", "test", "--for", "port:x"), 2, "write it like port:80"),
        (("ip", "tset"), 3, "did you mean test?"),
        (("create", "v", "--nic", "user,forward=22"), 2, "HOST_PORT:GUEST_PORT"),
        (("create", "v", "--nic", "default,forward=2222:22"), 2, "network: user"),
    ],
)
def test_wrong_input(tmp_path: Path, argv: tuple[str, ...], code: int, text: str) -> None:
    done = vmkit(*argv, home=tmp_path)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
