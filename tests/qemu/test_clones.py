"""Real copies: of a running VM, of one that is shut off, from an image of a memory; who they are, and what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmkit.client import Client
from vmkit.errors import ConflictError, RefusedError, SpecError
from vmkit.image.manifest import Image, ImageKind
from vmkit.lab.api import Lab
from vmkit.system.journal import records
from vmkit.vm.machine import Vm
from vmkit.vm.readiness import Layer

WAIT = 240.0
SNIFFER = """
import select, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
print("ready", flush=True)
while sys.stdin not in select.select([s, sys.stdin], [], [])[0]:
    data, (name, _, kind, *_) = s.recvfrom(64)
    if kind != socket.PACKET_OUTGOING:
        print(name, ":".join(f"{b:02x}" for b in data[6:12]), flush=True)
"""
"""Prints the interface and the source address of each frame that comes in by it, until its input ends: from a tap, what
its guest sends, and not what the bridge hands to the guest."""


@pytest.fixture
def host(client_h2: Client, micro: Image) -> Iterator[Client]:
    """Host h2 with the image in its pool, with no VM before and none after; `debian_vm` is on h1."""
    client_h2.vms.create(spec("placed"), start=False)
    client_h2.vms.get("placed").delete()
    yield client_h2
    for row in client_h2.vms.list():
        client_h2.vms.get(row.name).delete(force=True)
    for image in client_h2.images.list():
        if image.kind is ImageKind.MEMORY:
            client_h2.images.delete(image.name)


def spec(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "image": "micro", "memory": "128M", "nics": [{"network": "lab"}], **more}


def source(host: Client, name: str = "web") -> Vm:
    return host.vms.create(spec(name), wait=True, deadline=WAIT).vm


def inside(vm: Vm, command: str) -> str:
    done = vm.guest_exec(["sh", "-c", command])
    assert done.status == 0, done
    return done.stdout.strip()


def who(vm: Vm) -> dict[str, str]:
    """All that tells one machine from another, as its guest sees it."""
    return {
        "host name": inside(vm, "hostname"),
        "machine-id": inside(vm, "cat /etc/machine-id"),
        "MAC": inside(vm, "cat /sys/class/net/eth0/address"),
        "address": inside(vm, "ip -4 -o addr show eth0 | awk '{print $4}'"),
        "uuid": vm.uuid,
    }


def all_different(vms: list[Vm]) -> None:
    found = [who(vm) for vm in vms]
    for key in found[0]:
        values = [f[key] for f in found]
        assert all(values), (key, values)
        assert len(set(values)) == len(values), (key, values)
    for vm, one in zip(vms, found, strict=True):
        assert one["host name"] == vm.name
        assert [n.mac for n in vm.details().nics] == [one["MAC"]]


def volumes(host: Client) -> list[str]:
    pool = host.host.pool("vmkit")
    pool.refresh()
    return [n for n in pool.names() if not re.match(r"[0-9a-f]{16}\.", n)]  # images that were placed stay


@contextmanager
def frames(lab: Lab) -> Iterator[list[tuple[str, str]]]:
    """Interface and source address of every frame on the host while the block runs; filled at its end."""
    argv = [sys.executable, "-m", "vmkit", "lab", "exec", f"{lab.name}/h2", "--", sys.executable, "-c", SNIFFER]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    seen: list[tuple[str, str]] = []
    try:
        yield seen
    finally:
        time.sleep(0.5)
        out, _ = process.communicate("", timeout=60)
        seen += [(p[0], p[1]) for line in out.splitlines() if len(p := line.split()) == 2]


def test_live_copies_go_on_from_one_moment(host: Client, pair: Lab) -> None:
    web = source(host)
    inside(web, "mount /dev/vda /mnt && echo before >/mnt/file && sync")
    own = [d.source for d in web.details().disks]
    before = int(inside(web, "counter"))
    with frames(pair) as seen:
        made = host.clones.clone("web", ["one", "two"], wait=True, deadline=WAIT)
        copies = [host.vms.get(m.name) for m in made]
        taps = {n.tap for c in copies for n in c.details().nics}
    assert [(m.name, m.kind, m.state) for m in made] == [("one", "live", "running"), ("two", "live", "running")]
    after = int(inside(web, "counter"))
    counters = [int(inside(c, "counter")) for c in copies]
    assert all(c > before for c in counters), (before, counters)  # a boot would begin at 0
    assert after > before
    all_different([web, *copies])
    # The disk of the source is on its own file again, and each copy has a file system of its own.
    assert [d.source for d in web.details().disks] == own
    for vm in copies:
        assert inside(vm, "cat /mnt/file") == "before"
        inside(vm, f"echo {vm.name} >/mnt/file && sync")
    assert inside(web, "cat /mnt/file; echo after >/mnt/file; sync; cat /mnt/file") == "before\nafter"
    assert [inside(c, "cat /mnt/file") for c in copies] == ["one", "two"]
    assert len({inside(vm, "head -c 16 /dev/urandom | od -An -tx1") for vm in copies}) == 2
    # No copy ever sent a frame under the address of its source.
    macs = who(web)["MAC"]
    assert taps & {name for name, _ in seen}, "the copies were not heard at all"
    assert not [name for name, mac in seen if name in taps and mac == macs]
    # Their consoles begin with what the source had written.
    assert "vmkit-micro: ready" in copies[0].log()
    # They are VMs like others: after a reboot they are who they were.
    old = who(copies[0])
    copies[0].stop(deadline=WAIT)
    copies[0].start()
    copies[0].wait(deadline=WAIT)
    now = who(copies[0])
    assert (now["host name"], now["MAC"]) == (old["host name"], old["MAC"])
    assert inside(copies[0], "mount /dev/vda /mnt && cat /mnt/file") == "one"
    assert records() == []


@pytest.mark.timeout(1500)  # of which most may be the first boot of `debian_vm`
def test_live_copy_of_debian(debian_vm: Vm, client_h1: Client) -> None:
    """A process that counts in its own memory goes on in both; the copy is another machine, with a fixed address."""
    gateway = inside(debian_vm, "ip route show default").split()[2]
    address = f"{gateway.rpartition('.')[0]}.223"
    tell = "echo $(cat /run/count) $(cat /etc/machine-id) $(hostname) $(sha256sum </etc/ssh/ssh_host_ed25519_key.pub)"
    count = "n=0; while sleep 0.1; do n=$((n+1)); echo $n >/run/count.new; mv /run/count.new /run/count; done"
    inside(debian_vm, f"sh -c '{count}' >/dev/null 2>&1 </dev/null & echo $! >/run/count.pid; sleep 3")
    try:
        before = int(inside(debian_vm, "cat /run/count"))
        wish = f"{address}/24,gateway={gateway}"
        made = client_h1.clones.clone(debian_vm.name, ["deb2"], address=wish, wait=True, deadline=600)
        copy = client_h1.vms.get("deb2")
        assert made[0].kind == "live"
        theirs, ours = inside(debian_vm, tell).split(), inside(copy, tell).split()
        assert int(ours[0]) >= before > 1
        assert int(theirs[0]) > before
        assert not set(theirs[1:4]) & set(ours[1:4])
        assert ours[2] == "deb2"
        mac = client_h1.vms.get("deb2").details().nics[0].mac
        assert mac != debian_vm.details().nics[0].mac
        assert mac in inside(copy, "cat /sys/class/net/*/address").split()
        assert made[0].ready is not None
        assert made[0].ready.address == address
        assert address not in debian_vm.details().addresses
        assert inside(copy, "ip -4 -o addr show scope global | awk '{print $4}'") == f"{address}/24"
        assert inside(copy, "ip route show default").split()[2] == gateway
    finally:
        inside(debian_vm, "kill $(cat /run/count.pid); rm -f /run/count*")
        for row in client_h1.vms.list():
            if row.name == "deb2":
                client_h1.vms.get("deb2").delete(force=True)


def test_a_copy_of_a_vm_that_is_shut_off(host: Client) -> None:
    web = source(host)
    inside(web, "mount /dev/vda /mnt && echo kept >/mnt/file && umount /mnt")
    web.stop(deadline=WAIT)
    plan = host.clones.plan("web", ["full"], full=True)
    assert [s.verb for s in plan.steps] == ["define", "copy"]
    assert host.clones.clone("web", ["linked"], start=False)[0].state == "shut off"
    made = host.clones.clone("web", ["full"], full=True, wait=True, deadline=WAIT)
    assert (made[0].kind, made[0].state) == ("cold", "running")
    pool = host.host.pool("vmkit")
    assert pool.backing("full-0.qcow2") is None
    assert pool.backing("linked-0.qcow2") == pool.backing("web-0.qcow2")
    web.delete()
    host.vms.get("linked").start()
    for name in ("linked", "full"):
        host.vms.get(name).wait(deadline=WAIT)
        assert inside(host.vms.get(name), "mount /dev/vda /mnt && cat /mnt/file") == "kept"
    all_different([host.vms.get("linked"), host.vms.get("full")])


def test_ten_vms_from_one_memory(host: Client) -> None:
    before = volumes(host)
    web = source(host)
    inside(web, "mount /dev/vda /mnt && echo saved >/mnt/file && sync")
    image = host.clones.keep("web", "warm")
    assert (image.kind, image.agent) == (ImageKind.MEMORY, True)
    assert image.memory
    assert image.memory.path.stat().st_mode & 0o777 == 0o600
    saved = int(inside(web, "counter"))
    with pytest.raises(ConflictError, match="warm"):
        host.clones.keep("web", "warm")
    web.delete(force=True)
    names = [f"w{i}" for i in range(10)]
    made = host.clones.from_memory("warm", names, wait=True, deadline=WAIT)
    assert [(m.name, m.state) for m in made] == [(n, "running") for n in names]
    vms = [host.vms.get(n) for n in names]
    all_different(vms)
    booted = [float(inside(vm, "cut -d' ' -f1 /proc/uptime")) for vm in vms]
    counters = [int(inside(vm, "counter")) for vm in vms]
    assert all(c > saved * 0.5 for c in counters), (saved, counters)
    assert all(b > saved / 100 * 0.5 for b in booted)
    assert {inside(vm, "cat /mnt/file") for vm in vms} == {"saved"}
    with pytest.raises(RefusedError, match="holds no memory"):
        host.clones.from_memory("micro", ["other"])
    with pytest.raises(ConflictError, match="w3"):
        host.clones.from_memory("warm", ["other", "w3"])
    assert sorted(host.vms.delete_all(force=True)) == sorted(names)
    assert host.vms.list() == []
    assert volumes(host) == before
    assert records() == []


def test_what_cannot_be_copied_is_refused_and_nothing_is_touched(host: Client) -> None:
    web = host.vms.create(spec("web", nics=[{"network": "lab", "address": "192.0.2.7/24"}])).vm
    before = volumes(host)
    with pytest.raises(RefusedError, match="the guest agent of web does not answer"):
        host.clones.clone("web", ["one"])
    web.pause()
    with pytest.raises(ConflictError, match="web is paused"):
        host.clones.clone("web", ["one"])
    web.resume()
    web.wait(layers=[Layer.AGENT], deadline=WAIT)
    with pytest.raises(SpecError, match="two VMs cannot share"):
        host.clones.clone("web", ["one"])
    assert volumes(host) == before
    assert [r.name for r in host.vms.list()] == ["web"]


def test_kill_9_of_a_live_copy_is_settled_by_the_next_command(host: Client, pair: Lab) -> None:
    web = source(host)
    own = [d.source for d in web.details().disks]
    before = volumes(host)
    uri = pair.host("h2").uri
    for delay in (0.7, 1.1, 1.6, 2.4):
        process = vmkit("clone", "web", "cut", uri=uri)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        following = vmkit("list", "-o", "name", uri=uri)
        out, err = following.communicate(timeout=WAIT)
        assert following.returncode == 0, err
        assert records() == []
        assert [d.source for d in web.details().disks] == own
        assert (
            inside(web, "echo fine | dd of=/dev/vda bs=512 conv=sync 2>/dev/null; sync; head -c 4 /dev/vda") == "fine"
        )
        if "cut" in out.split():  # it had come to its end
            assert who(host.vms.get("cut"))["host name"] == "cut"
            host.vms.get("cut").delete(force=True)
        assert volumes(host) == before


def test_ctrl_c_removes_what_was_begun(host: Client, pair: Lab) -> None:
    web = source(host)
    before = volumes(host)
    process = vmkit("clone", "web", "one", "two", "three", "--at-once", "1", uri=pair.host("h2").uri)
    deadline = time.monotonic() + WAIT
    while "one" not in [r.name for r in host.vms.list()]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode in (4, 7), err
    assert records() == []
    left = {r.name for r in host.vms.list()}
    assert left < {"web", "one", "two", "three"}
    for name in left - {"web"}:  # those that were finished stay
        assert who(host.vms.get(name))["host name"] == name
        host.vms.get(name).delete(force=True)
    assert volumes(host) == before
    assert inside(web, "hostname") == "web"


def vmkit(*argv: str, uri: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vmkit", "-c", uri, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
