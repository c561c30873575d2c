"""Hotfix of real QEMU processes with guests on them: what the guest sees, what stays, and what a kill leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmkit.client import Client
from vmkit.errors import RefusedError
from vmkit.hotfix.transaction import KILL_VARIABLE
from vmkit.hypervisor.domain import DomainState
from vmkit.image.manifest import Image
from vmkit.system.journal import records
from vmkit.system.process import ProcessId
from vmkit.system.procmem import ProcessMemory, executable_path, mappings, running
from vmkit.system.udp import UdpPeer

QEMU = Path("/usr/bin/qemu-system-x86_64")
NAMES = ("fix1", "fix2")
BEFORE, DURING = "0x010000ed", "0x020000ed"
"""The identification register of the `edu` device (QEMU's docs/specs/edu.rst: 0xRRrr00ed, major and minor revision)."""

STEPS = ("pause:2", "stop", "compare", "write", "write:2", "read-back", "let-go", "resume", "resume:2", "note-written")


@dataclass
class World:
    """Two guests with the `edu` device on h1, and a patch that changes what it says of itself."""

    client: Client
    uri: str
    addresses: dict[str, str]
    patch: Path

    def edu(self) -> list[str]:
        """What each guest reads from the device."""
        return [self.client.vms.get(n).guest_exec(["edu-id"]).stdout.strip() for n in NAMES]

    def counters(self) -> list[int]:
        """What each guest has counted since it booted."""
        found = []
        for name in NAMES:
            with UdpPeer(self.addresses[name], 7007) as peer:
                answer = peer.ask(b"?", timeout=60.0)
            assert answer is not None, f"{name} does not answer"
            found.append(int(answer))
        return found

    def states(self) -> list[DomainState]:
        return [self.client.host.domain(n).state() for n in NAMES]

    def code(self) -> list[bytes]:
        """The whole text of each guest's QEMU, as it is in memory."""
        found = []
        for name in NAMES:
            uuid = self.client.host.domain(name).uuid
            (process,) = [r for r in running(lambda n: n.startswith("qemu-system-")) if uuid in r.argv]
            found.append(text_of(process.id))
        return found

    def vmkit(self, *argv: str, kill: str = "") -> subprocess.CompletedProcess[str]:
        import os

        return subprocess.run(
            [sys.executable, "-m", "vmkit", "-c", self.uri, *argv],
            capture_output=True,
            text=True,
            timeout=180,
            env={**os.environ, KILL_VARIABLE: kill},
            check=False,
        )


def text_of(process: ProcessId) -> bytes:
    path = executable_path(process.pid)
    with ProcessMemory(process) as memory:
        own = [m for m in mappings(process.pid) if m.path == path and "x" in m.permissions]
        return b"".join(memory.read(m.start, m.end - m.start) for m in own)


@pytest.fixture(scope="module")
def started(pair: object, micro: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    host = pair.host("h1")  # type: ignore[attr-defined]
    base, prefix = host.static[0].rpartition(".")[0], host.subnet.partition("/")[2]
    addresses = {n: f"{base}.{180 + i}" for i, n in enumerate(NAMES)}
    with Client(host.uri) as client:
        folder = tmp_path_factory.mktemp("patch")
        patch = folder / "edu-id.toml"
        key = client.hotfixes.keygen("tests", folder, trust=True)
        client.hotfixes.make(QEMU, find="b8 ed 00 00 01", replace="b8 ed 00 00 02", id="edu-id", path=patch)
        client.hotfixes.sign(patch, key.private)
        try:
            for name in NAMES:
                nic = {"network": "lab", "address": f"{addresses[name]}/{prefix}"}
                arguments = ["-device", "edu,addr=0x1e"]
                spec = {"name": name, "image": "micro", "memory": "128M", "accel": "tcg", "nics": [nic]}
                client.vms.create({**spec, "qemu_args": arguments}, wait=True, deadline=240.0)
            yield World(client, host.uri, addresses, patch)
        finally:
            for row in client.vms.list():
                client.vms.get(row.name).delete(force=True)


@pytest.fixture
def world(started: World) -> Iterator[World]:
    """Around each test: unpatched guests that run, whose counters go on and whose code is what it was."""
    counters, code = started.counters(), started.code()
    yield started
    started.client.hotfixes.revert(started.patch)
    assert started.states() == [DomainState.RUNNING] * 2
    assert started.code() == code
    assert all(b > a for a, b in zip(counters, started.counters(), strict=True))
    assert records() == []


def test_the_guest_sees_the_change_and_its_reversal(world: World) -> None:
    before = world.code()
    assert world.edu() == [BEFORE] * 2
    report = world.client.hotfixes.apply(world.patch)
    assert report.state == "applied"
    assert all(p.pause_ms is not None and p.pause_ms <= report.pause_ms for p in report.processes)
    assert world.edu() == [DURING] * 2
    changed = [sum(a != b for a, b in zip(x, y, strict=True)) for x, y in zip(before, world.code(), strict=True)]
    assert changed == [1, 1]
    patched = world.code()
    assert world.client.hotfixes.apply(world.patch).state == "already applied"
    assert world.code() == patched
    assert {r.state for r in world.client.hotfixes.status()} == {"patched"}
    assert world.client.hotfixes.revert("edu-id").state == "reverted"
    assert world.edu() == [BEFORE] * 2
    assert world.code() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [('build_ids = [\n    "', 'build_ids = [\n    "ff'), ("b8 ed 00 00 01 e9", "b8 ed 00 00 03 e9")],
    ids=["wrong build", "one wrong byte"],
)
def test_a_patch_that_does_not_fit(world: World, tmp_path: Path, old: str, new: str) -> None:
    text = world.patch.read_text()
    assert old in text
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(text.replace(old, new, 1))
    before = world.code()
    with pytest.raises(RefusedError, match="changed after it was signed"):
        world.client.hotfixes.apply(wrong)
    world.client.hotfixes.sign(wrong, world.patch.with_name("tests.key"))
    with pytest.raises(RefusedError, match=r"is build|does not hold"):
        world.client.hotfixes.apply(wrong)
    done = world.vmkit("hotfix", "apply", str(wrong))
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert world.code() == before
    assert world.states() == [DomainState.RUNNING] * 2


def test_a_guest_that_an_operator_paused_stays_paused(world: World) -> None:
    domain = world.client.host.domain(NAMES[0])
    domain.suspend()
    try:
        report = world.client.hotfixes.apply(world.patch)
        assert [p.pause_ms is None for p in report.processes] == [True, False]
        assert world.states() == [DomainState.PAUSED, DomainState.RUNNING]
    finally:
        domain.resume()
    assert world.edu() == [DURING] * 2


def test_the_command_line(world: World) -> None:
    plan = world.vmkit("hotfix", "apply", str(world.patch), "--plan", "-o", "json")
    assert plan.returncode == 0, plan.stderr
    assert [s["verb"] for s in json.loads(plan.stdout)["steps"]].count("write") == 2
    assert world.vmkit("hotfix", "check", str(world.patch)).returncode == 0
    assert world.edu() == [BEFORE] * 2
    done = world.vmkit("hotfix", "apply", str(world.patch), "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "applied"
    again = world.vmkit("hotfix", "apply", str(world.patch))
    assert (again.returncode, "already applied" in again.stderr) == (0, True)
    status = json.loads(world.vmkit("hotfix", "status", "-o", "json").stdout)
    assert [(r["guest"], r["state"]) for r in status if r["id"] == "edu-id"] == [(n, "patched") for n in NAMES]
    assert world.vmkit("hotfix", "revert", "edu-id").returncode == 0
    assert world.edu() == [BEFORE] * 2


@pytest.mark.parametrize("step", STEPS)
def test_after_kill_9_the_next_command_repairs(world: World, step: str) -> None:
    before = world.code()
    killed = world.vmkit("hotfix", "apply", str(world.patch), "--max-pause", "60000", kill=step)
    assert killed.returncode == -9, killed.stderr
    after = world.vmkit("list")
    assert after.returncode == 0, after.stderr
    assert "apply of patch edu-id was cut off" in after.stderr
    assert world.states() == [DomainState.RUNNING] * 2
    assert world.code() == before
    assert world.client.hotfixes.apply(world.patch).state == "applied"
