"""The nested Xen host as its users see it: what it is, how it is entered, and that it comes and goes whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab_xen.conftest import OWN, XenHost
from vmkit.errors import NotFoundError
from vmkit.lab.api import Labs
from vmkit.lab.layout import Layout
from vmkit.lab.reality import processes
from vmkit.lab.xen.command import DOM0_MEMORY
from vmkit.progress import Event, Finished, Started
from vmkit.system.files import home as vmkit_home
from vmkit.system.journal import records
from vmkit.system.process import run

NAME = f"{OWN}-life"


def test_the_host_is_the_dom0_of_a_real_xen(xen_host: XenHost) -> None:
    facts = xen_host.sh("""
        echo name $(hostname)
        echo clock $(date +%s)
        echo capabilities $(cat /proc/xen/capabilities)
        xl info | sed 's/ *: / /'
        echo guests $(xl list | tail -n +2 | wc -l)
        echo br0 $(ip -4 -br address show br0)
        echo failed $(systemctl list-units --failed --plain --no-legend | cut -d' ' -f1)
        echo disk $(basename $(readlink -f /sys/block/sda/device/../../../../driver))
    """).stdout
    found = dict(line.partition(" ")[::2] for line in facts.splitlines())
    assert found["name"] == "h1"
    assert abs(int(found["clock"]) - time.time()) < 60
    assert found["capabilities"] == "control_d"
    assert found["xen_version"].startswith("4.17.")
    assert {"pv", "hvm", "hap"} <= set(found["virt_caps"].split())
    assert f"dom0_mem={DOM0_MEMORY // 2**20}M" in found["xen_commandline"]
    assert found["guests"] == "1"
    assert f"{xen_host.lab.address}/24" in found["br0"]
    assert found["failed"] == ""
    assert found["disk"] == "ahci"


def test_its_libvirt_has_a_pool_and_networks(xen_host: XenHost) -> None:
    host = xen_host.client.host
    assert host.driver == "Xen"
    assert host.hostname() == "h1"
    assert str(host.pool("vmkit").folder) == "/var/lib/vmkit/pool"
    assert host.network_names() == {"default": True, "lab": True}
    assert run(["virsh", "-c", xen_host.lab.uri, "hostname"], timeout=120).stdout.strip() == "h1"


def nothing_is_left() -> None:
    layout = Layout.of(vmkit_home(), NAME)
    assert processes(layout) == []
    assert not layout.folder.exists()
    assert [r for r in records() if r.subject == NAME] == []
    assert list((vmkit_home() / "cache/lab").glob(".new-*")) == []


@pytest.fixture
def labs(xen_host: XenHost) -> Iterator[Labs]:
    """After `xen_host`, since what it was made of is there then."""
    labs = Labs()
    yield labs
    with contextlib.suppress(NotFoundError):  # the test took it down itself
        labs.down(NAME)


def test_a_second_host_is_loaded_and_not_booted_and_goes_whole(labs: Labs) -> None:
    events: list[Event] = []
    lab = labs.up("xen", name=NAME, reporter=events.append)
    begun = {e.step for e in events if isinstance(e, Started)}
    assert "h1 loaded" in begun
    assert begun.isdisjoint({"host image", "first boot", "saving"})
    assert all(e.seconds < 600 for e in events if isinstance(e, Finished))
    assert (lab.state, lab.kind, lab.host("h1").accel) == ("up", "xen", "tcg")
    assert labs.up("xen", name=NAME).hosts == lab.hosts
    labs.down(NAME)
    nothing_is_left()


def test_an_up_that_is_killed_leaves_nothing_after_the_next_command(labs: Labs) -> None:
    argv = [sys.executable, "-m", "vmkit", "lab"]
    begun = subprocess.Popen([*argv, "up", "xen", "--name", NAME], stderr=subprocess.PIPE)
    layout = Layout.of(vmkit_home(), NAME)
    deadline = time.monotonic() + 600
    while not processes(layout) and time.monotonic() < deadline:
        assert begun.poll() is None
        time.sleep(0.2)
    os.kill(begun.pid, signal.SIGKILL)
    begun.communicate(timeout=60)
    done = subprocess.run([*argv, "list"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0
    assert "was cut off" in done.stderr
    nothing_is_left()
