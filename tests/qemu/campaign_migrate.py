"""Each fault in each phase of a migration between two hosts that share no storage: scripts/test --campaign.

VMKIT_CAMPAIGN_ROUNDS says how often (2), VMKIT_CAMPAIGN_SEED (1) when exactly they strike, and VMKIT_CAMPAIGN_LOG names
a file that gets a line of JSON for each. Its name keeps this file out of runs that do not ask for it: it takes an hour.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.conftest import hosts_apart
from tests.qemu.faults import CELLS, Arena, Fault, Phase, Trial, strike
from tests.qemu.witness import qemu_of
from vmkit.client import Client
from vmkit.image.manifest import Image
from vmkit.image.place import POOL
from vmkit.lab.api import Lab
from vmkit.system.journal import records, remove

SEED = int(os.environ.get("VMKIT_CAMPAIGN_SEED", "1"))
ROUNDS = int(os.environ.get("VMKIT_CAMPAIGN_ROUNDS", "2"))
TRIALS = [(*c, SEED + i) for i in range(ROUNDS) for c in CELLS]
TRIALS.sort(key=lambda t: (t[2], t[1] is Fault.LINK_LOST))  # those take a minute or more each


@pytest.fixture(scope="module")
def apart(micro: Image) -> Iterator[Lab]:
    """Two hosts that share no storage."""
    with hosts_apart("faults") as lab:
        yield lab


@pytest.fixture(scope="module")
def trials() -> Iterator[list[Trial]]:
    """All of them; at the end they are summed up."""
    done: list[Trial] = []
    yield done
    counted = Counter(t.outcome for t in done)
    print(f"\n{len(done)} faults, {sum(t.hit for t in done)} of them in their phase: {dict(counted)}")
    for t in done:
        if t.wrong:
            print(f"  {t.phase}, {t.fault}, seed {t.seed}: {'; '.join(t.wrong)}")


@pytest.fixture(scope="module")
def arena(apart: Lab) -> Iterator[Arena]:
    address = apart.hosts[0].static[0]
    vm = Arena(apart, "target-of-faults", address, memory="128M", disks=[{"size": "64M"}])
    vm.create()
    vm.guest("sh", "-c", "dd if=/dev/urandom of=/dev/vda bs=1M seek=40 count=12 conv=fsync status=none")
    yield vm
    vm.close()


def fingerprint(arena: Arena) -> str:
    return arena.guest("sh", "-c", "dd if=/dev/vda bs=1M skip=40 count=12 iflag=direct status=none | md5sum")


@pytest.fixture(scope="module")
def content(arena: Arena) -> str:
    return fingerprint(arena)


@pytest.fixture
def ready(arena: Arena) -> Iterator[Arena]:
    """The VM runs on one host; afterwards it is brought there if the fault, as it may, has ended it."""
    arena.look_anew()
    yield arena
    arena.look_anew()
    for record in records():
        remove(record)
    states = arena.states()
    if sorted(states) == ["-", "running"]:
        return
    keep = next((i for i, s in enumerate(states) if s == "running"), states.index(next(s for s in states if s != "-")))
    for i in range(len(arena.hosts)):
        if i != keep and states[i] != "-" and qemu_of(arena.inits[i], arena.name) is None:
            arena.restart_libvirtd(i)  # it may hang over what is gone
    for i, host in enumerate(arena.hosts):
        for domain in (d for d in host.domains() if d.name == arena.name):
            if domain.state().active and (i != keep or states[i] != "running"):
                domain.destroy()
            if i != keep and domain.exists():
                domain.undefine()
        for volume in arena.volumes(i) if i != keep else ():
            host.pool(POOL).delete(volume)
    with Client(arena.uris[keep]) as client:
        vm = client.vms.get(arena.name)
        if states[keep] != "running":
            vm.start()
        vm.wait(deadline=240.0)


@pytest.mark.parametrize(
    ("phase", "fault", "seed"), [pytest.param(*t, id=f"{t[0].value}-{t[1].value}-{t[2]}") for t in TRIALS]
)
def test_a_fault(ready: Arena, content: str, trials: list[Trial], phase: Phase, fault: Fault, seed: int) -> None:
    """Exactly one copy runs afterwards and its counter has gone on, or none where the only copy was killed."""
    before = ready.counter(60.0)
    trial = strike(ready, phase, fault, seed)
    trials.append(trial)
    if trial.outcome in ("source", "target"):
        ready.look_anew()
        if ready.counter(60.0) <= before:
            trial.wrong.append("its counter has gone back")
        if fingerprint(ready) != content:
            trial.wrong.append("its disk is not what it was")
    if log := os.environ.get("VMKIT_CAMPAIGN_LOG"):
        with Path(log).open("a") as file:
            file.write(json.dumps(trial.plain()) + "\n")
    assert not trial.wrong, trial
    assert trial.outcome in ("source", "target", "lost", "open")
