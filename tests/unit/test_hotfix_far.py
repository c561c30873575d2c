"""What is carried to other hosts for a hotfix: complete, in need of nothing else, and refused where it cannot run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from vmkit.errors import ConflictError, EffectError, SpecError, UnsupportedError
from vmkit.hotfix.api import Hotfixes
from vmkit.hotfix.far.api import FarHotfixes, hotfixes_of
from vmkit.hotfix.far.bundle import bundle
from vmkit.hotfix.far.line import Line, value_of
from vmkit.hotfix.far.many import HotfixHosts
from vmkit.hotfix.watch import unit
from vmkit.hypervisor.host import Host
from vmkit.system.templates import template

NEEDED = (
    *("vmkit.hotfix.far.agent", "vmkit.hotfix.soundness", "vmkit.hotfix.codemap", "vmkit.hotfix.recovery"),
    *("vmkit.hotfix.kernel.operation", "vmkit.hotfix.kernel.recovery"),
    *("vmkit.hotfix.unwind", "vmkit.hotfix.newcomers", "capstone", "elftools.elf.elffile", "libvirt"),
)


def nowhere() -> Host:
    raise AssertionError("a host was asked")


def test_what_is_carried_needs_no_other_library(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(bundle())) as tar:
        tar.extractall(tmp_path)  # noqa: S202 - our own
    script = (
        f"import sys; sys.path.insert(0, sys.argv[1]); import {', '.join(NEEDED)}; print(libvirt.VIR_ERR_NO_DOMAIN)"
    )
    bare = [sys.executable, "-I", "-S", "-B", "-c", script, str(tmp_path)]
    done = subprocess.run(bare, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("42\n", "")


def test_a_host_of_another_architecture_is_refused(tmp_path: Path) -> None:
    asked = {"do": "run", "run": "run-1", "length": 0, "sha256": "", "machine": "pdp11", "request": {}}
    door = [sys.executable, "-I", str(template("hotfix-door.py"))]
    options = {"capture_output": True, "text": True, "check": True, "timeout": 60}
    done = subprocess.run(door, input=json.dumps(asked) + "\n", env={"VMKIT_HOME": str(tmp_path)}, **options)
    assert "what is carried there pdp11" in json.loads(done.stdout)["refused"]
    assert not list(tmp_path.iterdir())


def test_which_uris_lead_through_ssh() -> None:
    assert isinstance(hotfixes_of("qemu+ssh://root@far.example/system", nowhere), FarHotfixes)
    for uri in ("qemu:///system", "test:///default", "qemu+tls://far.example/system", "http://[bad"):
        assert type(hotfixes_of(uri, nowhere)) is Hotfixes
    line = Line("qemu+ssh://root@far.example/system?keyfile=/k")
    assert (line.where, line.far_uri) == ("far.example", "qemu:///system")


def test_errors_come_back_as_what_they_were() -> None:
    error = {"kind": "ConflictError", "message": "in use", "hint": "wait", "details": ["a"]}
    with pytest.raises(ConflictError, match=r"^far: in use$") as caught:
        value_of({"error": error}, "far")
    assert (caught.value.hint, caught.value.details) == ("wait", ("a",))
    with pytest.raises(EffectError):
        value_of({"error": {**error, "kind": "annotations"}}, "far")
    assert value_of({"value": [1]}, "far") == [1]


@pytest.mark.parametrize("uris", [[], ["qemu:///system", "qemu:///system"]])
def test_each_host_is_named_once(uris: list[str]) -> None:
    with pytest.raises(SpecError, match="named once"):
        HotfixHosts(uris)


def test_the_unit_runs_the_program_that_printed_it() -> None:
    assert "ExecStart=/opt/vmkit hotfix watch\n" in unit(Path("/opt/vmkit"), None)
    assert "ExecStart=/opt/vmkit -c qemu:///system?a=%%20b hotfix watch\n" in unit(
        Path("/opt/vmkit"), "qemu:///system?a=%20b"
    )


def test_a_service_is_not_carried_anywhere() -> None:
    far = FarHotfixes("qemu+ssh://root@far.example/system", nowhere, carried=True)
    with pytest.raises(UnsupportedError, match=r"carried to far\.example"):
        far.watch()
