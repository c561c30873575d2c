"""`vmkit doctor` on a host where KVM works, beside what that host says itself; from within and over ssh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

from tests.lab_kvm.conftest import HUGE_PAGES, PF, KvmHost
from vmkit.values import to_plain

SCHEMA = Path(__file__).parents[2] / "templates" / "doctor.schema.json"


def found(report: dict[str, Any]) -> set[str]:
    return {f["id"] for f in report["findings"]}


def test_a_probe_guest_proves_that_kvm_works(kvm_host: KvmHost) -> None:
    report = json.loads(kvm_host.vmkit("doctor", "-o", "json", timeout=900).stdout)
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    facts = report["facts"]
    assert report["accelerator"] == "kvm"
    assert facts["probe"]["works"] is True
    assert "booted on KVM" in facts["probe"]["reason"]
    assert (facts["cpu"]["extension"], facts["cpu"]["nested_paging"], facts["kvm"]["paging"]) == ("SVM", True, "nested")
    assert facts["kvm"]["nested"] is True
    assert {"kvm-works", "cpu-extension", "paging-nested", "vhost-net", "iommu"} <= found(report)
    assert not {"kvm-no-guest", "kvm-missing", "cgroup", "secure-boot"} & found(report)


def test_what_it_says_is_what_the_host_says(kvm_host: KvmHost) -> None:
    report = json.loads(kvm_host.vmkit("doctor", "--no-probe", "-o", "json").stdout)
    facts = report["facts"]
    assert facts["probe"]["works"] is True  # remembered until the host boots again
    said = kvm_host.sh(
        """for d in /sys/kernel/iommu_groups/*/devices/*; do echo group ${d#/sys/kernel/iommu_groups/}; done
        echo pages $(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)
        echo controllers $(cat /sys/fs/cgroup/cgroup.controllers)
        echo vfs $(cat /sys/bus/pci/devices/0000:01:00.0/sriov_totalvfs)
        virt-host-validate qemu || true
        virsh domcapabilities --machine q35 | grep -c "usable='yes'"
        """
    ).stdout
    groups = [line.split()[1].split("/devices/") for line in said.splitlines() if line.startswith("group ")]
    mine = sorted([g["number"], a] for g in facts["pci"]["groups"] for a in g["devices"])
    assert mine == sorted(groups)
    shared = next(g for g in facts["pci"]["groups"] if "0000:00:1f.2" in g["devices"])
    assert shared["isolated"] is False
    card = next(g for g in facts["pci"]["groups"] if PF in g["devices"])
    assert card["isolated"] is True
    pools = {p["size"]: p["total"] for p in facts["memory"]["huge_pages"]}
    assert pools[2 << 20] == HUGE_PAGES
    assert f"pages {HUGE_PAGES}" in said
    assert sum(p["total"] for n in facts["memory"]["nodes"] for p in n["huge_pages"]) == HUGE_PAGES
    (function,) = facts["pci"]["physical_functions"]
    assert (function["address"], function["total"], function["driver"]) == (PF, 7, "igb")
    assert f"vfs {function['total']}" in said
    controllers = next(line.split()[1:] for line in said.splitlines() if line.startswith("controllers "))
    assert facts["system"]["controllers"] == sorted(controllers)
    assert facts["pci"]["interrupt_remapping"] is True
    assert str(len(facts["libvirt"]["cpu_models"])) == said.splitlines()[-1].strip()
    assert facts["libvirt"]["cpu_host_model"] == "EPYC"
    assert "npt" in facts["libvirt"]["cpu_host_features"]
    lines = {line.partition(" : ")[0].strip(): line for line in said.splitlines() if " : " in line}
    validated = next(v for k, v in lines.items() if "hardware virtualization" in k)
    assert "PASS" in validated


def test_over_ssh_it_sees_the_same(kvm_host: KvmHost) -> None:
    within = json.loads(kvm_host.vmkit("doctor", "--no-probe", "-o", "json").stdout)["facts"]
    over = to_plain(kvm_host.client.doctor())
    assert over["accelerator"] == "kvm"
    for part in ("cpu", "kvm", "pci", "virt"):
        assert over["facts"][part] == within[part]
    assert over["facts"]["libvirt"] == {**within["libvirt"], "uri": over["facts"]["libvirt"]["uri"]}
