"""The older Debian that vmkit builds: its first boot by a seed, and a vCPU that comes while it runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.qemu.conftest import built_debian
from vmkit.client import Client
from vmkit.lab.api import Lab
from vmkit.vm.machine import Vm
from vmkit.vm.readiness import Layer


@pytest.fixture
def debian12(pair: Lab) -> Iterator[Vm]:
    """A Debian 12 with one of two vCPUs, and a file by user-data."""
    spec = {
        "name": "debian12",
        "image": built_debian("12").name,
        "memory": "512M",
        "vcpus": 1,
        "max_vcpus": 2,
        "nics": [{"network": "lab"}],
        "cloud_init": {"user_data": {"write_files": [{"path": "/etc/vmkit-test", "content": "from user-data\n"}]}},
    }
    with Client(pair.host("h1").uri) as client:
        made = client.vms.create(spec)
        try:
            made.vm.wait(layers=[Layer.AGENT, Layer.CLOUD_INIT], deadline=900)
            yield made.vm
        finally:
            made.vm.delete(force=True)


def inside(vm: Vm, *argv: str) -> str:
    done = vm.guest_exec(argv, timeout=120)
    assert done.status == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.timeout(1500)  # of which most may be the building of its image
def test_it_boots_by_its_seed_and_takes_up_a_vcpu_that_comes_while_it_runs(debian12: Vm, client_h1: Client) -> None:
    """Its kernel does, also on an emulated CPU. That of Debian 13 does not there: vmkit/vm/change/plug.py says why."""
    assert inside(debian12, "cat", "/etc/vmkit-test") == "from user-data"
    assert inside(debian12, "sh", "-c", ". /etc/os-release; echo $VERSION_ID $(hostname)") == "12 debian12"
    boot = inside(debian12, "cat", "/proc/sys/kernel/random/boot_id")
    assert inside(debian12, "nproc") == "1"
    client_h1.changes.change(debian12.name, lambda plain, _have: {**plain, "vcpus": 2})
    assert inside(debian12, "nproc") == "2"
    assert inside(debian12, "cat", "/sys/devices/system/cpu/online") == "0-1"
    assert inside(debian12, "cat", "/proc/sys/kernel/random/boot_id") == boot
