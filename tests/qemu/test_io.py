"""The roads of blocks and packets: in each a disk block and a packet really go through, seen from both ends."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.qemu.conftest import sweep
from vmkit.client import Client
from vmkit.image.manifest import Image
from vmkit.vm.machine import Vm

WAIT = 300.0
BLOCK = 64 * 1024
"""Bytes that are written through the disk."""


@pytest.fixture(scope="module")
def generic(home: Path) -> Image:
    """The micro guest with the kernel that has drivers of emulated devices."""
    assert home.is_dir()
    return Client().images.build_micro(kernel="generic")


@pytest.fixture
def host(client_h1: Client, generic: Image) -> Iterator[Client]:
    """Host h1, with no VM before and none after."""
    assert generic.name == "micro-generic"
    yield client_h1
    sweep(client_h1)


CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "emulated": (
        {"disks": [{}, {"size": "16M", "io": "emulated"}], "nics": [{"network": "lab", "io": "emulated"}]},
        {"block": "sda", "disk": "ahci", "nic": "e1000e"},
    ),
    "emulated-pc": (
        {
            "machine": "pc",
            "family": "compat",
            "disks": [{"bus": "virtio"}, {"size": "16M"}],
            "nics": [{"network": "lab"}],
        },
        {"block": "sda", "disk": "ata_piix", "nic": "e1000"},
    ),
    "virtio": (
        {
            "vcpus": 2,
            "disks": [{}, {"size": "16M", "io": "virtio", "iothread": True}],
            "nics": [{"network": "lab", "io": "virtio"}],
        },
        {"block": "vdb", "disk": "virtio_blk", "nic": "virtio_net"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_block_and_a_packet_go_through(host: Client, name: str, tmp_path: Path) -> None:
    more, expected = CASES[name]
    made = host.vms.create(
        {"name": "road", "image": "micro-generic", "memory": "192M", **more}, wait=True, deadline=WAIT
    )
    vm = host.vms.get("road")
    assert made.ready is not None
    assert made.ready.address is not None
    assert _drivers(vm, expected["block"]) >= {expected["disk"], expected["nic"]}

    before = _received(vm)
    assert _echo(made.ready.address, b"through the card") == b"through the card"
    assert _received(vm) > before

    digest = _write_block(vm, expected["block"])
    if name == "virtio":
        assert vm.guest_exec(["sh", "-c", "ls /sys/block/vdb/mq | wc -l"]).stdout.strip() == "2"  # one for each vCPU
    volume = next(d.source for d in vm.details().disks if d.device == expected["block"] or "road-1" in (d.source or ""))
    vm.stop(force=True)
    assert volume is not None
    assert _first_block(volume, tmp_path / "raw") == digest


def _drivers(vm: Vm, block: str) -> set[str]:
    """Drivers on the way to the disk, and that of the first network card."""
    script = (
        f'd=$(readlink -f /sys/block/{block}/device); while [ "$d" != / ]; do '
        '[ -e "$d/driver" ] && basename "$(readlink -f "$d/driver")"; d=${d%/*}; d=${d:-/}; done; '
        'basename "$(readlink -f /sys/class/net/eth0/device/driver)"'
    )
    return set(vm.guest_exec(["sh", "-c", script]).stdout.split())


def _received(vm: Vm) -> int:
    return int(vm.guest_exec(["cat", "/sys/class/net/eth0/statistics/rx_packets"]).stdout)


def _echo(address: str, text: bytes) -> bytes:
    """What the guest's echo service answers; asked again, for a datagram may be lost."""
    until = time.monotonic() + 60
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        while True:
            s.sendto(text, (address, 7))
            try:
                return s.recv(2048)
            except TimeoutError:
                assert time.monotonic() < until, f"{address} does not answer"


def _write_block(vm: Vm, block: str) -> str:
    """Have the guest write a pattern to the disk and read it back past its own cache; returns its SHA-256."""
    pattern = (b"block through the controller " * BLOCK)[:BLOCK]
    write = f"dd of=/dev/{block} bs=4096 conv=fsync 2>/dev/null && echo 3 >/proc/sys/vm/drop_caches"
    assert vm.guest_exec(["sh", "-c", write], stdin=pattern).status == 0
    done = vm.guest_exec(["sh", "-c", f"dd if=/dev/{block} bs=4096 count={BLOCK // 4096} 2>/dev/null | sha256sum"])
    digest = hashlib.sha256(pattern).hexdigest()
    assert done.stdout.split()[0] == digest
    return digest


def _first_block(volume: str, raw: Path) -> str:
    """SHA-256 of the same bytes, as the host finds them in the volume."""
    subprocess.run(["qemu-img", "convert", "-O", "raw", volume, str(raw)], check=True, timeout=120)
    with raw.open("rb") as f:
        return hashlib.sha256(f.read(BLOCK)).hexdigest()
