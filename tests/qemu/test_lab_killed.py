"""A lab whose maker, remover or parts are killed: the next command cleans up, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.conftest import OWN
from vmkit.errors import ConflictError, EffectError
from vmkit.hypervisor.host import Host
from vmkit.lab.api import Labs
from vmkit.lab.layout import Layout
from vmkit.lab.pair import build as making
from vmkit.lab.reality import processes
from vmkit.system.files import locked
from vmkit.system.journal import records
from vmkit.system.netlink import Links

NAME = f"{OWN}-killed"

DOMAIN = """<domain type='qemu'><name>idle</name><memory unit='MiB'>16</memory><os><type>hvm</type></os>
<devices><memballoon model='none'/></devices></domain>"""


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, so that what is left in it is this test's."""
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path))
    yield tmp_path
    with contextlib.suppress(Exception):
        Labs().down_all()


def nothing_is_left(home: Path) -> None:
    layout = Layout.of(home, NAME)
    assert processes(layout) == []
    with Links() as links:
        assert [link for link in links.all() if link.alias == layout.alias] == []
    assert list((home / "lab").glob("*")) == []
    assert records() == []


def start(*words: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "vmkit", "lab", *words]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "vmkit", "lab", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_down_leaves_nothing_and_ends_the_guests(own_home: Path) -> None:
    labs = Labs()
    lab = labs.up("pair", name=NAME)
    with Host.connect(lab.host("h1").uri) as host:
        host.create_transient(DOMAIN)
        assert [d.name for d in host.domains()] == ["idle"]
    assert any(r.command.startswith("qemu-system") for r in processes(Layout(lab.folder)))
    labs.down(NAME)
    nothing_is_left(own_home)


@pytest.mark.parametrize("after", [0.2, 0.35, 0.5, 0.8, 1.2, 1.8])
@pytest.mark.parametrize("then", ["down", "up"])
def test_kill_9_of_up(own_home: Path, after: float, then: str) -> None:
    with start("up", "pair", "--name", NAME) as child:
        time.sleep(after)
        child.kill()
    cut_off = bool(records())
    done = command(*([then, NAME] if then == "down" else ["up", "pair", "--name", NAME]))
    if then == "up":
        assert done.returncode == 0, done.stderr
        assert Labs().get(NAME).state == "up"
        Labs().down(NAME)
    elif cut_off:
        assert done.returncode == 0, done.stderr
        assert "was cut off" in done.stderr
    nothing_is_left(own_home)


@pytest.mark.parametrize("after", [0.12, 0.16, 0.2, 0.25])
def test_kill_9_of_down(own_home: Path, after: float) -> None:
    Labs().up("pair", name=NAME)
    with start("down", NAME) as child:
        time.sleep(after)
        child.kill()
    done = command("down", NAME)
    assert done.returncode in (0, 3), done.stderr
    nothing_is_left(own_home)


@pytest.mark.parametrize("command_name", ["dnsmasq", "libvirtd", "virtlogd", "sshd", "unshare"])
def test_a_part_that_was_killed_is_seen_and_up_makes_the_lab_anew(own_home: Path, command_name: str) -> None:
    labs = Labs()
    lab = labs.up("pair", name=NAME)
    victim = next(r for r in processes(Layout(lab.folder)) if r.command == command_name)
    assert victim.id.kill(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while labs.get(NAME).state == "up" and time.monotonic() < deadline:
        time.sleep(0.05)
    broken = labs.get(NAME)
    assert broken.state == "broken"
    assert broken.problem
    assert labs.up("pair", name=NAME).state == "up"
    assert {h.pid for h in labs.get(NAME).hosts}.isdisjoint({h.pid for h in lab.hosts})
    labs.down(NAME)
    nothing_is_left(own_home)


def test_a_host_ends_with_its_init_and_a_broken_lab_with_guests_is_not_remade(own_home: Path) -> None:
    labs = Labs()
    lab = labs.up("pair", name=NAME)
    with Host.connect(lab.host("h2").uri) as host:
        host.create_transient(DOMAIN)
    first = lab.host("h1").pid
    assert first
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while labs.get(NAME).host("h1").state != "down" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [h.state for h in labs.get(NAME).hosts] == ["down", "up"]
    with pytest.raises(ConflictError, match="1 guests still run") as refused:
        labs.up("pair", name=NAME)
    assert f"vmkit lab down {NAME}" in (refused.value.hint or "")
    with pytest.raises(ConflictError, match="down"):
        labs.run(f"{NAME}/h1", ["true"])
    labs.down(NAME)
    nothing_is_left(own_home)


def test_a_lab_whose_files_were_deleted_still_goes(own_home: Path) -> None:
    labs = Labs()
    lab = labs.up("pair", name=NAME)
    for path in sorted(lab.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    lab.folder.rmdir()
    assert list(labs.down_all()) == [NAME]
    nothing_is_left(own_home)


def test_a_failure_half_way_says_why_and_leaves_nothing(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = making.programs()
    broken = own_home / "broken"
    broken.write_text("#!/bin/sh\necho no luck today >&2\nexit 9\n")
    broken.chmod(0o755)
    monkeypatch.setattr(making, "programs", lambda: {**found, "libvirtd": broken})
    with pytest.raises(EffectError, match=r"cannot start: .*broken|libvirtd.* ended") as failed:
        Labs().up("pair", name=NAME)
    assert any("no luck today" in line for line in failed.value.details)
    nothing_is_left(own_home)


def test_a_lab_that_another_process_works_on_is_left_alone(own_home: Path) -> None:
    layout = Layout.of(own_home, NAME)
    layout.folder.mkdir(parents=True)
    with locked(layout.lock, busy="test"):
        done = command("down", NAME)
    assert done.returncode == 3
    assert "another process" in done.stderr
    assert command("down", NAME).returncode == 0
    nothing_is_left(own_home)


def test_ups_at_the_same_time(own_home: Path) -> None:
    """Of one name: the second waits and finds the lab up. Of two names: they take different subnets."""
    other = f"{NAME}-2"
    children = [start("up", "pair", "--name", name) for name in (NAME, NAME, other)]
    assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    labs = Labs()
    assert {h.state for h in labs.list()} == {"up"}
    assert len(labs.list()) == 4
    assert len({h.subnet for h in labs.list()}) == 2
    assert list(labs.down_all()) == [NAME, other]
    nothing_is_left(own_home)
