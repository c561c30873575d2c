"""The command line as a user meets it: output, one clear line for each wrong input, and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

VMKIT = [sys.executable, "-m", "vmkit"]


def vmkit(*argv: str, home: Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VMKIT, *argv],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "VMKIT_HOME": str(home), "VMKIT_CONNECT": "test:///default", **env},
        check=False,
    )


def test_list_as_table_json_yaml_and_names(tmp_path: Path) -> None:
    table = vmkit("list", home=tmp_path)
    assert table.returncode == 0, table.stderr
    assert table.stdout.splitlines()[0].split() == ["NAME", "STATE", "VCPUS", "MEMORY", "IMAGE"]
    assert "(foreign)" in table.stdout
    rows = json.loads(vmkit("list", "-o", "json", home=tmp_path).stdout)
    assert rows[0] == {
        "name": "test",
        "state": "running",
        "vcpus": 2,
        "memory": 2 << 30,
        "image": None,
        "managed": False,
    }
    assert yaml.safe_load(vmkit("list", "-o", "yaml", home=tmp_path).stdout) == rows
    assert vmkit("list", "-o", "name", home=tmp_path).stdout == "test\n"


def test_connect_option_before_and_after_the_command(tmp_path: Path) -> None:
    for argv in (("-c", "test:///default", "list"), ("list", "-c", "test:///default")):
        assert vmkit(*argv, home=tmp_path, VMKIT_CONNECT="bogus:///x").returncode == 0


def test_plan_prints_choices_with_reasons(tmp_path: Path) -> None:
    done = vmkit("create", "a", "--disk", "1G", "--plan", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "BECAUSE" in done.stdout
    assert "empty qcow2" in done.stdout


WRONG = [
    (["-c", "nonsense", "list"], 2, "is not a libvirt URI"),
    (["-c", "bogus:///x", "list"], 2, "is not a libvirt URI"),
    (["-c", "qemu+ssh://root@127.0.0.1:1/system", "list"], 3, "does not answer"),
    (["-c", "qemu+tcp://127.0.0.1:1/system", "list"], 3, "does not answer"),
    (["-c", "qemu+unix:///system?socket=/nowhere", "list"], 3, "does not answer"),
    (["create", "a", "--image", "nothing"], 3, "nothing"),
    (["create", "test"], 3, "there is a VM named 'test'"),
    (["create", "../x"], 2, "name: '../x' cannot be a name"),
    (["create", "<x>"], 2, "name: '<x>' cannot be a name"),
    (["create", "a\nb"], 2, "name: 'a\\nb' cannot be a name"),
    (["create", "x" * 300], 2, "too long for a name"),
    (["create", "a", "--memory", "lots"], 2, "memory: 'lots' is not a size"),
    (["create", "a", "--disk", "1G,bus=floppy"], 2, "disks[0].bus"),
    (["create", "a", "--disk", "1G,bus"], 2, "'bus' is not KEY=VALUE"),
    (["create", "a", "--nic", "nowhere"], 3, "no network 'nowhere'"),
    (["create", "a", "--deadline", "soon"], 2, "--deadline: 'soon' is not a duration"),
    (["show", "nothing"], 3, "no VM named 'nothing'"),
    (["show", "../x"], 3, "no VM named '../x'"),
    (["start", "nothing"], 3, "no VM named 'nothing'"),
    (["resume", "x" * 300], 3, "(300 characters)"),
    (["wait", "test", "--for", "godot"], 2, "--for: 'godot' is nothing to wait for"),
    (["log", "test"], 3, "not logged"),
    (["apply", "-f", "/nowhere.yaml"], 2, "No such file"),
    (["image", "import", "https://[::1"], 2, "source: 'https://[::1' is not a URL"),
    (["restore", "test"], 3, "hint: it was not saved"),
    (["frobnicate"], 2, "error: no such command 'frobnicate'"),
    (["list", "--frob"], 2, "error: no such option"),
    (["delete"], 2, "NAME"),
    (["show"], 2, "error: missing argument 'NAME'\nhint: see vmkit show --help"),
    (["list", "-o", "xml"], 2, "hint: see vmkit list --help"),
]


@pytest.mark.parametrize(("argv", "code", "message"), WRONG, ids=lambda v: "-" if isinstance(v, list) else None)
def test_wrong_input_gives_one_clear_line_and_the_right_code(
    tmp_path: Path, argv: list[str], code: int, message: str
) -> None:
    done = vmkit(*argv, home=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert sum("rror:" in line for line in done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_bad_yaml_names_the_path_of_the_field(tmp_path: Path) -> None:
    text = "vms:\n- name: a\n- name: b\n  disks:\n  - size: 1G\n  - size: 2G\n    bus: floppy\n"
    done = vmkit("apply", "-f", "-", home=tmp_path, stdin=text)
    assert done.returncode == 2
    assert "vms[1].disks[1].bus" in done.stderr


def test_commands_go_on_after_one_name_failed(tmp_path: Path) -> None:
    done = vmkit("pause", "nothing", "test", home=tmp_path)
    assert done.returncode == 3
    assert done.stdout == "test: paused\n"


def test_closed_pipe_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" | true', "sh", *VMKIT, "-c", "test:///default", "list"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "VMKIT_HOME": str(tmp_path)},
        check=False,
    )
    assert done.stderr == ""
