"""Measuring on a host that has only emulation: what is said of the rest, and that nothing is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vmkit.client import Client
from vmkit.errors import VmkitError
from vmkit.host.measured import Area, Mode, load, parse
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def bench_image(home: Path) -> Image:
    images = Client().images
    try:
        return images.get("bench")
    except VmkitError:
        return images.build_bench()


def bench(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `vmkit bench host` on the lab's first host, in its namespaces, where the network of its guests is."""
    vmkit = [sys.executable, "-m", "vmkit"]
    argv = [*vmkit, "lab", "exec", f"{lab.name}/h1", "--", *vmkit, "-c", "qemu:///system", "bench", "host", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=1100, check=False)


def test_emulation_beside_the_host(pair: Lab, bench_image: Image, tmp_path: Path) -> None:
    picture = tmp_path / "host.svg"
    words = ["--workloads", "integer,disk,network", "--modes", "native,kvm-nested,tcg,virtio,emulated"]
    done = bench(pair, *words, "--quick", "--picture", str(picture), "-o", "json")
    assert done.returncode == 0, done.stderr
    found = parse(done.stdout)
    native = found.find(Area.CPU, "integer", Mode.NATIVE)
    guest = found.find(Area.CPU, "integer", Mode.TCG)
    assert native
    assert guest
    assert 0 < (guest.efficiency or 0) < 1
    for mode in (Mode.VIRTIO, Mode.EMULATED):
        for area, workload in ((Area.DISK, "random-read"), (Area.NETWORK, "tcp-stream")):
            result = found.find(area, workload, mode)
            assert result, (workload, mode, found.skipped)
            assert result.accelerator == "tcg"
            assert result.median > 0
    assert any(s.mode is Mode.NESTED and "KVM runs no guest here" in s.reason for s in found.skipped)
    assert load() == found
    assert ET.parse(picture).getroot().tag.endswith("svg")
    with Client(pair.host("h1").uri) as client:
        assert [d.name for d in client.host.domains() if d.name.startswith("vmkit-bench")] == []


def test_the_last_run_is_shown_again(pair: Lab) -> None:
    done = bench(pair, "--last")
    assert done.returncode == 0, done.stderr
    assert "cpu integer" in done.stdout
    assert "random-read" in done.stdout
