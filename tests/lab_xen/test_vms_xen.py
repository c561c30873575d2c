"""VMs on a real Xen by vmkit's own commands: each mode from its creation to its end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from tests.lab_xen.conftest import XenHost
from vmkit.client import Client
from vmkit.errors import VmkitError
from vmkit.hypervisor.console import ConsoleStream
from vmkit.hypervisor.domain import DomainState
from vmkit.hypervisor.host import Host
from vmkit.image.manifest import ImageKind
from vmkit.vm.machine import Vm

WITHIN = 900.0
"""Seconds for anything that a guest does: it runs in an emulated host."""
READY = "vmkit-micro: ready"


@pytest.fixture(scope="module")
def micro(xen_host: XenHost) -> str:
    """The micro image, built on this machine."""
    images = xen_host.client.images
    assert images.build_micro().kind is ImageKind.MICRO
    return "micro"


@pytest.fixture(params=["xenpv", "xenpvh"])
def vm(request: pytest.FixtureRequest, xen_host: XenHost, micro: str) -> Iterator[Vm]:
    mode: str = request.param
    client = xen_host.client
    spec = {"name": mode, "image": micro, "machine": mode, "memory": "128M", "nics": [{"network": "lab"}]}
    try:
        client.vms.create(spec, wait=True, deadline=WITHIN)
        yield client.vms.get(mode)
    finally:
        with contextlib.suppress(VmkitError):
            client.vms.get(mode).delete(force=True)


def typed(xen_host: XenHost, vm: Vm, line: str, answer: str) -> None:
    """Type a line at the console; the guest's answer comes there."""
    heard = bytearray()
    there = threading.Event()

    def feed(data: bytes) -> None:
        heard.extend(data)
        if answer.encode() in heard:
            there.set()

    with Host.connect(xen_host.lab.uri, events=True) as host, ConsoleStream(host.domain(vm.name), feed) as console:
        deadline = time.monotonic() + WITHIN
        while not there.is_set():
            assert time.monotonic() < deadline, bytes(heard)
            console.send(f"{line}\n".encode())
            there.wait(20)


def test_a_guest_lives_from_creation_to_deletion(xen_host: XenHost, vm: Vm) -> None:
    client: Client = xen_host.client
    mode = {"xenpv": "PV", "xenpvh": "PVH"}[vm.name]
    assert READY in vm.log()
    assert "vmkit-micro: network eth0 192.168.77." in vm.log()
    (row,) = [r for r in client.vms.list() if r.name == vm.name]
    assert row.state == "running"
    details = vm.details()
    assert details.accelerator == "xen"
    assert (details.machine, details.disks[0].bus, details.nics[0].model) == (vm.name, "xen", "netfront")
    typed(xen_host, vm, "echo mode=$(cat /sys/hypervisor/guest_type)", f"mode={mode}\r")
    assert vm.pause()
    assert vm.state is DomainState.PAUSED
    assert "--p---" in xen_host.sh(f"xl list {vm.name}").stdout
    assert vm.resume()
    assert vm.state is DomainState.RUNNING
    again = vm.reboot(wait=True, deadline=WITHIN)
    assert again is not None
    assert vm.log().count(READY) == 2
    vm.stop(deadline=WITHIN)
    assert vm.state is DomainState.SHUTOFF
    removed = vm.delete()
    assert f"domain {vm.name}" in removed
    left = xen_host.sh("xl list; virsh -q -c xen:///system list --all --name; ls /var/lib/vmkit/pool").stdout
    assert vm.name not in left
