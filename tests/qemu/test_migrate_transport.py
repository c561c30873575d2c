"""What carries a migration, for real: straight and through a tunnel of ssh, and what is left of the tunnel."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.mover import Mover, jobs, vmkit
from vmkit.client import Client
from vmkit.errors import RefusedError
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.system.tunnel import FOLDER, congestion_controls

LIMIT = "24M"


@pytest.fixture(scope="module")
def mover(pair: Lab, micro: Image) -> Iterator[Mover]:
    vm = Mover(pair, "carried", pair.hosts[0].static[0].rpartition(".")[0] + ".207")
    vm.create()
    yield vm
    vm.close()


def beside_ssh(lab: Lab) -> set[tuple[int, int]]:
    """Ports, here and there, of TCP listeners and connections of both hosts that are none of ssh."""
    found = set()
    for host in lab.hosts:
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{host.pid}/net/{table}").read_text().splitlines()[1:]:
                _, here, there, state, *_ = line.split()
                ports = (int(here.rpartition(":")[2], 16), int(there.rpartition(":")[2], 16))
                if state in ("01", "0A") and 22 not in ports:  # established, listening: <net/tcp_states.h>
                    found.add(ports)
    return found


def sockets(lab: Lab) -> list[str]:
    """Sockets of tunnels on both hosts, and folders for them on this machine."""
    found = [f for h in lab.hosts for f in Path(f"/proc/{h.pid}/root{FOLDER}").glob("vmkit-*")]
    return [str(f) for f in (*found, *Path(tempfile.gettempdir()).glob("vmkit-tunnel-*"))]


def tunnels(lab: Lab) -> list[str]:
    """Processes of tunnels, by what they were started with; not those of other labs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if any(b"vmkit-tunnel-" in w for w in words) and any(h.address.encode() in words for h in lab.hosts):
            found.append(b" ".join(words).decode(errors="replace"))
    return found


def wait_until_none(lab: Lab) -> None:
    end = time.monotonic() + 60
    while (left := [*tunnels(lab), *sockets(lab)]) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left


def test_straight_and_through_the_tunnel(mover: Mover, pair: Lab) -> None:
    """The guest goes on either way; with the tunnel no port but ssh's is open while it moves."""
    before, seen = mover.counter(60.0), {}
    for options in (["direct"], ["ssh", "--congestion", congestion_controls()[0]]):
        target = mover.target
        process = mover.start_migrate("--transport", *options, "--bandwidth", LIMIT, "-o", "json", "--deadline", "300s")
        mover.wait_for_transfer(process)
        seen[options[0]] = beside_ssh(pair)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        report = json.loads(output)
        assert (report["running_copies"], mover.source) == (1, target)
        after = mover.counter(60.0)
        assert after > before
        before = after
        assert f"transport {options[0]}:" in errors
    assert seen["ssh"] == set()
    assert seen["direct"]
    wait_until_none(pair)


def test_post_copy_through_the_tunnel(mover: Mover, pair: Lab) -> None:
    """There the tunnel belongs to the process that holds the migration."""
    target, before = mover.target, mover.counter(60.0)
    with Client(mover.source) as client:
        report = client.migrations.migrate(mover.name, target, mode="post-copy", transport="ssh", deadline=300.0)
    assert (mover.source, report.technique) == (target, "post-copy")
    assert mover.counter(60.0) > before
    wait_until_none(pair)


@pytest.mark.parametrize("options", [[], ["--mode", "hybrid"]])
def test_vmkit_killed_with_a_tunnel_open(mover: Mover, pair: Lab, options: list[str]) -> None:
    source, before = mover.source, mover.counter(60.0)
    process = mover.start_migrate("--transport", "ssh", "--bandwidth", "2M", *options)
    mover.wait_for_transfer(process)
    assert tunnels(pair)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    end = time.monotonic() + 120
    while jobs() and time.monotonic() < end:
        time.sleep(0.5)
    assert mover.source == source
    assert mover.counter(60.0) > before
    wait_until_none(pair)


def test_no_certificates_for_tls(mover: Mover) -> None:
    source, target = mover.source, mover.target
    with Client(source) as client, pytest.raises(RefusedError, match=r"the source lacks ca-cert\.pem") as caught:
        client.migrations.migrate(mover.name, target, transport="tls")
    assert "--transport ssh" in str(caught.value.hint)
    plan = vmkit("-c", source, "migrate", mover.name, "--to", target, "--transport", "tls", "--plan", "-o", "json")
    assert plan.returncode == 0, plan.stderr
    assert any("the target lacks ca-cert.pem" in w for w in json.loads(plan.stdout)["warnings"])
    assert mover.source == source


def test_a_congestion_control_that_is_not_there(mover: Mover) -> None:
    with Client(mover.source) as client, pytest.raises(RefusedError, match="no TCP congestion control 'nonesuch'"):
        client.migrations.migrate(mover.name, mover.target, transport="ssh", congestion="nonesuch")
    assert jobs() == []
