"""The techniques of migration, for real: a guest that outruns the link, and what becomes of it in each mode."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.mover import Mover, jobs, vmkit
from vmkit.client import Client
from vmkit.errors import EffectError, RefusedError, SpecError
from vmkit.hypervisor.domain import DomainState
from vmkit.hypervisor.migration import find, sight
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.migrate import record
from vmkit.migrate.replay import load

LINK = 40 * 2**20


@pytest.fixture(scope="module")
def mover(pair: Lab, micro: Image) -> Iterator[Mover]:
    vm = Mover(pair, "modes", pair.hosts[0].static[0].rpartition(".")[0] + ".203")
    vm.create()
    yield vm
    vm.close()


@pytest.fixture
def outrunning(mover: Mover) -> Iterator[Mover]:
    """It writes 64 MiB over and over as fast as it can. Afterwards one copy runs, and its counter went on."""
    before = mover.counter(60.0)
    assert "dirtying 64.0M" in mover.guest("dirty", "64M", "max")
    yield mover
    assert jobs() == []
    mover.guest("dirty", "stop")
    assert mover.counter(60.0) > before


def test_auto_refuses_as_soon_as_it_is_certain(outrunning: Mover, tmp_path: Path) -> None:
    """libvirt 11.3 cannot take up a post-copy that broke, so `auto` does not use it here."""
    at, file = outrunning.at, tmp_path / "run.json"
    with Client(outrunning.source) as client, pytest.raises(EffectError, match="would never end") as caught:
        client.migrations.migrate(
            outrunning.name, outrunning.target, bandwidth=LINK, max_downtime=0.02, recording=file, deadline=240.0
        )
    assert "--mode hybrid" in str(caught.value.hint)
    assert outrunning.at == at
    recording = load(file)
    assert recording.outcome["result"] == "given up"
    evidence = next(look.t for look in recording.looks if look.iteration > 1)
    assert recording.looks[-1].t - evidence < 10.0  # 5 s where nothing else uses the CPUs
    shown = vmkit("migrate", "replay", str(file), "-o", "json")
    assert shown.returncode == 0, shown.stderr
    ends = {r["policy"]: r["end"] for r in json.loads(shown.stdout)}
    assert ends["vmkit"] == "give up"
    assert ends["virsh"] == "goes on"


def test_a_short_stop_where_the_budget_allows(outrunning: Mover) -> None:
    source, target = outrunning.source, outrunning.target
    with Client(source) as client:
        report = client.migrations.migrate(outrunning.name, target, bandwidth=LINK, max_downtime=8.0, deadline=240.0)
    assert (outrunning.source, report.technique, report.running_copies) == (target, "pre-copy", 1)
    assert [d.what[:5] for d in report.decisions] == ["allow"]
    assert report.downtime_ms is not None
    assert report.downtime_ms < 8000
    assert report.predicted is not None


def test_hybrid_goes_over_to_post_copy(outrunning: Mover) -> None:
    source, target = outrunning.source, outrunning.target
    with Client(source) as client:
        report = client.migrations.migrate(
            outrunning.name, target, bandwidth=LINK, max_downtime=0.02, mode="hybrid", deadline=240.0
        )
    assert (outrunning.source, report.technique, report.running_copies) == (target, "post-copy", 1)
    assert [d.what for d in report.decisions] == ["post-copy"]
    assert report.downtime_ms is not None
    assert any("11.2 and 11.3 crash" in w for w in report.warnings)


def test_post_copy_from_the_start(outrunning: Mover) -> None:
    target = outrunning.target
    with Client(outrunning.source) as client:
        report = client.migrations.migrate(outrunning.name, target, mode="post-copy", deadline=240.0)
    assert (outrunning.source, report.technique, report.running_copies) == (target, "post-copy", 1)


def test_standing_still_all_the_while(outrunning: Mover) -> None:
    target = outrunning.target
    with Client(outrunning.source) as client:
        report = client.migrations.migrate(outrunning.name, target, mode="stop-copy", max_downtime=60.0, deadline=240.0)
    assert (outrunning.source, report.technique, report.running_copies) == (target, "stop-copy", 1)


@pytest.mark.parametrize("options", [["--parallel", "2", "--compress", "zstd"], ["--compress", "xbzrle"]])
def test_parallel_and_compressed(mover: Mover, options: list[str]) -> None:
    target = mover.target
    done = vmkit("-c", mover.source, "migrate", mover.name, "--to", target, *options, "-o", "json")
    assert done.returncode == 0, done.stderr
    assert mover.source == target


def test_what_does_not_go_together_is_refused(mover: Mover) -> None:
    source, target = mover.source, mover.target
    with Client(source) as client:
        with pytest.raises(RefusedError, match=r"QEMU older than 10\.1 loses a guest"):
            client.migrations.migrate(mover.name, target, mode="hybrid", parallel=2)
        with pytest.raises(SpecError, match="--mode"):
            client.migrations.migrate(mover.name, target, mode="warp")
        with pytest.raises(SpecError, match="--compress"):
            client.migrations.migrate(mover.name, target, compression="zstd")
    assert mover.source == source
    assert jobs() == []


def wait_for_switch(mover: Mover, process: subprocess.Popen[str], *reasons: str) -> None:
    """Until the guest stands still at its source for one of these reasons."""
    domain = mover.hosts[mover.at].domain(mover.name)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        seen = sight(domain)
        if seen is None or (seen.state is DomainState.PAUSED and seen.reason in reasons):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise AssertionError("it did not switch")


@pytest.mark.parametrize("reasons", [("migration", "post-copy"), ("post-copy",)])
def test_vmkit_killed_in_the_switch_to_post_copy(outrunning: Mover, reasons: tuple[str, ...]) -> None:
    """From the switch on the guest's newest state is at the target: another process carries it to its end."""
    target = outrunning.uris.index(outrunning.target)
    process = outrunning.start_migrate("--mode", "post-copy")
    wait_for_switch(outrunning, process, *reasons)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    end = time.monotonic() + 120
    while jobs() and time.monotonic() < end:
        time.sleep(0.5)
    assert outrunning.at == target
    assert find(outrunning.hosts[1 - target], name=outrunning.name) is None


def test_a_post_copy_that_has_begun_cannot_be_cancelled(outrunning: Mover) -> None:
    target = outrunning.target
    process = outrunning.start_migrate("--mode", "post-copy", "-o", "json")
    wait_for_switch(outrunning, process, "post-copy")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(output)["technique"] == "post-copy"
    assert outrunning.source == target


def test_every_migration_is_on_record(mover: Mover) -> None:
    lines = [li for li in record.read() if li.vm == mover.name]
    assert {li.outcome.result for li in lines} >= {"arrived", "given up"}
    assert {li.outcome.technique for li in lines} >= {"pre-copy", "post-copy", "stop-copy"}
    assert all(li.predicted for li in lines)
    shown = vmkit("migrate", "stats", "-o", "json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["compared"] >= len(lines)
