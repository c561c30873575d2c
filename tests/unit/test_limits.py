"""Limits of a VM: what is asked for, how it merges with what is set, how it is written in XML, what is refused."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_choices import HOST, made
from vmkit.errors import ConflictError, NotFoundError, SpecError, UnsupportedError
from vmkit.hypervisor.tuning import Controllers
from vmkit.system.templates import template
from vmkit.values import Bytes
from vmkit.vm import xml, xml_limits
from vmkit.vm.limit_plan import LimitFacts, decide
from vmkit.vm.limit_spec import in_spec
from vmkit.vm.limits import Limits, from_kilobytes, kilobytes, least_cap, merge, parse_change, rows, settings
from vmkit.vm.metadata import Remembered
from vmkit.vm.spec_parts import DiskLimits, LimitsSpec, NicLimits

MIB = 1 << 20
XML = """<domain type='kvm'><name>a</name><memory unit='KiB'>262144</memory><vcpu>2</vcpu>
<cputune><vcpupin vcpu='0' cpuset='1'/></cputune>
<devices>
<disk type='file' device='disk'><source file='/p/a-0.qcow2'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><source file='/p/a-1.qcow2'/><target dev='vdb' bus='virtio'/></disk>
<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
<interface type='user'><mac address='52:54:00:00:00:02'/></interface>
</devices></domain>"""
BARE = xml_limits.read(XML)
ALL = Controllers(cpu=True, memory=True, io=True, weight=100, why_not="")


def facts(**other: object) -> LimitFacts:
    known: dict[str, object] = {
        "name": "a", "uri": "qemu:///system", "session": False, "memory": 256 * MIB, "vcpus": 2, "accelerator": "kvm",
        "live": BARE, "config": BARE, "controllers": ALL,
    }  # fmt: skip
    return LimitFacts(**{**known, **other})  # type: ignore[arg-type]


def changed(**options: object) -> Limits:
    return merge(BARE, parse_change(**options))  # type: ignore[arg-type]


def test_every_limit_from_the_command_line() -> None:
    after = changed(
        cpus="1.5",
        cpu_shares=512,
        memory_cap="1G",
        io_weight=200,
        disks=["vda:read-iops=200,write-bps=20M"],
        nics=["0:in=10M,out=20M"],
    )
    assert after.vm == LimitsSpec(cpu_quota=1.5, cpu_shares=512, memory=Bytes(1 << 30), io_weight=200)
    assert after.disks[0].limits == DiskLimits(read_iops_sec=200, write_bytes_sec=Bytes(20 * MIB))
    assert after.disks[1].limits == DiskLimits()
    assert after.nics[0].limits == NicLimits(inbound=Bytes(10 * MIB), outbound=Bytes(20 * MIB))
    assert {r["limit"]: r["live"] for r in rows(after, None)} == {
        "cpus": "1.5", "cpu-shares": "512", "memory-cap": "1G", "io-weight": "200",
        "disk:vda": "write-bps=20M,read-iops=200", "disk:vdb": "none", "nic:0": "in=10M,out=20M", "nic:1": "none",
    }  # fmt: skip


def test_the_xml_says_what_was_asked_and_keeps_the_rest() -> None:
    after = changed(cpus="1.5", cpu_shares=512, memory_cap="1G", disks=["vdb:iops=50"], nics=["0:out=1M"])
    text = xml_limits.write(XML, BARE, after)
    root = ET.fromstring(text)
    tune = {e.tag: e.text for e in root.find("cputune") or ()}
    assert tune == {"vcpupin": None, "shares": "512", "global_period": "100000", "global_quota": "150000"}
    cap = root.find("memtune/hard_limit")
    assert cap is not None
    assert (cap.text, cap.get("unit")) == (str(1 << 20), "KiB")
    assert root.findtext("devices/disk[2]/iotune/total_iops_sec") == "50"
    assert root.find("devices/disk[1]/iotune") is None
    assert [(e.tag, e.attrib) for e in root.find("devices/interface[1]/bandwidth") or ()] == [
        ("outbound", {"average": "1049"})
    ]
    assert xml_limits.read(text) == after


def test_taking_all_away_leaves_the_xml_as_it_was() -> None:
    after = changed(cpus="2", memory_cap="1G", io_weight=100, disks=["vda:bps=1M"], nics=["0:in=2M"])
    text = xml_limits.write(XML, BARE, after)
    again = xml_limits.write(text, after, merge(after, parse_change(none=["all"])))
    assert xml_limits.read(again) == BARE
    assert ET.canonicalize(again, strip_text=True) == ET.canonicalize(XML, strip_text=True)


sizes = st.none() | st.integers(1, 1 << 33).map(lambda n: Bytes(n << 10))


@given(st.none() | st.integers(1, 8192000), st.none() | st.integers(2, 10000), sizes, sizes, sizes, sizes)
def test_what_is_written_is_read_back(
    cpus: int | None, shares: int | None, cap: Bytes | None, disk: Bytes | None, rate: Bytes | None, other: Bytes | None
) -> None:
    quota = None if cpus is None else max(0.01, cpus / 1000)
    vm = LimitsSpec(cpu_quota=quota, cpu_shares=shares, memory=cap)
    disks = (BARE.disks[0], type(BARE.disks[1])("vdb", DiskLimits(read_bytes_sec=disk, total_iops_sec=shares)))
    nic = type(BARE.nics[0])(0, "52:54:00:00:00:01", "network", NicLimits(inbound=rate, outbound=other))
    after = Limits(vm, disks, (nic, BARE.nics[1]))
    found = xml_limits.read(xml_limits.write(XML, BARE, after))
    assert (found.vm, found.disks) == (after.vm, after.disks)
    for name in ("inbound", "outbound"):  # libvirt keeps 1000s of bytes
        asked, kept = getattr(nic.limits, name), getattr(found.nics[0].limits, name)
        assert (asked is None) == (kept is None)
        assert asked is None or 0 <= kilobytes(kept) - kilobytes(asked) <= 1
    assert not settings(found, xml_limits.read(xml_limits.write(XML, BARE, found)))


@pytest.mark.parametrize("text", ["1K", "10M", "3G", "1500K", "700M"])
def test_rates_of_nics_come_back_as_they_were_written(text: str) -> None:
    assert from_kilobytes(kilobytes(Bytes.parse(text))) == Bytes.parse(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpus": "many"}, "--cpus"),
        ({"cpus": "0"}, "cpu_quota"),
        ({"cpu_shares": 1}, "cpu_shares"),
        ({"cpu_shares": 10001}, "cpu_shares"),
        ({"memory_cap": "lots"}, "--memory-cap"),
        ({"io_weight": 5}, "io_weight"),
        ({"disks": ["vda"]}, "--disk"),
        ({"disks": ["vda:speed=3"]}, "no limit"),
        ({"disks": ["vda:iops=fast"]}, "operations a second"),
        ({"disks": ["vda:iops=0"]}, "total_iops_sec"),
        ({"disks": ["vda:iops=10,read-iops=5"]}, "excludes"),
        ({"nics": ["first:in=1M"]}, "number of a NIC"),
        ({"nics": ["0:up=1M"]}, "no limit"),
        ({"nics": ["0:in=10"]}, "inbound"),
        ({"none": ["cpu"]}, "kind of limit"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        changed(**options)


@pytest.mark.parametrize(("options", "words"), [({"disks": ["vdz:iops=1"]}, "vda, vdb"), ({"nics": ["7:in=1M"]}, "2")])
def test_parts_that_are_not_there(options: dict[str, object], words: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        changed(**options)
    assert words in str(caught.value.hint)


def test_plan_names_both_places_once() -> None:
    decision = decide(facts(), parse_change(cpus="1"))
    assert [s.what for s in decision.plan.steps] == ["cpus 1 (was none)"]
    assert "and in the definition" in decision.plan.steps[0].reason
    only = decide(facts(), parse_change(cpus="1"), config=True)
    assert only.live is None
    assert "next start" in only.plan.steps[0].reason


def test_what_is_so_already_is_not_set_again() -> None:
    change = parse_change(cpus="1", nics=["0:in=10M"])
    after = merge(BARE, change)
    decision = decide(facts(live=after, config=after), change)
    assert decision.plan.steps == ()
    assert decision.live is None
    assert decision.config is None


def test_a_vm_that_does_not_run_gets_its_definition_changed() -> None:
    decision = decide(facts(live=None, controllers=None), parse_change(cpus="1"))
    assert decision.config is not None
    assert "next start" in decision.plan.warnings[0]
    with pytest.raises(ConflictError, match="does not run"):
        decide(facts(live=None), parse_change(cpus="1"), live=True)
    with pytest.raises(ConflictError, match="no definition"):
        decide(facts(config=None), parse_change(cpus="1"), config=True)


def test_a_cap_that_would_kill_the_process_is_refused() -> None:
    assert 256 * MIB + 64 * MIB < least_cap(256 * MIB) < 384 * MIB
    with pytest.raises(SpecError, match="would kill") as caught:
        decide(facts(), parse_change(memory_cap="256M"))
    assert str(least_cap(256 * MIB)) in str(caught.value.hint)
    assert decide(facts(), parse_change(memory_cap=str(least_cap(256 * MIB)))).live is not None


@pytest.mark.parametrize(
    ("have", "option"),
    [("cpu", {"cpus": "1"}), ("cpu", {"cpu_shares": 5}), ("memory", {"memory_cap": "1G"}), ("io", {"io_weight": 50})],
)
def test_a_host_without_the_controller_is_named(have: str, option: dict[str, object]) -> None:
    lacking = Controllers(**{**dict.fromkeys(("cpu", "memory", "io"), True), have: False}, weight=None, why_not="x")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=f"'{have}'") as caught:
        decide(facts(controllers=lacking), parse_change(**option))  # type: ignore[arg-type]
    assert "cgroup_controllers" in str(caught.value.hint)


def test_disks_and_nics_need_no_cgroups() -> None:
    none = Controllers(cpu=False, memory=False, io=False, weight=None, why_not="x")
    decision = decide(facts(controllers=none), parse_change(disks=["vda:iops=9"], nics=["0:in=1M"]))
    assert len(decision.plan.steps) == 2


def test_a_session_and_a_nic_without_a_tap_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="user's own libvirt"):
        decide(facts(session=True, live=None), parse_change(cpus="1"))
    with pytest.raises(UnsupportedError, match="no tap"):
        decide(facts(), parse_change(nics=["1:in=1M"]))


def test_what_is_odd_is_warned_of() -> None:
    assert "more than 2 vCPUs" in decide(facts(), parse_change(cpus="4")).plan.warnings[0]
    assert "tb-size" in decide(facts(accelerator="tcg"), parse_change(memory_cap="1G")).plan.warnings[0]


LIMITED = {
    "limits": {"cpu_quota": 0.5, "cpu_shares": 200, "memory": "1G", "io_weight": 50},
    "disks": [{"limits": {"read_iops_sec": 100}}],
    "nics": [{"network": "default", "mac": "52:54:00:00:00:01", "limits": {"outbound": "2M"}}],
}


def test_a_new_vm_has_its_limits_from_the_start() -> None:
    design, plan = made(**LIMITED)
    places = xml.Placement(volumes={"web1-0.qcow2": "/p/web1-0.qcow2"})
    remembered = Remembered({}, None, (), None)
    text = xml.domain_xml(template("domain.xml").read_text(), design, places, remembered, "0" * 32)
    found = xml_limits.read(text)
    assert found.vm == LimitsSpec(cpu_quota=0.5, cpu_shares=200, memory=Bytes(1 << 30), io_weight=50)
    assert found.disks[0].limits == DiskLimits(read_iops_sec=100)
    assert found.nics[0].limits == NicLimits(outbound=Bytes(2 * MIB))
    reasons = {c.subject: c.value for c in plan.choices}
    assert reasons["limits.cpu_quota"] == "0.5"
    assert reasons["disks[0].limits"] == "read-iops=100"
    assert reasons["nics[0].limits"] == "out=2M"


def test_limits_that_no_host_could_hold_are_refused_before_anything_is_made() -> None:
    with pytest.raises(SpecError, match=r"limits\.memory.*would kill"):
        made(limits={"memory": "256M"})
    with pytest.raises(UnsupportedError, match="no tap"):
        made(nics=[{"network": "user", "limits": {"inbound": "1M"}}])
    with pytest.raises(UnsupportedError, match="user's own libvirt"):
        made(replace(HOST, uri="qemu:///session"), limits={"cpu_shares": 50})
    assert "more than 1 vCPUs" in made(limits={"cpu_quota": 3})[1].warnings[0]


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "a", "disks": [{"size": 1}, {"size": 2}], "nics": [{"network": "default"}, {"network": "user"}]},
        {"name": "a", "limits": {"memory": 1 << 30}, "nics": [{}, {"limits": {"inbound": 5000}}]},
    ],
)
def test_the_spec_that_is_kept_follows(spec: dict[str, object]) -> None:
    after = changed(cpus="1.5", disks=["vdb:iops=9"], nics=["0:in=1M"])
    kept = in_spec(spec, after)
    assert kept["limits"] == {"cpu_quota": 1.5}
    assert [n.get("limits") for n in kept["nics"]] == [{"inbound": MIB}, None]
    if "disks" in spec:
        assert kept["disks"] == [{"size": 1}, {"size": 2, "limits": {"total_iops_sec": 9}}]
    again = in_spec(kept, BARE)
    assert "limits" not in again
    assert again.get("disks") == spec.get("disks")


def test_parts_that_the_spec_does_not_name() -> None:
    one = Limits(LimitsSpec(), BARE.disks[:1], BARE.nics[:1])
    limited = merge(one, parse_change(disks=["vda:iops=9"], nics=["0:in=1M"]))
    kept = in_spec({"name": "a"}, limited)
    assert kept == {
        "name": "a",
        "disks": [{"limits": {"total_iops_sec": 9}}],
        "nics": [{"limits": {"inbound": MIB}}],
    }
    assert in_spec(kept, one) == {"name": "a"}
    assert in_spec({"name": "a", "nics": [{"network": "none"}]}, limited)["nics"] == [{"network": "none"}]
