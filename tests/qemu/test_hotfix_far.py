"""Hotfixes of a host that ssh leads to: carried there, run, removed; killed there, killed here, and cut off between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.qemu.test_hotfix_lifetime import BEFORE, DURING, QEMU, edu, spec
from vmkit.client import Client
from vmkit.errors import EffectError, RefusedError
from vmkit.hotfix.far.api import KILL_VARIABLE, FarHotfixes
from vmkit.hotfix.far.line import Line, new_name
from vmkit.hotfix.far.session import KIND
from vmkit.hotfix.plans import Action
from vmkit.hypervisor.domain import DomainState
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.progress import Event, Finished
from vmkit.recovery import recover_all
from vmkit.system.journal import records
from vmkit.system.procmem import thread_state

PATIENCE = 240.0
IN_A_PROCESS = """
import sys
from vmkit.client import Client
from vmkit.hotfix.far.api import FarHotfixes
with Client(sys.argv[1]) as client:
    hotfixes = FarHotfixes(sys.argv[1], lambda: client.host, carried=True, allow_unsigned=True)
    print(hotfixes.apply(sys.argv[2], max_pause=60).state)
"""


@pytest.fixture(scope="module")
def patch(pair: Lab, micro: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A guest on each host, and a patch for them."""
    path = tmp_path_factory.mktemp("far") / "edu-far.toml"
    try:
        for name in ("h1", "h2"):
            with Client(pair.host(name).uri) as client:
                client.vms.create(spec(f"far-{name}"), wait=True, deadline=300.0)
                if not path.exists():
                    client.hotfixes.make(QEMU, find="b8 ed 00 00 01", replace="b8 ed 00 00 02", id="edu-far", path=path)
        yield path
    finally:
        for host in pair.hosts:
            with Client(host.uri) as client:
                for row in client.vms.list():
                    if row.name.startswith("far-"):
                        client.vms.get(row.name).delete(force=True)


def carried(client: Client) -> FarHotfixes:
    assert client.uri
    return FarHotfixes(client.uri, lambda: client.host, carried=True, allow_unsigned=True)


def children_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def far_home(pair: Lab) -> Path:
    return Path(os.environ["VMKIT_HOME"], "lab", pair.name, "h1", "var-lib-vmkit")


def at_work_there(pair: Lab) -> list[int]:
    """What the ssh server of h1 has started that is a Python: the code that was carried there, and who watches it."""
    mark = f"VMKIT_HOME={far_home(pair)}".encode()
    found = []
    for entry in os.scandir("/proc"):
        with suppress(OSError):
            folder = Path(entry.path)
            if entry.name.isdigit() and "python" in str((folder / "exe").readlink()):
                found += [int(entry.name)] * (mark in (folder / "environ").read_bytes().split(b"\0"))
    return found


def runs_on(client: Client) -> bool:
    return client.host.domain("far-h1").state() is DomainState.RUNNING


