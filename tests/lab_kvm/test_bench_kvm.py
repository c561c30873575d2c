"""Measuring on a real (nested) KVM: hardware paging and shadow page tables side by side.

Emulation is measured in tests/qemu: inside a nested host that is emulated itself, a guest takes minutes to boot.
"""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from tests.lab_kvm.conftest import PF, KvmHost
from vmkit.client import Client
from vmkit.errors import VmkitError
from vmkit.host.measured import Area, Measured, Mode, parse
from vmkit.image.manifest import Image
from vmkit.lab.api import Labs

LEFT = f"""
    ip -o -4 addr show dev pf0
    cat /sys/bus/pci/devices/{PF}/sriov_numvfs
    ip -o link show vmkit-bench0 2>/dev/null || true
    virsh list --all --name
    find /var/lib/vmkit/jobs /run/vmkit/devices -type f ! -name .lock 2>/dev/null | sort
"""
"""What a measurement with the card changes on a host."""


@pytest.fixture(scope="module")
def bench_image() -> Image:
    images = Client().images
    try:
        return images.get("bench")
    except VmkitError:
        return images.build_bench()


def bring(host: KvmHost, image: Image) -> None:
    """Copy the image into the host, unless it was there when the host was made."""
    folder = f"/var/lib/vmkit/images/{image.name}"
    if host.sh(f"test -e {folder}/manifest.json", check=False).status == 0:
        return
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(image.files[0].path.parent, image.name)
    argv = ["tar", "-C", "/var/lib/vmkit/images", "-xf", "-"]
    done = Labs().run(host.lab.name, argv, stdin=packed.getvalue(), timeout=900)
    assert done.status == 0, done.stderr


def measure(host: KvmHost, *words: str) -> Measured:
    done = host.vmkit("bench", "host", *words, "-o", "json", timeout=1500)
    assert json.loads(done.stdout)["format"] == 1
    return parse(done.stdout)


def test_hardware_paging_is_ahead_of_shadow_paging(shadow_host: KvmHost, bench_image: Image) -> None:
    bring(shadow_host, bench_image)
    words = ["--workloads", "processes", "--modes", "kvm-nested,kvm-shadow", "--shadow", "--quick"]
    found = measure(shadow_host, *words)

    def median(mode: Mode) -> float:
        result = found.find(Area.MEMORY, "processes", mode)
        assert result, (found.results, found.skipped)
        return result.median

    assert median(Mode.NESTED) > median(Mode.SHADOW)
    # Nothing is left, and KVM is as it was.
    left = shadow_host.sh("virsh list --all --name; cat /sys/module/kvm_amd/parameters/npt; ls /var/lib/vmkit/jobs")
    assert left.stdout.split() == ["N"]


def test_what_a_killed_bench_left_is_taken_away_by_the_next_command(shadow_host: KvmHost, bench_image: Image) -> None:
    bring(shadow_host, bench_image)
    script = """
        vmkit bench host --workloads integer --modes kvm-nested --shadow --seconds 60 >/dev/null 2>&1 &
        pid=$!
        for i in $(seq 600); do
          virsh list --name | grep -q vmkit-bench && break
          sleep 0.5
        done
        sleep 1
        kill -9 $pid
        cat /sys/module/kvm_amd/parameters/npt
        vmkit jobs >/dev/null
        cat /sys/module/kvm_amd/parameters/npt
        virsh list --all --name
    """
    done = shadow_host.sh(script, timeout=900)
    assert done.stdout.split() == ["Y", "N"]
    assert "measuring" in done.stderr
    assert "kvm_amd has npt=N again" in done.stderr


def test_virtio_vhost_and_a_virtual_function_side_by_side(kvm_host: KvmHost, bench_image: Image) -> None:
    bring(kvm_host, bench_image)
    before = kvm_host.sh(LEFT).stdout
    # What the card has sent is counted anew when its functions go, so it is looked at all the time.
    look = "while :; do cat /sys/class/net/pf0/statistics/tx_bytes; sleep 0.2; done"
    looks = kvm_host.sh(f"({look}) </dev/null >/run/vmkit-sent 2>/dev/null & echo $!").stdout.strip()
    modes = (Mode.VIRTIO, Mode.VHOST, Mode.VF)
    words = ["--workloads", "network", "--modes", ",".join(m.value for m in (Mode.NESTED, *modes)), "--quick"]
    found = measure(kvm_host, *words)
    sent = int(kvm_host.sh(f"kill {looks}; sort -n /run/vmkit-sent | tail -n 1; rm /run/vmkit-sent").stdout)
    for mode in modes:
        result = found.find(Area.NETWORK, "tcp-stream", mode)
        assert result, (mode, found.skipped)
        assert result.accelerator == "kvm"
        assert result.median > 0
    assert found.skipped == ()
    # It was the card that carried the last of these: half of what was measured within a second, to be safe.
    vf = found.find(Area.NETWORK, "tcp-stream", Mode.VF)
    assert vf
    assert sent > vf.median * 1e6 / 8 / 2
    assert kvm_host.sh(LEFT).stdout == before


BOUND = "ls /sys/bus/pci/drivers/vfio-pci 2>/dev/null | grep -q ^0000:"


def test_a_card_that_a_killed_bench_used_is_given_back_by_the_next_command(
    kvm_host: KvmHost, bench_image: Image
) -> None:
    bring(kvm_host, bench_image)
    before = kvm_host.sh(LEFT).stdout
    script = f"""
        vmkit bench host --workloads network --modes kvm-nested,vf --seconds 60 >/tmp/bench 2>&1 &
        pid=$!
        for i in $(seq 3000); do
          {BOUND} && break
          kill -0 $pid || {{ cat /tmp/bench; exit 1; }}
          sleep 0.1
        done
        kill -9 $pid
        wait $pid || true
        cat /sys/bus/pci/devices/{PF}/sriov_numvfs
        vmkit jobs >/dev/null
    """
    done = kvm_host.sh(script, timeout=900)
    assert done.stdout.split() == ["1"]
    assert "took the virtual function of pf0 away" in done.stderr
    assert kvm_host.sh(LEFT).stdout == before
