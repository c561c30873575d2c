"""Labs of nested hosts from up to down: loaded in seconds, joined, killed in every way, gone without a trace."""

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

from tests.lab_kvm.conftest import OPTIONS, OWN, KvmHost
from vmkit.client import Client
from vmkit.errors import ConflictError
from vmkit.lab.api import Lab, Labs
from vmkit.lab.layout import Layout
from vmkit.lab.reality import processes
from vmkit.progress import Event, Finished, Started
from vmkit.system.files import home as vmkit_home
from vmkit.system.journal import records

NAME = f"{OWN}-life"


@pytest.fixture
def labs(kvm_host: KvmHost) -> Iterator[Labs]:
    """After `kvm_host`, since what it was made of is there then."""
    labs = Labs()
    yield labs
    with contextlib.suppress(Exception):
        labs.down(NAME)


def nothing_is_left() -> None:
    layout = Layout.of(vmkit_home(), NAME)
    assert processes(layout) == []
    assert not layout.folder.exists()
    assert not layout.lock.exists()
    assert [r for r in records() if r.subject == NAME] == []
    assert list((vmkit_home() / "cache/lab").glob(".new-*")) == []


@pytest.fixture(scope="module")
def two(kvm_host: KvmHost) -> Iterator[tuple[Lab, list[Event]]]:
    """Two hosts, and what was told while they came up."""
    events: list[Event] = []
    lab = Labs().up("kvm", name=f"{OWN}-two", hosts=2, options=OPTIONS, reporter=events.append)
    yield lab, events
    Labs().down(lab.name)


def test_hosts_are_loaded_and_not_booted_where_one_has_booted_before(two: tuple[Lab, list[Event]]) -> None:
    lab, events = two
    begun = {e.step for e in events if isinstance(e, Started)}
    assert {"h1 loaded", "h2 loaded"} <= begun
    assert begun.isdisjoint({"host image", "first boot", "saving"})
    assert all(e.seconds < 120 for e in events if isinstance(e, Finished))
    assert [h.state for h in lab.hosts] == ["up", "up"]


def test_hosts_that_were_loaded_from_one_state_are_two_hosts(two: tuple[Lab, list[Event]], kvm_host: KvmHost) -> None:
    lab, _ = two
    script = """
        cat /etc/machine-id /sys/class/net/br0/address /etc/ssh/ssh_host_ed25519_key.pub /etc/libvirt/libvirtd.conf
        hostname
        head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'
    """
    names = [*(h.name for h in lab.hosts), kvm_host.lab.name]
    said = [Labs().run(name, ["sh"], stdin=script).stdout.splitlines() for name in names]
    for line in range(len(said[0])):
        differ = 2 if said[0][line] == "h1" else 3  # two of the three are called h1
        assert len({one[line] for one in said}) == differ, said


def test_hosts_reach_each_other_by_name_and_by_the_same_uri(two: tuple[Lab, list[Event]]) -> None:
    lab, _ = two
    script = f"""
        ping -c 1 -W 10 h2 >/dev/null && ssh h2 hostname
        virsh -c '{lab.host("h2").uri}' hostname
        virsh -c qemu+ssh://root@h2/system hostname
    """
    assert Labs().run(f"{lab.name}/h1", ["sh", "-e"], stdin=script).stdout.split() == ["h2", "h2", "h2"]


def test_a_guest_with_a_disk_moves_from_host_to_host(two: tuple[Lab, list[Event]]) -> None:
    lab, _ = two
    here, there = lab.host("h1"), lab.host("h2")
    with Client(here.uri) as source, Client(there.uri) as target:
        # From the machine outside, as a user of the lab does; the guest is emulated or not as the hosts say.
        Labs().run(
            here.name,
            ["vmkit", "create", "mover", "--image", "micro", "--accel", "kvm", "--nic", "lab", "--wait"],
            timeout=600,
        )
        assert [d.name for d in source.host.domains()] == ["mover"]
        done = Labs().run(here.name, ["vmkit", "migrate", "mover", "--to", "qemu+ssh://root@h2/system"], timeout=600)
        assert done.status == 0, done.stdout + done.stderr
        assert [d.name for d in source.host.domains()] == []
        assert [d.name for d in target.host.domains()] == ["mover"]
        deleted = Labs().run(there.name, ["vmkit", "delete", "mover", "--force"], timeout=300)
        assert deleted.status == 0, deleted.stderr
    assert not list(Path(lab.folder / "pool").glob("mover*"))


def start(*words: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "vmkit", "lab", *words]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "vmkit", "lab", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)


def up_argv() -> list[str]:
    return ["up", "kvm", "--name", NAME, "--sriov", "--hugepages", str(OPTIONS.hugepages)]


@pytest.mark.parametrize(("number", "then"), [(signal.SIGKILL, "down"), (signal.SIGINT, "")])
def test_an_up_that_is_stopped_half_way(labs: Labs, number: signal.Signals, then: str) -> None:
    layout = Layout.of(vmkit_home(), NAME)
    with start(*up_argv()) as child:
        deadline = time.monotonic() + 120
        while not (layout.host("h1") / "qmp").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(number)
        child.wait(60)
    if then:
        assert processes(layout)
        done = command("down", NAME)
        assert done.returncode == 0, done.stderr
        assert "was cut off" in done.stderr
    nothing_is_left()


def test_a_host_that_is_killed_is_seen_and_up_makes_it_anew(labs: Labs) -> None:
    lab = labs.up("kvm", name=NAME, options=OPTIONS)
    first = lab.host("h1").pid
    assert first
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while labs.get(NAME).state == "up" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert labs.get(NAME).state == "down"
    with pytest.raises(ConflictError, match="does not run"):
        labs.run(f"{NAME}/h1", ["true"])
    again = labs.up("kvm", name=NAME, options=OPTIONS)
    assert again.state == "up"
    assert again.host("h1").pid != first
    assert command("down", NAME).returncode == 0
    nothing_is_left()
