"""VMs on Xen: in which mode, by what devices, and what the domain's XML says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.unit.test_choices import HOST, made
from tests.unit.test_domain_xml import UUID
from tests.unit.test_golden_xml import FOLDER, compare, xml_of
from vmkit.errors import SpecError, UnsupportedError
from vmkit.system.templates import template
from vmkit.vm.explain import explained, with_measured
from vmkit.vm.facts import HostFacts
from vmkit.vm.machine_facts import MachineFacts
from vmkit.vm.metadata import Remembered
from vmkit.vm.xml import Placement, domain_xml

XEN = replace(
    HOST,
    uri="xen:///system",
    driver="Xen",
    domain_types=frozenset(["xen"]),
    machines=frozenset(["xenpv", "xenpvh", "xenfv"]),
    cpu_models={},
    kvm=None,
    memory_free=None,
    networks={"lab": True},
)
OLD = replace(XEN, machines=frozenset(["xenpv"]))
"""No hardware virtualisation."""


@pytest.mark.parametrize(
    ("name", "facts", "spec"),
    [
        ("xen-pvh", XEN, {"disks": [{}]}),
        ("xen-pv", XEN, {"machine": "xenpv", "vcpus": 2}),
        (
            "xen-hvm",
            XEN,
            {"machine": "xenfv", "disks": [{"bus": "ide"}, {"size": "1G", "bus": "ide"}]},
        ),
    ],
)
def test_domain(name: str, facts: HostFacts, spec: dict[str, Any]) -> None:
    compare(name, xml_of(made(facts, **spec)[0]))


def test_without_hardware_virtualisation_a_kernel_runs_as_pv() -> None:
    design, plan = made(OLD)
    assert design.machine == "xenpv"
    assert design.cmdline is not None
    assert "console=hvc0" in design.cmdline.split()
    chosen = next(c for c in plan.choices if c.subject == "machine")
    assert chosen.rejected == ()


def test_what_was_not_taken_is_said_with_its_reason() -> None:
    _, plan = made(XEN)
    chosen = next(c for c in plan.choices if c.subject == "machine")
    assert chosen.value == "xenpvh"
    assert [r.value for r in chosen.rejected] == ["xenpv", "xenfv"]


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({}, None),
        ({"disks": [{"bus": "ide"}]}, "xen_emul_unplug=nics"),
        ({"nics": [{"model": "e1000"}]}, "xen_emul_unplug=ide-disks"),
        ({"disks": [{"bus": "ide"}], "nics": [{"io": "emulated"}]}, "xen_emul_unplug=never"),
        ({"disks": [{"bus": "ide"}], "nics": [{"network": "none"}]}, "xen_emul_unplug=never"),
    ],
)
def test_emulated_devices_of_an_hvm_guest_are_kept_by_its_kernel(spec: dict[str, Any], word: str | None) -> None:
    design, _ = made(XEN, machine="xenfv", **spec)
    assert design.cmdline is not None
    words = design.cmdline.split()
    assert "console=hvc0" in words
    assert [w for w in words if w.startswith("xen_emul_unplug=")] == ([word] if word else [])


def test_what_boots_by_firmware_has_a_serial_port() -> None:
    design, _ = made(XEN, image=None, disks=[{"size": "1G"}])
    place = Placement(volumes={v: f"/pool/{v}" for v in design.volumes})
    base = template("domain.xml").read_text()
    root = ET.fromstring(domain_xml(base, design, place, Remembered({}, None, design.volumes, None), UUID))
    serial = root.find("devices/serial")
    assert serial is not None
    assert serial.find("log") is None
    assert [t.get("type") for t in root.iterfind("devices/console/target")] == ["serial"]


@pytest.mark.parametrize(
    ("facts", "spec", "path"),
    [
        (XEN, {"machine": "q35"}, "machine"),
        (OLD, {"machine": "xenpvh"}, "machine"),
        (XEN, {"disks": [{"bus": "virtio"}]}, "disks[0].bus"),
        (XEN, {"disks": [{"bus": "ide"}]}, "disks[0].bus"),
        (XEN, {"nics": [{"model": "e1000"}]}, "nics[0].model"),
        (XEN, {"machine": "xenfv", "nics": [{"model": "virtio"}]}, "nics[0].model"),
        (XEN, {"machine": "xenfv", "disks": [{}, {"size": "1G", "bus": "ide"}]}, "disks"),
        (XEN, {"machine": "xenfv", "nics": [{}, {"model": "e1000"}]}, "nics"),
        (replace(XEN, networks={}), {}, "nics[0].network"),
    ],
)
def test_what_a_mode_has_not_is_refused(facts: HostFacts, spec: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as e:
        made(facts, **spec)
    assert e.value.path == path


def test_an_image_that_boots_from_its_disk_needs_hvm() -> None:
    with pytest.raises(UnsupportedError, match="no HVM guests"):
        made(OLD, image=None, disks=[{"size": "1G"}])
    assert made(XEN, image=None, disks=[{"size": "1G"}])[0].machine == "xenfv"


@pytest.mark.parametrize(
    ("name", "machine", "paging", "card"),
    [("xen-pv", "PV", "direct", "netfront"), ("xen-pvh", "PVH", "HAP", "netfront"), ("xen-hvm", "HVM", "HAP", "ide")],
)
def test_a_domain_is_explained_in_the_words_of_xen(name: str, machine: str, paging: str, card: str) -> None:
    plan = explained((FOLDER / f"{name}.xml").read_text(), "xen:///system", MachineFacts(), None)
    lines = {c.subject: c for c in plan.choices}
    assert lines["machine"].reason.startswith(f"{machine}: ")
    assert lines["memory.paging"].value == paging
    assert card in (lines["nics[0].model"].value, lines["disks[0].bus"].value)
    assert "helpers" not in lines
    assert not any(c.measured for c in with_measured(plan, None).choices)
