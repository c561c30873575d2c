"""Placing images on a host that is reached by ssh, and the probe of KVM on it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmkit.host.probe import probe_kvm
from vmkit.hypervisor.host import Host
from vmkit.image.api import Images
from vmkit.image.manifest import Image
from vmkit.image.place import ensure_pool, file_name, place
from vmkit.lab.api import Lab
from vmkit.progress import Event

SENDER = """
import sys
from vmkit.hypervisor.host import Host
from vmkit.image.api import Images
from vmkit.image.place import place

with Host.connect(sys.argv[1]) as host:
    place(host, Images().get(sys.argv[2]))
"""

PROBER = """
import sys
from vmkit.host.probe import probe_kvm
from vmkit.hypervisor.host import Host
from vmkit.progress import Advanced

def report(event):
    if isinstance(event, Advanced):
        print("racing", flush=True)

with Host.connect(sys.argv[1]) as host:
    probe_kvm(host, sys.argv[2], sys.argv[3], report)
"""


@pytest.fixture
def big(home: Path, tmp_path: Path) -> Image:
    """An image of 24 MiB that no host has yet."""
    source = tmp_path / "big.raw"
    source.write_bytes(os.urandom(24 << 20))
    return Images().import_(source, f"big-{os.urandom(4).hex()}")


def test_many_processes_place_an_image_of_which_half_is_there(pair: Lab, big: Image, tmp_path: Path) -> None:
    # What a killed sender leaves. None is killed here: libvirtd 11.3 can lock itself up for good when a client dies
    # in the middle of an upload (its event loop waits in virNetServerClientClose for a lock that it holds).
    uri = pair.host("h1").uri
    assert big.disk
    name = file_name("disk", big.disk)
    half = tmp_path / "half"
    half.write_bytes(big.disk.path.read_bytes()[: big.disk.size // 2])
    with Host.connect(uri) as host:
        ensure_pool(host).upload(name, half)
    senders = [subprocess.Popen([sys.executable, "-c", SENDER, uri, big.name]) for _ in range(3)]
    assert [s.wait(timeout=120) for s in senders] == [0, 0, 0]
    with Host.connect(uri) as host:
        pool = ensure_pool(host)
        assert hashlib.sha256(pool.read(name)).hexdigest() == big.disk.sha256
        assert place(host, big).disk == pool.path(name)
        for volume in (name, f"{name}.complete"):
            assert pool.delete(volume)
    Images().delete(big.name)


def probes(host: Host) -> list[str]:
    return [d.name for d in host.domains() if d.name.startswith("vmkit-probe-")]


def test_probe_says_whether_kvm_works_and_remembers_it(pair: Lab, micro: Image) -> None:
    seen: list[Event] = []
    with Host.connect(pair.host("h1").uri) as host:
        placed = place(host, micro)
        assert placed.kernel
        assert placed.initrd
        verdict = probe_kvm(host, placed.kernel, placed.initrd, seen.append)
        assert probes(host) == []
        if "type='kvm'" not in host.capabilities():
            assert not verdict.works
            assert seen == []
            return
        before = len(seen)
        start = time.monotonic()
        assert probe_kvm(host, placed.kernel, placed.initrd, seen.append) == verdict
        assert time.monotonic() - start < 5
        assert len(seen) == before
        assert ("booted on KVM" in verdict.reason) == verdict.works
        assert 0 < verdict.seconds < 70


def test_a_killed_probe_leaves_no_guest(
    pair: Lab, micro: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = pair.host("h2").uri
    with Host.connect(uri) as host:
        if "type='kvm'" not in host.capabilities():
            pytest.skip("no KVM is offered here, so no probe guest would be started")
        placed = place(host, micro)
        assert placed.kernel
        assert placed.initrd
        (home := tmp_path / "home").mkdir()  # where no verdict is remembered
        monkeypatch.setenv("VMKIT_HOME", str(home))
        argv = [sys.executable, "-c", PROBER, uri, placed.kernel, placed.initrd]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
            assert child.stdout
            assert child.stdout.readline() == b"racing\n"
            assert len(probes(host)) == 2
            child.kill()
        end = time.monotonic() + 60
        while probes(host) and time.monotonic() < end:
            time.sleep(0.2)
        assert probes(host) == []
