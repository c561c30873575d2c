"""Networks on a real host: guests get addresses, find each other by name, and nothing is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from vmkit.client import Client
from vmkit.errors import ConflictError, DeadlineError, EffectError
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab, Labs
from vmkit.network.api import Details
from vmkit.system.journal import records
from vmkit.vm.addresses import Source
from vmkit.vm.machine import Vm
from vmkit.vm.readiness import Goal, Layer

WAIT = 180.0
"""Seconds for a boot that takes five on a quiet machine."""


class Host:
    """Host h1: a client, and what its own `ip` and `vmkit` say."""

    def __init__(self, client: Client, lab: Lab) -> None:
        self.client = client
        self.name = lab.host("h1").name
        self.uri = lab.host("h1").uri
        self.gateway = lab.host("h1").gateway

    def run(self, *argv: str, check: bool = True) -> str:
        done = Labs().run(self.name, argv)
        assert done.status == 0 or not check, f"{argv}: {done.stderr}"
        return done.stdout + done.stderr

    def vmkit(self, *argv: str, check: bool = True) -> str:
        """A vmkit that runs in the host itself, as root."""
        return self.run(sys.executable, "-m", "vmkit", "-c", "qemu:///system", *argv, check=check)

    def links(self) -> set[str]:
        return {link["ifname"] for link in json.loads(self.run("ip", "-j", "link", "show"))}

    def create(self, name: str, *nics: dict[str, object], wait: bool = True) -> None:
        spec = {"name": name, "image": "micro", "memory": "128M", "disks": [], "nics": list(nics)}
        self.client.vms.create(spec, wait=wait, deadline=WAIT)

    def guest(self, name: str, *argv: str) -> str:
        return self.client.vms.get(name).guest_exec(argv).stdout


@pytest.fixture
def host(client_h1: Client, micro: Image, pair: Lab) -> Iterator[Host]:
    """Host h1, with nothing but its network `lab` before and after."""
    assert micro.name == "micro"
    found = Host(client_h1, pair)
    before = found.links()
    assert [n.name for n in client_h1.networks.list()] == ["lab"]
    yield found
    for vm in client_h1.vms.list():
        if vm.name.startswith("net-"):
            client_h1.vms.get(vm.name).delete(force=True)
    for network in client_h1.networks.list():
        if network.name != "lab":
            client_h1.networks.delete(network.name, force=True)
    assert found.links() == before
    assert records() == []


def made(host: Host, **more: object) -> Details:
    return host.client.networks.create({"name": "net1", **more})


def serve(vm: Vm, port: int, line: str) -> None:
    """Have a guest answer each connection to a port with a line."""
    vm.guest_exec(["sh", "-c", f"while :; do echo {line} | nc -l -p {port}; done >/dev/null 2>&1 &"])


def test_guests_of_a_nat_network_find_each_other_by_name(host: Host) -> None:
    network = made(host)
    assert network.subnet is not None
    start = network.subnet.rpartition(".")[0]
    host.create("net-a", {"network": "net1", "address": f"{start}.10/24"}, wait=False)
    host.create("net-b", {"network": "net1"})
    a, b = (host.client.vms.get(n) for n in ("net-a", "net-b"))
    a.wait(deadline=WAIT)

    best = a.addresses().best
    assert best is not None
    assert best.ip == f"{start}.10"
    assert {Source.AGENT, Source.LEASE, Source.RESERVATION, Source.SPEC} <= set(best.sources)
    there = b.addresses().best
    assert there is not None
    assert network.dhcp is not None
    assert network.dhcp.split("-")[0] <= there.ip
    assert set(there.sources) >= {Source.AGENT, Source.LEASE}
    assert host.vmkit("ip", "net-b", "-o", "name").split() == [there.ip]

    # Of a fixed address the name is known before anybody asked for it; with and without the domain.
    assert best.ip in host.guest("net-b", "nslookup", "net-a.net1")
    assert "1 packets received" in host.guest("net-b", "ping", "-c", "1", "-W", "5", "net-a")
    assert "1 packets received" in host.guest("net-a", "ping", "-c", "1", "-W", "5", "net-b")
    assert f"default via {network.gateway}" in host.guest("net-b", "ip", "route")
    # NAT: the host's own network is reached under the host's address.
    assert "1 packets received" in host.guest("net-b", "ping", "-c", "1", "-W", "5", host.gateway)

    shown = host.client.networks.show("net1")
    assert {v.vm for v in shown.vms} == {"net-a", "net-b"}
    assert [(r.name, r.address) for r in shown.reserved] == [("net-a", best.ip)]
    assert {lease.address for lease in shown.leases} == {best.ip, there.ip}
    with pytest.raises(ConflictError, match=r"net-a \(running\), net-b \(running\)"):
        host.client.networks.delete("net1")
    with pytest.raises(ConflictError, match="kept for net-a"):
        host.create("net-c", {"network": "net1", "address": f"{start}.10/24"})
    with pytest.raises(ConflictError, match="is lent to"):
        host.create("net-c", {"network": "net1", "address": f"{there.ip}/24"})

    assert f"lease {there.ip}" in b.delete(force=True)
    assert f"reservation {best.ip}" in a.delete(force=True)
    after = host.client.networks.show("net1")
    assert (after.reserved, after.leases, after.vms) == ((), (), ())
    host.client.networks.delete("net1")


def test_an_isolated_network_and_reservations_while_it_runs(host: Host) -> None:
    made(host, mode="isolated", subnet="192.168.77.0/24")
    host.create("net-a", {"network": "net1"})
    vm = host.client.vms.get("net-a")
    assert "default" not in host.guest("net-a", "ip", "route")
    assert "1 packets received" in host.guest("net-a", "ping", "-c", "1", "-W", "5", "192.168.77.1")
    done = host.vmkit("network", "reserve", "net1", "net-a", "192.168.77.5")
    assert "192.168.77.5 is kept for net-a (52:54:00" in done
    assert "is reserved" in host.vmkit(
        "network", "reserve", "net1", "other", "192.168.77.5", "--mac", "52:54:00:00:00:77", check=False
    )
    assert "192.168.77.5" in host.guest("net-a", "nslookup", "net-a.net1")
    with pytest.raises(DeadlineError, match="stuck at 'port:80'") as caught:
        vm.wait(layers=[Goal(Layer.PORT, 80)], deadline=3)
    assert "console| vmkit-micro: ready" in caught.value.details
    serve(vm, 80, "hello")
    ready = vm.wait(layers=[Goal(Layer.PORT, 80)], deadline=WAIT)
    assert [s.layer for s in ready.steps] == [Layer.ADDRESS, Layer.PORT]
    assert ready.steps[-1].detail == f"{ready.address}:80"
    # The guest has it from its next boot on. What it had before is out of date.
    old = vm.addresses().good
    vm.reboot(force=True)
    deadline = time.monotonic() + WAIT
    while vm.addresses().good != ("192.168.77.5",):
        assert time.monotonic() < deadline, vm.addresses()
        time.sleep(0.5)
    assert old != ("192.168.77.5",)

    spec: dict[str, object] = {"name": "net1", "mode": "isolated", "subnet": "192.168.77.0/24"}
    assert host.client.networks.apply(spec).action == "unchanged"
    more = [{"name": "db1", "mac": "52:54:00:00:00:01", "address": "192.168.77.9"}]
    assert host.client.networks.apply({**spec, "reservations": more}).action == "changed"
    assert "192.168.77.9" in host.guest("net-a", "nslookup", "db1.net1")
    assert host.client.networks.apply({**spec, "reservations": more}).action == "unchanged"
    with pytest.raises(ConflictError, match="has to be made again for mode, and VMs run on it: net-a"):
        host.client.networks.apply({**spec, "mode": "nat", "reservations": more})
    vm.stop(force=True)
    assert host.client.networks.apply({**spec, "mode": "nat", "reservations": more}).action == "changed"
    after = host.client.networks.show("net1")
    assert (after.mode, after.subnet) == ("nat", "192.168.77.0/24")
    assert {r.name for r in after.reserved} == {"db1", "net-a"}
    assert "reservation 192.168.77.5" in vm.delete()


def test_bridges_are_made_and_joined(host: Host) -> None:
    host.run("ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1")
    try:
        refused = host.vmkit("network", "create", "lan", "--mode", "bridge", "--port", "uplink", check=False)
        assert "uplink is a port of br0" in refused
        done = host.vmkit("network", "create", "lan", "--mode", "bridge", "--port", "p0")
        assert "lan: bridge, lan" in done
        assert "without its ports: vmkit network start lan" in done
        links = {link["ifname"]: link for link in json.loads(host.run("ip", "-j", "link", "show"))}
        assert links["p0"]["master"] == "lan"
        assert "is active already" in host.vmkit("network", "start", "lan")
        host.run("ip", "link", "set", "p0", "nomaster")
        assert "lan: active" in host.vmkit("network", "start", "lan")
        assert "br0" in host.vmkit("network", "create", "lab2", "--mode", "bridge", "--bridge", "br0")
        # A guest on the bridge that was joined is in the host's own network.
        host.create("net-a", {"network": "lab2"})
        best = host.client.vms.get("net-a").addresses().best
        assert best is not None
        assert best.network == "network:lab2"
        assert best.ip.rpartition(".")[0] == Labs().find(host.name).address.rpartition(".")[0]
        host.client.vms.get("net-a").delete(force=True)
        host.vmkit("network", "delete", "lan", "lab2")
        assert "lan" not in host.links()
        assert "br0" in host.links()
    finally:
        host.run("ip", "link", "delete", "p0")


@pytest.mark.parametrize("delay", [0.5, 0.9, 1.4])
@pytest.mark.parametrize("verb", ["create", "delete"])
def test_kill_9_while_a_network_is_made_or_removed(host: Host, verb: str, delay: float) -> None:
    if verb == "delete":
        made(host)
    process = subprocess.Popen(
        [sys.executable, "-m", "vmkit", "-c", host.uri, "network", verb, "net1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    interrupted = records("network")
    following = subprocess.run(
        [sys.executable, "-m", "vmkit", "-c", host.uri, "network", "list", "-o", "name"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert records() == []
    names = following.stdout.split()
    if interrupted:
        what = {"create": "making", "delete": "deletion"}[verb]
        assert f"{what} of network net1 was cut off" in following.stderr
        assert names == ["lab"]
    elif "net1" in names:
        assert host.client.networks.show("net1").state == "active"


def test_ports_of_the_host_lead_into_a_guest(host: Host) -> None:
    host.create("net-a", {"network": "user", "forward": ["2299:22", "udp:0.0.0.0:2207:7007"]})
    vm = host.client.vms.get("net-a")
    (nic,) = vm.details().nics
    assert (nic.network, nic.forwards) == ("user", ("tcp:127.0.0.1:2299:22", "udp:0.0.0.0:2207:7007"))
    best = vm.addresses().best
    assert best is not None
    assert (best.ip, best.reachable) == ("10.0.2.15", False)
    ask = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); "
        "s.sendto(b'?', ('127.0.0.1', 2207)); print(int(s.recv(64)))"
    )
    assert int(host.run("python3", "-c", ask)) > 0
    for goal in (Goal(Layer.SSH), Goal(Layer.PORT, 22)):  # QEMU takes the connection, and nobody is behind it
        with pytest.raises(DeadlineError, match=f"stuck at '{goal}'"):
            vm.wait(layers=[goal], deadline=3)
    serve(vm, 22, "SSH-2.0-played")
    assert vm.wait(layers=[Layer.SSH], deadline=WAIT).steps[-1].detail == "127.0.0.1:2299"
    assert vm.wait(layers=[Goal(Layer.PORT, 22)], deadline=WAIT).steps[-1].detail == "10.0.2.15:22"

    before = {v.name for v in host.client.vms.list()}
    with pytest.raises(EffectError, match="Could not set up host forwarding rule") as caught:
        host.create("net-b", {"forward": ["2299:22"]}, wait=False)
    assert "in use there" in (caught.value.hint or "")
    assert {v.name for v in host.client.vms.list()} == before
    vm.delete(force=True)


def test_addresses_of_guests_without_an_agent(host: Host, micro: Image) -> None:
    made(host, subnet="192.168.78.0/24")
    host.client.networks.reserve("net1", "net-s", "192.168.78.7", mac="52:54:00:00:00:a7")
    for name, mac, ip in (("net-d", "d7", "dhcp"), ("net-s", "a7", "192.168.78.7/24")):
        assert micro.kernel is not None
        assert micro.initrd is not None
        xml = f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
          <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{micro.kernel.path}</kernel>
          <initrd>{micro.initrd.path}</initrd><cmdline>{micro.cmdline} vmkit.name={name} vmkit.ip={ip}</cmdline></os>
          <features><acpi/><apic/></features><devices>
          <interface type='network'><mac address='52:54:00:00:00:{mac}'/><source network='net1'/>
          <model type='virtio'/></interface><serial type='pty'/></devices></domain>"""
        host.client.host.define(xml).start()
    d, s = (host.client.vms.get(n) for n in ("net-d", "net-s"))
    ready = d.wait(layers=[Layer.ADDRESS], deadline=WAIT)
    assert ready.address is not None
    assert ready.address.startswith("192.168.78.")
    best = d.addresses().best
    assert best is not None
    assert Source.AGENT not in best.sources
    assert Source.LEASE in best.sources
    # Nobody has lent it anything, and it has no agent: that it has its address is seen by asking it.
    assert s.wait(layers=[Layer.ADDRESS], deadline=WAIT).address == "192.168.78.7"
    assert s.addresses().addresses[0].sources[-1] is Source.RESERVATION
    for vm in (d, s):
        vm.delete(force=True)
    assert host.client.networks.show("net1").reserved == ()
