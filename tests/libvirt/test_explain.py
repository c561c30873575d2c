"""`vmkit explain` as a user meets it: of flags, of a file, of a VM that exists, as text and as data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.libvirt.test_cli import vmkit


def values(text: str) -> dict[str, str]:
    return {c["subject"]: c["value"] for c in json.loads(text)["choices"]}


def test_of_flags(tmp_path: Path) -> None:
    done = vmkit("explain", "--vcpus", "2", "--memory", "512M", "-o", "json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = values(done.stdout)
    assert (found["vcpus"], found["memory"], found["family"]) == ("2", "512M", "general")
    assert "explained" not in vmkit("list", "-o", "name", home=tmp_path).stdout


def test_of_a_vm_that_another_tool_made(tmp_path: Path) -> None:
    done = vmkit("explain", "test", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("VM test on test:///default, as it is")
    assert "another tool made this VM" in done.stderr
    assert values(vmkit("explain", "test", "-o", "json", home=tmp_path).stdout)["vcpus"] == "2"


def test_of_a_file_also_where_the_vm_exists(tmp_path: Path) -> None:
    done = vmkit("explain", "-f", "-", "-o", "json", home=tmp_path, stdin="vms:\n- name: test\n- name: b\n  vcpus: 3\n")
    assert done.returncode == 0, done.stderr
    assert [p["title"] for p in json.loads(done.stdout)] == ["VM test on test:///default", "VM b on test:///default"]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["explain", "nothing"], 3, "no VM named 'nothing'"),
        (["explain", "-f", "x.yaml", "--vcpus", "2"], 2, "goes with neither"),
        (["explain", "--family", "computer"], 2, "did you mean compute?"),
        (["explain", "--pin", "1", "--vcpus", "2"], 2, "1 entries for 2 vCPUs"),
        (["explain", "--nic", "default,queues=many"], 2, "queues is a whole number"),
        (["explain", "--disk", "1G,iothread=maybe"], 2, "iothread is yes or no"),
        (["explain", "--limit", "cpu_quota=lots"], 2, "cpu_quota is a number of CPUs"),
        (["explain", "--limit", "cpu_quota"], 2, "not KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(argv: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = vmkit(*argv, home=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
