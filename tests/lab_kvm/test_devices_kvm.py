"""Virtual functions of a real SR-IOV card, on the nested host, by vmkit alone: lent, used, seen on the wire, back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab_kvm.conftest import PF, KvmHost
from vmkit.client import Client
from vmkit.errors import ConflictError, NotFoundError, RefusedError
from vmkit.image.api import Images
from vmkit.vm.machine import Vm

MAC1, MAC2, MAC3 = "52:54:00:aa:00:01", "52:54:00:aa:00:02", "52:54:00:aa:00:03"
VLAN = 100
SLOW = 600.0
"""Seconds for a guest of a guest to boot, on two CPUs that other tests use too; it takes about 20 on quiet ones."""


def vf_nic(mac: str, address: str, **more: Any) -> dict[str, Any]:
    return {"io": "sriov", "pf": "pf0", "mac": mac, "address": address, **more}


def spec(name: str, *nics: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "image": "micro-generic", "memory": "192M", "accel": "kvm", "nics": list(nics)}


def vfs(client: Client) -> list[dict[str, Any]]:
    """What the card has set for each virtual function, and its driver; without who uses it."""
    (pf,) = client.sriov.list()
    return [
        {"mac": v.mac, "vlan": v.vlan, "rate": v.max_tx_rate, "spoof": v.spoofcheck, "trust": v.trust, "on": v.driver}
        for v in pf.vfs
    ]


@pytest.fixture(scope="module")
def image(home: object) -> None:
    Images().build_micro(kernel="generic")


@pytest.fixture(scope="module")
def card(kvm_host: KvmHost) -> Iterator[list[dict[str, Any]]]:
    """The card with three virtual functions; yields their settings. It has none again at the end."""
    done = kvm_host.vmkit("sriov", "set", "pf0", "3", "-o", "json")
    (made,) = json.loads(done.stdout)
    assert (made["address"], made["up"], len(made["vfs"])) == (PF, True, 3)
    assert {v["driver"] for v in made["vfs"]} == {"igbvf"}
    assert "lost when the host boots" in done.stderr
    kvm_host.sh(
        f"""ip link set wire0 up
        ip link add link wire0 name wire0.{VLAN} type vlan id {VLAN}
        ip addr add 10.50.0.1/24 dev wire0.{VLAN}
        ip link set wire0.{VLAN} up"""
    )
    yield vfs(kvm_host.client)
    kvm_host.sh(f"ip link del wire0.{VLAN}; ip link set wire0 nomaster down")
    kvm_host.vmkit("sriov", "set", "pf0", "0")


@pytest.fixture(scope="module")
def guests(kvm_host: KvmHost, card: list[dict[str, Any]], image: None) -> Iterator[tuple[Vm, Vm]]:
    """Two guests, each with a virtual function in the same VLAN, made over ssh."""
    vms = kvm_host.client.vms
    first = vms.create(spec("dev1", vf_nic(MAC1, "10.50.0.11/24", vlan=VLAN, max_tx_rate=200)))
    second = vms.create(spec("dev2", vf_nic(MAC2, "10.50.0.12/24", vlan=VLAN, trust=True, spoofcheck=False)))
    made = first.vm, second.vm
    try:
        for vm in made:
            vm.wait(deadline=SLOW)
        yield made
    finally:
        for vm in made:
            if vm.domain.exists():
                vm.delete(force=True)


def test_the_card_has_what_was_asked_for(kvm_host: KvmHost, guests: tuple[Vm, Vm]) -> None:
    (pf,) = kvm_host.client.sriov.list()
    one, two, three = pf.vfs
    assert (one.mac, one.vlan, one.max_tx_rate, one.spoofcheck, one.trust) == (MAC1, VLAN, 200, True, False)
    assert (two.mac, two.vlan, two.max_tx_rate, two.spoofcheck, two.trust) == (MAC2, VLAN, None, False, True)
    assert [(v.vm, v.driver) for v in pf.vfs] == [("dev1", "vfio-pci"), ("dev2", "vfio-pci"), (None, "igbvf")]
    assert three.use.value == "free"
    listed = json.loads(kvm_host.vmkit("device", "list", "-o", "json").stdout)
    assert {d["address"]: d["used_by"] for d in listed if d["use"] == "vm"} == {
        one.address: "dev1",
        two.address: "dev2",
    }


def test_a_guest_sees_its_function_and_reaches_the_wire(kvm_host: KvmHost, guests: tuple[Vm, Vm]) -> None:
    first, second = guests
    seen = kvm_host.sh(
        """timeout 60 tcpdump -e -n -c 2 -i wire0 'vlan and icmp' >/tmp/wire 2>/dev/null &
        sleep 2; ping -c 3 -W 5 10.50.0.11; ping -c 3 -W 5 10.50.0.12; wait || true; cat /tmp/wire"""
    ).stdout
    assert " 0% packet loss" in seen
    assert f"{MAC1}" in seen
    assert f"vlan {VLAN}" in seen
    inside = first.guest_exec(["/bin/sh", "-c", "ip link; lspci; ping -c 3 -W 5 10.50.0.12"], timeout=120).stdout
    assert MAC1 in inside
    assert "8086:10ca igbvf" in inside
    assert " 0% packet loss" in inside  # from one virtual function to the other
    assert MAC2 in second.guest_exec(["ip", "link"], timeout=60).stdout


def test_what_is_in_use_is_not_taken_away(kvm_host: KvmHost, guests: tuple[Vm, Vm]) -> None:
    with pytest.raises(ConflictError) as caught:
        kvm_host.client.sriov.set("pf0", 1)
    assert {line.split()[-1] for line in caught.value.details} == {"dev1", "dev2"}
    address = kvm_host.client.sriov.list()[0].vfs[0].address
    with pytest.raises(ConflictError, match="dev1 has it"):
        kvm_host.client.devices.release([address])
    with pytest.raises(ConflictError, match="dev1"):
        kvm_host.client.vms.plan({**spec("dev9"), "devices": [{"address": address}]})


def test_a_device_of_a_shared_group_is_refused_with_what_is_in_it(kvm_host: KvmHost, image: None) -> None:
    with pytest.raises(RefusedError, match="shares IOMMU group") as caught:
        kvm_host.client.vms.create({**spec("dev9"), "devices": [{"address": "0000:00:1f.2"}]})
    assert [line.split()[0] for line in caught.value.details] == ["0000:00:1f.0", "0000:00:1f.3"]
    refused = kvm_host.vmkit("device", "list", "-o", "json").stdout
    sata = next(d for d in json.loads(refused) if d["address"] == "0000:00:1f.2")
    assert (sata["driver"], sata["shared_with"]) == ("ahci", ["0000:00:1f.0", "0000:00:1f.3"])
    root = next(d for d in json.loads(refused) if "mounted at /" in d["used_by"])
    with pytest.raises(RefusedError, match="the host itself uses"):
        kvm_host.client.vms.plan({**spec("dev9"), "devices": [{"address": root["address"]}]})


def test_attached_to_a_running_guest_and_taken_back(
    kvm_host: KvmHost, guests: tuple[Vm, Vm], card: list[dict[str, Any]]
) -> None:
    devices, guest = kvm_host.client.devices, guests[0]
    from vmkit.device.attach import Network

    done = devices.attach("dev1", "vf:pf0", network=Network(mac=MAC3, vlan=VLAN))
    assert (done.mac, done.now, done.at_start) == (MAC3, True, True)
    assert devices.show(done.address).used_by == "dev1"
    script = f"for i in $(seq 60); do ip link | grep -q {MAC3} && break; sleep 1; done; ip link"
    assert MAC3 in guest.guest_exec(["/bin/sh", "-c", script], timeout=180).stdout
    devices.detach("dev1", MAC3, deadline=SLOW)
    assert devices.show(done.address).driver == "igbvf"
    assert vfs(kvm_host.client)[2] == card[2]
    assert MAC3 not in guest.guest_exec(["ip", "link"], timeout=60).stdout
    with pytest.raises(NotFoundError):
        devices.detach("dev1", done.address)


def test_stopped_and_deleted_guests_give_everything_back(
    kvm_host: KvmHost, guests: tuple[Vm, Vm], card: list[dict[str, Any]]
) -> None:
    first, second = guests
    assert vfs(kvm_host.client) != card
    first.stop(force=True)
    assert vfs(kvm_host.client)[0] == card[0]
    first.start()  # it has its function again, with the same settings
    (pf,) = kvm_host.client.sriov.list()
    assert [(v.mac, v.vlan, v.max_tx_rate) for v in pf.vfs if v.vm == "dev1"] == [(MAC1, VLAN, 200)]
    first.delete(force=True)
    second.delete(force=True)
    assert vfs(kvm_host.client) == card
    assert "vfio-pci" not in kvm_host.vmkit("device", "list").stdout


KILLED = f"""
: >/tmp/gone
vmkit create gone --image micro --memory 128M --accel kvm --nic io=sriov,pf=pf0,mac={MAC1},vlan={VLAN} >/tmp/gone 2>&1 &
pid=$!
until [ -e /sys/bus/pci/drivers/vfio-pci/$1 ]; do
  while read -r line; do
    case $line in error*) cat /tmp/gone; exit 1 ;; esac
  done </tmp/gone
