"""`vmkit doctor` on captured hosts: whole reports, their schema, and captures that make no sense."""

from __future__ import annotations

import json

import jsonschema
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import doctor_data as data
from vmkit.cli.doctor import doctor as command
from vmkit.host import doctor, tree
from vmkit.host.facts import cpu, kvm, memory, pci, system, virt
from vmkit.host.facts.libvirt import Answers
from vmkit.host.facts.probe import ProbeFacts
from vmkit.host.finding import ORDER, Level

NO_LIBVIRT = Answers("qemu:///system", error="no answer")
UNKNOWN = ProbeFacts(None, "not tried")


@pytest.mark.parametrize("name", data.names())
def test_the_whole_report(name: str) -> None:
    found = data.plain(data.report_on(name))
    assert found == data.expected(data.HOSTS / name / "report.json", found)


@pytest.mark.parametrize("name", data.names())
def test_the_report_follows_its_schema(name: str) -> None:
    jsonschema.validate(data.plain(data.report_on(name)), json.loads(data.SCHEMA.read_text()))


def test_the_schema_is_that_of_the_classes() -> None:
    found = data.schema()
    assert found == data.expected(data.SCHEMA, found)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["$defs"]["CpuFacts"]["properties"]["level"]["description"].startswith("micro-architecture level")


def test_a_wrong_report_does_not_follow_the_schema() -> None:
    report = data.plain(data.report_on("laptop"))
    report["facts"]["cpu"]["threads"] = "four"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, json.loads(data.SCHEMA.read_text()))


@pytest.mark.parametrize(
    ("name", "there", "not_there"),
    [
        (
            "intel-server",
            {"kvm-works", "paging-nested", "iommu", "iommu-shared", "huge-pages"},
            {"interrupt-remapping", "vfio"},
        ),
        ("amd-server", {"nested-off", "thp-never", "mitigations-off", "swap-disk", "trap-tcg-qemu-7"}, {"kvm-missing"}),
        ("arm-server", {"kvm-not-proven", "paging-nested"}, {"cpu-no-extension", "kvm-missing", "interrupt-remapping"}),
        ("xen-dom0", {"xen"}, {"cpu-no-extension", "kvm-missing", "iommu-off", "kvm-no-guest"}),
        ("cloud-vm", {"cpu-no-extension", "iommu-guest", "libvirt-down"}, {"iommu-firmware", "vulnerable"}),
        ("laptop", {"cpu-no-extension", "iommu-firmware", "swap-disk"}, {"kvm-no-guest", "iommu-guest"}),
        ("old-shadow", {"paging-shadow", "kvm-access", "interrupt-remapping", "cgroup", "open-files"}, {"swap-disk"}),
        ("container", {"kvm-container"}, {"iommu-firmware", "thp-never", "cgroup", "tun"}),
        (
            "nested-kvm",
            {"kvm-works", "paging-nested", "iommu-shared", "sriov-0000:01:00.0"},
            {"kvm-no-guest", "secure-boot"},
        ),
        ("software-kvm", {"kvm-no-guest", "cpu-no-extension", "vhost-net"}, {"kvm-works", "kvm-missing"}),
        ("broken-truncated", {"capture-incomplete"}, {"vhost-net", "kvm-missing", "iommu-firmware", "tun"}),
        ("broken-empty", {"capture-incomplete"}, {"kvm-missing", "vhost-net", "tun"}),
    ],
)
def test_what_is_found(name: str, there: set[str], not_there: set[str]) -> None:
    ids = {f.id for f in data.report_on(name).findings}
    assert there <= ids
    assert not not_there & ids


def test_what_runs_guests_is_what_the_probe_guest_found() -> None:
    """Two hosts as they were captured, both with /dev/kvm."""
    nested, software = data.report_on("nested-kvm"), data.report_on("software-kvm")
    assert (nested.accelerator, nested.facts.kvm.paging, nested.facts.cpu.extension) == ("kvm", "nested", "SVM")
    assert nested.facts.kvm.device.present
    assert software.facts.kvm.device.present
    assert (software.accelerator, software.facts.probe.works) == ("tcg", False)


def test_shadow_paging_that_runs_no_guest_is_what_is_mended_first() -> None:
    text = data.tree_text("nested-kvm").replace("/kvm_amd/parameters/npt\n Y", "/kvm_amd/parameters/npt\n N")
    report = doctor.diagnose("x", text, NO_LIBVIRT, ProbeFacts(False, "it ended after 57.8 s"))
    found = {f.id: f for f in report.findings}
    assert "npt=1" in found["kvm-no-guest"].fix[0]
    assert "paging-shadow" in found
    assert report.accelerator == "tcg"