def test_it_is_carried_there_and_what_is_killed_there_is_put_right_there(
    pair: Lab, patch: Path, client_h1: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hotfixes, line, late = carried(client_h1), Line(pair.host("h1").uri), new_name()
    with pytest.raises(RefusedError, match="is not signed"):
        hotfixes.apply(patch, allow_unsigned=False)
    assert line.ask(late).state == "nothing"
    with pytest.raises(RefusedError, match="given up before it began"):
        line.run(late, {"what": "history"})
    line.done(late)

    monkeypatch.setenv(KILL_VARIABLE, "read-back")
    with pytest.raises(EffectError, match=r"was killed; .*put back what was there before in 1 of 1 processes"):
        hotfixes.apply(patch, max_pause=60)
    assert edu(client_h1, "far-h1") == BEFORE
    assert runs_on(client_h1)
    monkeypatch.delenv(KILL_VARIABLE)

    report = hotfixes.apply(patch, max_pause=60)
    assert (report.state, [p.guest for p in report.processes]) == ("applied", ["far-h1"])
    assert edu(client_h1, "far-h1") == DURING
    assert [(r.guest, r.state) for r in hotfixes.status()] == [("far-h1", "patched")]
    assert hotfixes.revert("edu-far", max_pause=60).state == "reverted"
    assert edu(client_h1, "far-h1") == BEFORE
    assert [e.what for e in hotfixes.history()][-3:] == ["repaired", "applied", "reverted"]
    assert not list((far_home(pair) / "carried").iterdir())
    assert not records(KIND)


@pytest.mark.parametrize("victim", ["vmkit", "ssh", "there"])
def test_it_goes_on_there_when_the_line_or_the_command_here_is_killed(
    victim: str, pair: Lab, patch: Path, client_h1: Client
) -> None:
    argv = [sys.executable, "-c", IN_A_PROCESS, pair.host("h1").uri, str(patch)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            end = time.monotonic() + PATIENCE
            while not list((far_home(pair) / "carried").glob("*/request.json")) and child.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.05)
            victims = {"vmkit": [child.pid], "ssh": children_of(child.pid), "there": at_work_there(pair)}[victim]
            for pid in victims:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            said, complaint = child.communicate(timeout=PATIENCE)
        finally:
            child.kill()
    lines = []
    while records(KIND):
        assert time.monotonic() < end, lines
        lines += recover_all()
        time.sleep(0.5)
    assert runs_on(client_h1)
    if edu(client_h1, "far-h1") == DURING:
        assert said == "applied\n" or "was cut off here; there it ended: applied" in lines[-1], (complaint, lines)
        assert carried(client_h1).revert("edu-far", max_pause=60).state == "reverted"
    else:
        assert victim == "there"
        assert "was killed" in complaint + str(lines)
    assert edu(client_h1, "far-h1") == BEFORE
    assert not list((far_home(pair) / "carried").iterdir())


def test_several_hosts_get_their_turn_up_to_the_first_failure(
    pair: Lab, patch: Path, client_h1: Client, client_h2: Client
) -> None:
    hosts = [pair.host("h1").uri, pair.host("h2").uri]
    options = [word for uri in hosts for word in ("--host", uri)]
    program = str(Path(sys.executable).parent / "vmkit")
    argv = [program, "hotfix", "apply", str(patch), *options, "--allow-unsigned", "--max-pause", "60000", "-o", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert [(r["host"], r["state"], r["vms"]) for r in json.loads(done.stdout)] == [(u, "applied", 1) for u in hosts]
    assert [edu(client_h1, "far-h1"), edu(client_h2, "far-h2")] == [DURING] * 2

    each = client_h1.hotfix_hosts(hosts)
    assert len([s for s in each.plan("edu-far", Action.REVERT).steps if s.verb == "write"]) == 2
    domain = client_h2.host.domain("far-h2")

    def stop(event: Event) -> None:
        """Somebody stops the QEMU of h2 once h1 is done."""
        if isinstance(event, Finished) and event.step == "revert" and domain.state() is DomainState.RUNNING:
            os.kill(pid, signal.SIGSTOP)
            while thread_state(pid, pid) != "T":
                time.sleep(0.05)

    pid = next(r.pid for r in client_h2.hotfixes.status() if r.guest == "far-h2")
    assert pid
    try:
        reports = each.carry_out(Action.REVERT, "edu-far", max_pause=60, reporter=stop)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [r.state for r in reports] == ["reverted", "failed"]
    assert "is stopped by a signal" in reports[1].detail
    assert [edu(client_h1, "far-h1"), edu(client_h2, "far-h2")] == [BEFORE, DURING]
    again = client_h1.hotfix_hosts(hosts).carry_out(Action.REVERT, "edu-far", max_pause=60)
    assert [r.state for r in again] == ["not applied", "reverted"]
    assert edu(client_h2, "far-h2") == BEFORE