done
kill -9 $pid
wait $pid || true
virsh list --all --name
"""


def test_killed_between_bind_and_start_the_orphan_is_named_and_one_command_gives_it_back(
    kvm_host: KvmHost, card: list[dict[str, Any]]
) -> None:
    address = kvm_host.client.sriov.list()[0].vfs[0].address
    there = kvm_host.sh(f"set -- {address}\n{KILLED}").stdout
    assert "gone" not in there.split() or not kvm_host.client.vms.get("gone").state.active
    listed = kvm_host.vmkit("device", "list")
    line = next(s for s in listed.stdout.splitlines() if s.startswith(address))
    assert "vfio-pci" in line
    assert "orphan: vmkit create gone was cut off" in line
    assert "vmkit device release" in listed.stderr  # what the recovery of the creation says
    done = kvm_host.vmkit("device", "release")
    assert f"{address}: back on its driver igbvf" in done.stdout
    assert vfs(kvm_host.client) == card
    assert "nothing was left behind" in kvm_host.vmkit("device", "release").stdout


@pytest.fixture
def vlan_bridge(kvm_host: KvmHost, card: list[dict[str, Any]]) -> Iterator[str]:
    """A bridge of the host in the functions' VLAN; untagged, the NAT on the card's wire would answer as well."""
    name = "brv"
    kvm_host.sh(
        f"""ip addr flush dev wire0.{VLAN}
        ip link add {name} type bridge
        ip link set wire0.{VLAN} master {name}
        ip addr add 10.50.0.1/24 dev {name}
        ip link set {name} up"""
    )
    yield name
    kvm_host.sh(f"ip link del {name}; ip addr add 10.50.0.1/24 dev wire0.{VLAN}")


def test_failover_pair_goes_on_by_virtio_while_the_function_is_away(
    kvm_host: KvmHost, card: list[dict[str, Any]], image: None, vlan_bridge: str
) -> None:
    nic = {**vf_nic(MAC2, "10.50.0.13/24", vlan=VLAN), "network": f"bridge:{vlan_bridge}", "failover": True}
    made = kvm_host.client.vms.create(spec("dev3", nic), wait=True, deadline=SLOW)

    def learned() -> str:
        """Ports of the bridge behind which the guest's address was seen, after it has answered."""
        assert " 0% packet loss" in made.vm.guest_exec(["ping", "-c", "3", "-W", "5", "10.50.0.1"], timeout=120).stdout
        assert " 0% packet loss" in kvm_host.sh("ping -c 5 -W 5 10.50.0.13").stdout
        return kvm_host.sh(f"bridge fdb show br {vlan_bridge} dynamic | grep -i {MAC2}").stdout

    try:
        inside = made.vm.guest_exec(["/bin/sh", "-c", "lspci; ip link"], timeout=60).stdout
        assert "8086:10ca igbvf" in inside
        assert inside.count(MAC2) >= 3  # the master, its virtio NIC and its virtual function
        assert f"dev wire0.{VLAN}" in learned()
        (vf,) = [v for v in kvm_host.client.sriov.list()[0].vfs if v.vm == "dev3"]
        kvm_host.client.devices.detach("dev3", vf.address, deadline=SLOW)
        assert "igbvf" not in made.vm.guest_exec(["lspci"], timeout=60).stdout
        assert f"dev wire0.{VLAN}" not in learned()
    finally:
        made.vm.delete(force=True)
    assert vfs(kvm_host.client) == card


def test_a_whole_card(kvm_host: KvmHost, image: None) -> None:
    """The card has no virtual functions here."""
    try:
        made = kvm_host.client.vms.create({**spec("whole"), "devices": [{"address": PF}]})
        assert kvm_host.client.devices.show(PF).driver == "vfio-pci"
        made.vm.wait(deadline=SLOW)
        assert "8086:10c9 igb" in made.vm.guest_exec(["lspci"], timeout=60).stdout
        made.vm.delete(force=True)
        assert kvm_host.client.devices.show(PF).driver == "igb"
    finally:
        kvm_host.sh("vmkit delete --force whole >/dev/null 2>&1 || true; ip link set pf0 up")
