"""Copies of a VM on another host, of a running one and of one that is shut off, and one that was cut off.

Run by scripts/test --campaign: its name keeps this file out of runs that do not ask for it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmkit.client import Client
from vmkit.errors import ConflictError, RefusedError, SpecError
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.system.journal import records
from vmkit.vm.machine import Vm

WAIT = 240.0
pytestmark = pytest.mark.timeout(1500)  # on a busy machine most of it is what comes before: the image, the hosts
COPIES = ("abroad-one", "abroad-two", "abroad-cut")


@pytest.fixture
def source(client_h2: Client, client_h1: Client, micro: Image) -> Iterator[Vm]:
    """A VM on h2 with a file on its disk; `debian_vm` may be on h1, where the copies go."""
    spec = {"name": "home", "image": micro.name, "memory": "128M", "nics": [{"network": "lab"}]}
    vm = client_h2.vms.create(spec, wait=True, deadline=WAIT).vm
    inside(vm, "mount /dev/vda /mnt && echo kept >/mnt/file && sync")
    yield vm
    for client in (client_h1, client_h2):
        for row in client.vms.list():
            if row.name in ("home", *COPIES):
                client.vms.get(row.name).delete(force=True)


def inside(vm: Vm, command: str) -> str:
    done = vm.guest_exec(["sh", "-c", command], timeout=120.0)
    assert done.status == 0, done
    return done.stdout.strip()


def who(vm: Vm) -> list[str]:
    told = inside(vm, "hostname; cat /etc/machine-id /sys/class/net/eth0/address; ip -4 -o addr show eth0").splitlines()
    return [told[0], told[1], told[2], told[3].split()[3], vm.uuid]


def left(client: Client) -> list[str]:
    """What is in the pool, but for files of images that VMs use, which stay."""
    pool = client.host.pool("vmkit")
    pool.refresh()
    return sorted(n for n in pool.names() if not re.match(r"[0-9a-f]{16}\.(kernel|initrd|qcow2)", n))


def settled(client: Client) -> None:
    assert records() == []
    assert [i.name for i in client.images.list() if i.name.startswith("moment-")] == []
    assert not any(n.endswith((".memory", ".memory.complete", ".flat.qcow2")) for n in left(client))


def test_copies_on_another_host(source: Vm, client_h2: Client, client_h1: Client, pair: Lab) -> None:
    """A running VM goes on in both; one that is shut off is booted there; each is a machine of its own."""
    to = pair.host("h1").uri
    with pytest.raises(RefusedError, match="is the host of home"):
        client_h2.clones.clone("home", ["abroad-one"], to=pair.host("h2").uri)
    with pytest.raises(ConflictError, match="there is a VM named home"):
        client_h2.clones.clone("home", ["home"], to=to)
    with pytest.raises(SpecError, match="--full"):
        client_h2.clones.clone("home", ["abroad-one"], to=to, full=True)
    plan = client_h2.clones.plan("home", ["abroad-one"], to=to)
    assert [s.verb for s in plan.steps] == ["save", "send", "restore", "rename"]
    before = int(inside(source, "counter"))
    made = client_h2.clones.clone("home", ["abroad-one"], to=to, wait=True, deadline=WAIT)
    assert [(m.name, m.kind, m.state) for m in made] == [("abroad-one", "live", "running")]
    one = client_h1.vms.get("abroad-one")
    assert int(inside(one, "counter")) > before  # a boot would begin at 0
    assert int(inside(source, "counter")) > before
    assert inside(one, "cat /mnt/file") == "kept"
    first, second = who(source), who(one)
    assert not set(first) & set(second), (first, second)
    assert (second[0], one.details().image) == ("abroad-one", "micro")
    settled(client_h2)

    inside(source, "umount /mnt")
    source.stop(deadline=WAIT)
    made = client_h2.clones.clone("home", ["abroad-two"], to=to, wait=True, deadline=WAIT)
    assert [(m.name, m.kind, m.state) for m in made] == [("abroad-two", "cold", "running")]
    two = client_h1.vms.get("abroad-two")
    assert inside(two, "mount /dev/vda /mnt && cat /mnt/file") == "kept"
    assert not set(who(two)) & {*first, *second}
    assert client_h1.host.pool("vmkit").backing("abroad-two-0.qcow2") is None
    settled(client_h2)


def test_one_that_was_killed_is_settled_by_the_next_command(
    source: Vm, client_h2: Client, client_h1: Client, pair: Lab
) -> None:
    one, two = pair.host("h1").uri, pair.host("h2").uri
    before, disks = left(client_h2), [d.source for d in source.details().disks]
    for delay in (1.5, 4.0):
        argv = [sys.executable, "-m", "vmkit", "-c", two, "clone", "home", "abroad-cut", "--to", one]
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2], start_new_session=True)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        argv = [sys.executable, "-m", "vmkit", "-c", two, "list", "-o", "name"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr
        settled(client_h2)
        assert [d.source for d in source.details().disks] == disks
        assert inside(source, "cat /mnt/file") == "kept"
        if "abroad-cut" in [row.name for row in client_h1.vms.list()]:  # it had come to its end
            assert who(client_h1.vms.get("abroad-cut"))[0] == "abroad-cut"
            client_h1.vms.get("abroad-cut").delete(force=True)
        assert left(client_h2) == before
