"""Emptying a host for real: three guests from one host of the pair to the other, and back by a vmkit that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.qemu.mover import VMKIT, Mover, jobs, vmkit
from vmkit.client import Client
from vmkit.errors import RefusedError, SpecError
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.migrate.many.solve import Limits

MANY = 3


@pytest.fixture(scope="module")
def three(pair: Lab, micro: Image) -> Iterator[list[Mover]]:
    network = pair.hosts[0].static[0].rpartition(".")[0]
    vms = [
        Mover(pair, f"many{i}", f"{network}.{211 + i}", memory="128M", cmdline="vmkit.tick=100") for i in range(MANY)
    ]
    try:
        for vm in vms:
            vm.create()
        yield vms
    finally:
        for vm in vms:
            vm.close()


def names(vms: list[Mover]) -> list[str]:
    return sorted(vm.name for vm in vms)


def test_a_host_is_emptied(three: list[Mover]) -> None:
    one, two = three[0].uris
    before = [vm.counter(60.0) for vm in three]
    hosts = Client().hosts
    plan = hosts.plan_drain(one, [two])
    assert [s.verb for s in plan.steps] == ["migrate"] * MANY
    assert {vm.at for vm in three} == {0}
    done = hosts.drain(one, [two], deadline=300.0)
    assert sorted(d.vm for d in done) == names(three)
    assert {vm.at for vm in three} == {1}
    assert all(vm.counter(60.0) > b for vm, b in zip(three, before, strict=True))
    assert hosts.drain(one, [two]) == []
    assert jobs() == []


def test_cut_off_and_gone_on_with(three: list[Mover]) -> None:
    two, one = three[0].uris[three[0].at], three[0].uris[1 - three[0].at]
    before = [vm.counter(60.0) for vm in three]
    again = ["host", "drain", two, "--to", one, "--parallel", "1"]
    argv = [str(VMKIT), *again, "--deadline", "300s", "--bandwidth", "20M"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    start = three[0].uris.index(two)
    end = time.monotonic() + 240
    while all(vm.states()[1 - start] == "-" for vm in three) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    while jobs() and time.monotonic() < end + 120:
        time.sleep(0.5)
    done = vmkit(*again, "-o", "json", timeout=300)
    assert done.returncode == 0, done.stderr
    moved = {d["vm"] for d in json.loads(done.stdout)}
    assert moved <= set(names(three))
    assert moved
    assert {vm.uris[vm.at] for vm in three} == {one}
    assert all(vm.counter(60.0) > b for vm, b in zip(three, before, strict=True))
    assert jobs() == []


def test_what_cannot_be_is_refused(three: list[Mover]) -> None:
    at = three[0].at
    here, there = three[0].uris[at], three[0].uris[1 - at]
    hosts = Client().hosts
    with pytest.raises(RefusedError, match="can go to none of the others") as caught:
        hosts.drain(here, [there], overcommit=0.1)
    assert caught.value.hint == "name another host with --to"
    with pytest.raises(SpecError, match="same host"):
        hosts.drain(here, [here])
    with pytest.raises(SpecError, match="--parallel"):
        hosts.drain(here, [there], limits=Limits(0, 1))
    assert {vm.at for vm in three} == {at}
