"""Whole domain XMLs of typical VMs, as files in tests/data/domains, each also against libvirt's schema.

`VMKIT_GOLDEN=write pytest tests/unit/test_golden_xml.py` writes them anew; read the difference before committing it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.unit.test_choices import made
from tests.unit.test_choices_kvm import NO_KVM, SERVER
from tests.unit.test_domain_xml import UUID, valid
from vmkit.host.measured import Area, Measured, Mode, Result
from vmkit.system.templates import template
from vmkit.vm.design import Design, NicDesign
from vmkit.vm.explain import NOT_MEASURED, explained, with_measured
from vmkit.vm.machine_facts import MachineFacts
from vmkit.vm.metadata import Remembered
from vmkit.vm.spec_parts import DiskLimits, LimitsSpec, NicLimits
from vmkit.vm.xml import Placement, domain_xml

FOLDER = Path(__file__).parents[1] / "data" / "domains"
SEEN = MachineFacts("Intel", "nested", virtual_interrupts=True, vhost_net=True, thp="madvise")


def xml_of(design: Design, **placement: Any) -> str:
    place = Placement("/pool/k", "/pool/i", {v: f"/pool/{v}" for v in design.volumes}, "/pool/console.log", **placement)
    memory = Remembered({"name": design.name}, "micro", design.volumes, "console.log")
    return domain_xml(template("domain.xml").read_text(), design, place, memory, UUID)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "general-kvm": (SERVER, {}),
    "general-tcg": (NO_KVM, {}),
    "compute": (SERVER, {"family": "compute", "vcpus": 2, "memory": "1G"}),
    "memory-locked": (replace(SERVER, huge_pages={}), {"family": "memory", "memory": "1500M"}),
    "network": (SERVER, {"family": "network", "vcpus": 4, "memory": "512M"}),
    "compat": (SERVER, {"family": "compat", "machine": "pc"}),
    "windows": (SERVER, {"guest": "windows", "vcpus": 2}),
    "room-to-grow": (SERVER, {"vcpus": 2, "max_vcpus": 4, "memory": "512M", "max_memory": "2G"}),
    "passthrough-disk": (
        SERVER,
        {"disks": [{}, {"io": "passthrough", "source": "/dev/sdb"}, {"size": "1G", "bus": "scsi", "queues": 2}]},
    ),
    "pinned-by-hand": (SERVER, {"pinning": ["2", "4-5"], "vcpus": 2, "numa": 0, "hugepages": "2M", "cpu": "host"}),
}


def compare(name: str, text: str) -> None:
    valid(text, "domain.rng")
    file = FOLDER / f"{name}.xml"
    if os.environ.get("VMKIT_GOLDEN") == "write":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(text + "\n")
    assert text + "\n" == file.read_text()


@pytest.mark.parametrize("name", CASES)
def test_domain(name: str) -> None:
    facts, spec = CASES[name]
    compare(name, xml_of(made(facts, **spec)[0]))


def test_failover_pair_whole_device_and_limits() -> None:
    design, _ = made(SERVER)
    nics = (
        NicDesign("network", "lab", "virtio", "52:54:00:00:00:01", 0, vhost=True, team="persistent"),
        NicDesign("vf", "eth1", "", "52:54:00:00:00:01", 0, vlan=7, team="transient"),
        NicDesign("pci", "0000:03:00.0", "", None, 1),
        NicDesign("bridge", "br0", "virtio", None, 2, limits=NicLimits(inbound=SERVER_RATE, outbound=SERVER_RATE)),
    )
    disks = (replace(design.disks[0], limits=DiskLimits(total_iops_sec=500)),)
    limits = LimitsSpec(cpu_shares=200, cpu_quota=1.5, io_weight=500)
    full = replace(design, nics=nics, disks=disks, limits=limits, devices=("0000:04:00.0",))
    text = xml_of(full, hostdevs={0: "0000:01:10.2"})
    compare("assigned", text)
    with pytest.raises(KeyError):  # the virtual function was not allocated
        xml_of(full)


SERVER_RATE = type(made(SERVER)[0].memory)(10 << 20)


def test_explanation_of_what_was_built() -> None:
    facts, spec = CASES["compute"]
    plan = explained(
        xml_of(made(facts, **spec)[0]), "qemu:///system", SEEN, Remembered({"family": "compute"}, "micro", (), None)
    )
    values = {c.subject: c.value for c in plan.choices}
    assert values["family"] == "compute"
    assert values["pinning"] == "0->1 1->2 rest->0,3-8,11-15"
    assert (values["hugepages"], values["numa"]) == ("2M", "0")
    assert values["memory.paging"] == "EPT"
    assert values["nics[0].vhost"] == "on"
    assert values["nics[0].queues"] == "2"
    assert values["disks[0].iothread"] == "1"
    assert values["helpers.clock"] == "kvmclock"
    assert values["interrupts.apic"] == "APICv"
    assert all(c.reason for c in plan.choices)


def test_explanation_of_assigned_devices_and_of_other_tools() -> None:
    plan = explained((FOLDER / "assigned.xml").read_text(), "qemu:///system", MachineFacts(), None)
    values = {c.subject: c.value for c in plan.choices}
    assert values["nics[1]"] == "sriov 0000:01:10.2"
    assert values["devices[0]"] == "passthrough 0000:03:00.0"
    assert values["memory.paging"] == "unknown"
    assert "another tool" in plan.warnings[0]


@pytest.mark.parametrize(
    "xml", ["<domain type='xen'/>", "<domain type='kvm'><devices><interface/><disk/></devices></domain>"]
)
def test_explanation_of_little(xml: str) -> None:
    assert ET.fromstring(xml).tag == "domain"
    assert explained(xml, "xen:///system", MachineFacts(), None).choices


def test_measurements_stand_beside_what_they_are_about() -> None:
    _, plan = made(SERVER)
    run = Measured(
        "2026-01-01T00:00:00Z",
        5.0,
        {},
        results=(
            Result(Area.CPU, "integer", Mode.NESTED, "kvm", "ops/s", (96.0,), 100.0),
            Result(Area.NETWORK, "stream", Mode.VHOST, "kvm", "bytes/s", (80.0,), 100.0),
        ),
    )
    found = {c.subject: c.measured for c in with_measured(plan, run).choices}
    assert found["accel"].startswith("96% of the host's own speed")
    assert found["nics[0].vhost"].startswith("80%")
    assert found["disks[0].bus"] == NOT_MEASURED
    assert found["machine"] == ""
    assert {c.measured for c in with_measured(plan, None).choices} == {"", NOT_MEASURED}