@pytest.mark.parametrize("name", data.names())
def test_findings_can_be_acted_on(name: str) -> None:
    findings = data.report_on(name).findings
    levels = [ORDER.index(f.level) for f in findings]
    assert levels == sorted(levels)
    assert len({f.id for f in findings}) == len(findings)
    for f in findings:
        assert f.what, f.id
        assert "\n" not in f.what
        assert f.source == "" or f.cost or f.id.startswith("trap-"), f.id
        assert all(len(line) <= 85 for line in f.fix), f.fix  # 100 columns less the margin: never broken
        if f.level in (Level.PROBLEM, Level.GAP):
            assert f.fix, f.id


def test_figures_name_their_source() -> None:
    sourced = {f.id: f.source for n in data.names() for f in data.report_on(n).findings if f.cost and f.source}
    assert {"paging-shadow", "vhost-net", "huge-pages-none", "virtual-interrupts-off"} <= sourced.keys()


def test_the_fix_is_that_of_the_vendor_and_the_distribution() -> None:
    fixes = {n: {f.id: " / ".join(f.fix) for f in data.report_on(n).findings} for n in data.names()}
    assert "options kvm_amd nested=1" in fixes["amd-server"]["nested-off"]
    assert "grub2-mkconfig" in fixes["amd-server"]["mitigations-off"]
    assert "VT-x" in fixes["laptop"]["cpu-no-extension"]
    assert "VT-d" in fixes["laptop"]["iommu-firmware"]
    assert "ept=1" in fixes["old-shadow"]["paging-shadow"]
    assert "apt-get install" in fixes["cloud-vm"]["libvirt-down"]
    assert "virtqemud" not in fixes["cloud-vm"]["libvirt-down"]


def test_what_cannot_be_read_is_unknown_and_not_absent() -> None:
    captured = tree.parse("F @uid\n 1000\nX /sys/firmware/acpi/tables\nX @interrupts\nF @machine\n x86_64\nE\n")
    facts = pci.read(captured)
    assert facts.firmware_table is None
    assert facts.interrupt_remapping is None
    assert kvm.read(tree.parse("F @uid\n 0\n")).device.present is None
    assert kvm.read(tree.parse("F @uid\n 0\nE\n")).device.present is False


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(data.names()), st.data())
def test_a_damaged_capture_never_raises(name: str, draw: st.DataObject) -> None:
    text = data.tree_text(name)
    at = draw.draw(st.integers(0, len(text)))
    until = draw.draw(st.integers(at, len(text)))
    damaged = text[:at] + draw.draw(st.text(max_size=40)) + text[until:]
    report = doctor.diagnose("x", damaged, NO_LIBVIRT, UNKNOWN)
    assert report.summary()
    json.dumps(data.plain(report))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from([
    "/proc/cpuinfo", "/proc/meminfo", "/proc/swaps", "/proc/self/limits", "/proc/cmdline", "/etc/os-release", "@uid",
    "/sys/devices/system/node/node0/cpulist", "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "@machine",
    "/sys/module/kvm_intel/parameters/nested", "/sys/class/iommu/dmar0/intel-iommu/cap", "/proc/xen/capabilities",
    "/sys/bus/pci/devices/0000:00:00.0/sriov_totalvfs", "/sys/devices/system/cpu/online", "@release",
]), st.text(max_size=200)))  # fmt: skip
def test_no_reader_trips_over_any_text(files: dict[str, str]) -> None:
    captured = tree.Tree(files, {"/sys/module": ("kvm_intel",), "/sys/bus/pci/devices": ("0000:00:00.0",)})
    for module in (cpu, kvm, memory, pci, system, virt):
        assert module.read(captured) is not None


@given(st.sets(st.integers(0, 8191), max_size=40))
def test_cpu_lists_come_back(numbers: set[int]) -> None:
    assert tree.cpu_list(",".join(map(str, numbers))) == tuple(sorted(numbers))


def test_cpu_list_stays_small() -> None:
    assert tree.cpu_list("0-3,8") == (0, 1, 2, 3, 8)
    assert tree.cpu_list("0-99999999999") == ()
    assert tree.cpu_list(None) == ()


@pytest.mark.parametrize(("missing", "reached"), [("avx512vl", 3), ("bmi2", 2), ("cx16", 1), (None, 4)])
def test_level(missing: str | None, reached: int) -> None:
    have = frozenset(f for group in cpu.LEVELS for f in group) - {missing}
    assert cpu.level(frozenset(map(str, have))) == reached


class Stub:
    """A context whose client returns one report."""

    def __init__(self, report: doctor.Report) -> None:
        self.report = report

    def client(self) -> Stub:
        return self

    def doctor(self, **_options: object) -> doctor.Report:
        return self.report


@pytest.mark.parametrize("name", data.names())
def test_the_table_keeps_to_100_columns(name: str) -> None:
    done = CliRunner().invoke(command, [], obj=Stub(data.report_on(name)), env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert not [line for line in lines if len(line) > 100]
    assert "\x1b" not in done.output
    assert lines[0].startswith("host ")


def test_json_is_the_whole_report() -> None:
    report = data.report_on("intel-server")
    done = CliRunner().invoke(command, ["-o", "json"], obj=Stub(report))
    assert json.loads(done.output) == data.plain(report)
