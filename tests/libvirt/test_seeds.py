"""VMs with a seed on libvirt's test driver: what is made, what is shown, what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from vmkit import Client
from vmkit.errors import ConflictError, SpecError
from vmkit.image import keys
from vmkit.system.journal import records
from vmkit.vm.spec import parse

URI = "test:///default"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "16M"], check=True)
    with Client(URI) as client:
        client.images.import_(disk, "cloud")
        yield client


def test_a_seed_is_made_and_goes_with_the_vm(client: Client) -> None:
    made = client.vms.create({"name": "web1", "image": "cloud", "cloud_init": {"password": "generate"}})
    pool = client.host.pool("vmkit")
    assert "web1-seed.iso" in pool.names()
    assert made.password is not None
    assert made.password not in made.vm.domain.xml()
    memory = made.vm.remembered()
    assert memory is not None
    assert memory.access is not None
    assert memory.access.keys == (keys.own_public_key(),)
    assert made.vm.delete(force=True) == ("domain web1", "volume web1-0.qcow2", "volume web1-seed.iso")
    assert "web1-seed.iso" not in pool.names()
    assert records() == []


def test_a_plan_makes_no_key(client: Client) -> None:
    plan = client.vms.plan({"name": "web1", "image": "cloud", "cloud_init": {}})
    assert "volume web1-seed.iso" in [s.what for s in plan.steps]
    assert keys.own_public_key() is None


def test_nothing_is_made_of_a_seed_that_is_wrong(client: Client) -> None:
    with pytest.raises(SpecError, match="no such key"):
        client.vms.create({"name": "web1", "image": "cloud", "cloud_init": {"user_data": {"run_cmd": []}}})
    names = client.host.pool("vmkit").names() if keys.own_public_key() else []
    assert "web1-0.qcow2" not in names
    assert "web1" not in [d.name for d in client.host.domains()]


def test_apply_sees_that_user_data_changed(client: Client) -> None:
    spec = {"name": "web1", "image": "cloud", "cloud_init": {"user_data": {"packages": ["vim"]}}}
    assert [a.action for a in client.vms.apply([parse(spec)])] == ["created"]
    assert [a.action for a in client.vms.apply([parse(spec)])] == ["unchanged"]
    spec["cloud_init"] = {"user_data": {"packages": ["emacs"]}}
    with pytest.raises(ConflictError, match="made anew"):
        client.vms.apply([parse(spec)])
    client.vms.get("web1").delete(force=True)


def vmkit(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmkit", "-c", URI, *argv]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=120, check=False)


def test_the_password_is_shown_once(client: Client, tmp_path: Path) -> None:
    (tmp_path / "ud.yaml").write_text("#cloud-config\npackages: [vim]\n")
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAAkey me\n")
    flags = ("--user-data", str(tmp_path / "ud.yaml"), "--ssh-key", str(tmp_path / "id.pub"), "--generate-password")
    done = vmkit("create", "web1", "--image", "cloud", *flags, "--user", "ops", "--no-start")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("password: ")
    told = json.loads(vmkit("create", "web2", "--image", "cloud", "--generate-password", "-o", "json").stdout)
    assert told["password"].count("-") == 2
    plan = vmkit("create", "web1", "--image", "cloud", *flags, "--plan").stdout
    assert "vmkit's own and 1 more" in plan
    assert "password: " not in plan


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--user-data", "/no/such/file"], 2, "cloud_init.user_data_file: cannot read"),
        (["--ssh-key", "nonsense"], 2, "cloud_init.ssh_keys[0]: cannot read"),
        (["--user", "Not A User"], 2, "no user name"),
        (["--hostname", "_"], 2, "no host name"),
        (["--network-config", "/dev/null"], 2, "has no version"),
    ],
)
def test_wrong_flags(client: Client, flags: list[str], code: int, message: str) -> None:
    done = vmkit("create", "web1", "--image", "cloud", *flags)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["ssh", "nobody"], 3, "no VM named"),
        (["copy", "a", "b"], 2, "neither side is a guest"),
        (["copy", "test:/a", "other:/b"], 2, "both sides"),
        (["copy", "/etc/hostname", "test:/tmp"], 3, "no guest agent answers in test, and by ssh"),
        (["exec", "nobody", "true"], 3, "no VM named"),
        (["exec", "test", "--by", "agent", "-u", "x", "true"], 3, "as root"),
    ],
)
def test_wrong_ways_in(client: Client, argv: list[str], code: int, message: str) -> None:
    done = vmkit(*argv)
    assert message in done.stderr, done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_options_end_where_the_program_begins() -> None:
    from vmkit.cli.reach import exec_, ssh

    def parsed(command: Any, *argv: str) -> dict[str, Any]:
        return dict(command.make_context("x", list(argv)).params)

    for argv in (
        ["web1", "ls", "-i", "--user", "x"],
        ["web1", "--", "ls", "-i", "--user", "x"],
        ["--timeout", "5", "web1", "ls", "-i", "--user", "x"],
        ["web1", "--timeout=5", "ls", "-i", "--user", "x"],
    ):
        found = parsed(exec_, *argv)
        assert (found["name"], found["argv"]) == ("web1", ("ls", "-i", "--user", "x"))
        assert (found["with_stdin"], found["user"]) == (False, None)
    found = parsed(ssh, "web1", "-p", "2222", "--print", "sudo", "-u", "bob", "--", "id")
    assert (found["port"], found["show"], found["argv"]) == (2222, True, ("sudo", "-u", "bob", "--", "id"))
    assert parsed(ssh, "-u", "ops", "web1")["user"] == "ops"
    with pytest.raises(click.UsageError):
        parsed(exec_, "web1", "--no-such-option", "ls")
