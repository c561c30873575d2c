"""A guest in the lab: it gets an address, is reached from the machine, and moves between the hosts by plain virsh."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from vmkit.client import Client
from vmkit.hypervisor.domain import DomainState
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab, Labs
from vmkit.system.process import run

NAME = "guest"


@pytest.fixture(scope="module")
def address(pair: Lab, micro: Image) -> Iterator[str]:
    """A guest on the first host with a disk in the shared pool; its address, by DHCP."""
    spec = {
        "name": NAME,
        "image": micro.name,
        "memory": "192M",
        "disks": [{"size": "64M"}],
        "nics": [{"network": "lab", "address": "dhcp"}],
    }
    with Client(pair.host("h1").uri) as client:
        client.vms.create(spec, wait=True, deadline=180)
        try:
            yield client.host.domain(NAME).addresses()[0]
        finally:
            for host in pair.hosts:
                with Client(host.uri) as owner:
                    if NAME in [d.name for d in owner.host.domains()]:
                        owner.vms.get(NAME).delete(force=True)


def counter(address: str) -> int:
    """The counter in the guest's memory, asked over the network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(2)
        for _ in range(10):
            asking.sendto(b"?", (address, 7007))
            try:
                return int(asking.recv(64))
            except TimeoutError:
                continue
    raise AssertionError(f"the guest at {address} does not answer")


def test_dhcp_gives_an_address_of_the_range(pair: Lab, address: str) -> None:
    first, last = (IPv4Address(a) for a in pair.host("h1").dhcp)
    assert first <= IPv4Address(address) <= last


def test_the_guest_is_reached_from_the_machine(address: str) -> None:
    assert counter(address) >= 0


def test_virsh_moves_it_live_and_back(pair: Lab, address: str) -> None:
    """Its disk is on storage that libvirt takes for shared, so no --unsafe. Back by peer-to-peer, from a host."""
    first, second = pair.host("h1"), pair.host("h2")
    before = counter(address)
    options = ["--live", "--persistent", "--undefinesource", NAME]
    run(["virsh", "-c", first.uri, "migrate", *options, second.uri], timeout=180)
    with Client(second.uri) as client:
        assert client.host.domain(NAME).state() is DomainState.RUNNING
    between = counter(address)
    assert between > before
    back = Labs().run(second.name, ["virsh", "migrate", "--p2p", *options, "qemu+ssh://root@h1/system"], timeout=180)
    assert back.status == 0, back.stderr
    with Client(first.uri) as client, Client(second.uri) as left:
        assert client.host.domain(NAME).state() is DomainState.RUNNING
        assert left.host.domains() == []
    assert counter(address) > between
