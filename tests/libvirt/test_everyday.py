"""Inventory, screens and wide lists, asked of libvirt's test driver as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.libvirt.test_cli import vmkit


def test_the_inventory_is_a_file_that_ansible_reads(tmp_path: Path) -> None:
    found = yaml.safe_load(vmkit("inventory", home=tmp_path).stdout)
    assert list(found["vmkit"]["hosts"]) == ["test"]
    assert found["vmkit"]["hosts"]["test"]["vmkit_state"] == "running"
    assert list(found["vmkit"]["children"]["state_running"]["hosts"]) == ["test"]


def test_the_inventory_answers_as_a_script(tmp_path: Path) -> None:
    listed = json.loads(vmkit("inventory", "--list", home=tmp_path).stdout)
    one = json.loads(vmkit("inventory", "--host", "test", home=tmp_path).stdout)
    assert listed["_meta"]["hostvars"]["test"] == one
    assert json.loads(vmkit("inventory", "--host", "nobody", home=tmp_path).stdout) == {}
    both = vmkit("inventory", "--host", "test", "--list", home=tmp_path)
    assert both.returncode == 2


def test_wide_tells_addresses(tmp_path: Path) -> None:
    lines = vmkit("list", "-o", "wide", home=tmp_path).stdout.splitlines()
    heads = ["NAME", "STATE", "VCPUS", "MEMORY", "IMAGE", "ACCELERATOR", "ADDRESSES", "AUTOSTART", "LABELS"]
    assert lines[0].split() == heads
    assert "192.168.122." in lines[1]


def test_a_picture_of_the_screen(tmp_path: Path) -> None:
    target = tmp_path / "screen.png"
    done = vmkit("screenshot", "test", str(target), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{target}\n"
    assert target.read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("screenshot", "nothing"), 3, "no VM named 'nothing'"),
        (("screenshot", "test", "screen.jpg"), 2, "pictures are PNG"),
        (("screenshot", "test", "/nowhere/screen.png"), 4, "/nowhere/screen.png"),
        (("screenshot", "test", "--screen", "99"), 2, "--screen"),
        (("display", "nothing"), 3, "no VM named 'nothing'"),
        (("display", "test"), 3, "no screen, only a serial console"),
        (("create", "a", "--display", "cinema"), 2, "display: invalid enum value 'cinema'"),
    ],
)
def test_wrong_input(tmp_path: Path, argv: tuple[str, ...], code: int, message: str) -> None:
    done = vmkit(*argv, home=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "hint:" in done.stderr or code == 2 or "/nowhere" in done.stderr
    assert "internal error" not in done.stderr
