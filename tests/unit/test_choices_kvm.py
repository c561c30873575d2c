"""Choices about CPU, placement, memory and I/O over hosts that were written down: large, small, without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_choices import HOST, MICRO, NO_KVM, made, reason
from vmkit.errors import RefusedError, SpecError, UnsupportedError
from vmkit.plan import Plan
from vmkit.vm.choices.decide import decide
from vmkit.vm.choices.placement import ranges
from vmkit.vm.design import CpuDesign, Helpers, Pinning
from vmkit.vm.spec import parse
from vmkit.vm.topology import Cpu, Pool, Topology, pinned_in, read

MIB2, GIB = 2 << 20, 1 << 30

SERVER = replace(
    HOST,
    cpus=16,
    memory_free=64 << 30,
    topology=Topology(
        # Two nodes of four cores with two threads each: CPU n and n + 8 share a core.
        tuple(Cpu(n, n % 8 // 4, str(n % 8)) for n in range(16)),
        (0, 1),
    ),
    huge_pages={0: {MIB2: Pool(1024, 512), GIB: Pool(4, 0)}, 1: {MIB2: Pool(1024, 1024), GIB: Pool(4, 4)}},
    node_free={0: 30 << 30, 1: 20 << 30},
    hyperv=frozenset(
        ["relaxed", "vapic", "spinlocks", "vpindex", "synic", "stimer", "tlbflush", "ipi", "avic", "evmcs"]
    ),
    vendor="Intel",
    paging="nested",
    virtual_interrupts=True,
    posted_interrupts=True,
    interrupt_remapping=True,
    vhost_net=True,
    thp="madvise",
    pool_file_system="ext2/ext3",
)
"""A host that has it all."""


def value(plan: Plan, subject: str) -> str:
    return next(c.value for c in plan.choices if c.subject == subject)


def rejected(plan: Plan, subject: str) -> dict[str, str]:
    return {r.value: r.reason for c in plan.choices if c.subject == subject for r in c.rejected}


CPUS = [
    ({}, HOST, CpuDesign("host-model")),
    ({"family": "compute"}, HOST, CpuDesign("host-passthrough", None, True, cache_passthrough=True)),
    ({"family": "compute", "cpu": "EPYC"}, HOST, CpuDesign("custom", "EPYC")),
    (
        {"family": "compat"},
        replace(HOST, cpu_models={"kvm": frozenset({"Nehalem", "EPYC"})}),
        CpuDesign("custom", "Nehalem"),
    ),
    ({"family": "compat"}, replace(HOST, cpu_models={"kvm": frozenset({"EPYC"})}), CpuDesign("host-model")),
    ({"cpu": "host"}, HOST, CpuDesign("host-passthrough", None, True, cache_passthrough=True)),
    ({"cpu": "host"}, NO_KVM, CpuDesign("maximum")),
    ({"cpu": "maximum"}, HOST, CpuDesign("maximum")),
    ({"cpu": "emulated"}, HOST, CpuDesign("custom", "qemu64")),
]


@pytest.mark.parametrize(("spec", "facts", "cpu"), CPUS)
def test_cpu(spec: dict[str, Any], facts: Any, cpu: CpuDesign) -> None:
    design, _ = made(facts, **spec)
    assert design.cpu == cpu


def test_emulated_is_tcg_although_kvm_works() -> None:
    design, plan = made(SERVER, cpu="emulated")
    assert design.accelerator == "tcg"
    assert "kvm" in rejected(plan, "accel")
    assert plan.warnings == ()


def test_each_choice_of_a_mode_says_what_was_not_taken() -> None:
    _, plan = made(SERVER)
    assert "host-passthrough" in rejected(plan, "cpu")
    assert "tcg" in rejected(plan, "accel")
    assert "off" in rejected(plan, "nics[0].vhost")
    assert "95-98 %" in next(c.expected for c in plan.choices if c.subject == "accel")


def test_compute_takes_cores_of_one_node_and_leaves_the_first_to_the_host() -> None:
    design, plan = made(SERVER, family="compute", vcpus=4, memory="2G")
    assert design.backing.node == 1  # node 0 has three cores left
    assert design.pinning == Pinning(((4,), (5,), (6,), (7,)), (0, 1, 2, 3, 8, 9, 10, 11))
    assert design.cpu is not None
    assert design.cpu.topology == (1, 4, 1)
    assert design.backing.page == GIB
    assert "hint-dedicated" in design.helpers.kvm
    assert value(plan, "pinning") == "0->4 1->5 2->6 3->7 rest->0-3,8-11"


def test_whole_cores_are_filled_where_there_are_too_few() -> None:
    design, _ = made(SERVER, family="compute", vcpus=8, memory="1G")
    assert design.pinning is not None
    assert design.pinning.vcpus == ((4,), (12,), (5,), (13,), (6,), (14,), (7,), (15,))
    assert design.cpu is not None
    assert design.cpu.topology == (1, 4, 2)


def test_cores_of_other_vms_are_left_alone() -> None:
    design, _ = made(replace(SERVER, pinned=frozenset({4, 5})), pinning="auto", vcpus=2)
    assert design.pinning is not None
    assert not {n for cpus in design.pinning.vcpus for n in cpus} & {0, 8, 4, 5, 12, 13}
    assert not set(design.pinning.rest) & {4, 5}


def test_too_few_cores_is_refused_when_asked_for_and_said_otherwise() -> None:
    with pytest.raises(RefusedError, match="3 vCPUs need as many cores") as caught:
        made(replace(SERVER, pinned=frozenset(range(1, 16))), pinning="auto", vcpus=3)
    assert caught.value.hint
    design, plan = made(replace(SERVER, pinned=frozenset(range(1, 16))), family="compute", vcpus=3)
    assert design.pinning is None
    assert "0 of them are there" in reason(plan, "pinning")


def test_vcpus_that_are_not_pinned_stay_at_their_memory() -> None:
    design, _ = made(SERVER, family="memory", memory="2G")
    assert design.backing.node is not None
    assert {c.node for c in SERVER.topology.cpus if c.number in design.cpuset} == {design.backing.node}
    assert made(SERVER)[0].cpuset == ()


def test_explicit_pinning() -> None:
    design, _ = made(SERVER, pinning=["2", "4-5"], vcpus=2)
    assert design.pinning is not None
    assert design.pinning.vcpus == ((2,), (4, 5))
    assert 3 in design.pinning.rest
    assert design.helpers.pvspinlock is None


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"pinning": ["99"]}, "pinning[0]"),
        ({"numa": 7}, "numa"),
        (
            {"hugepages": "1G", "memory": "2G", "facts": replace(SERVER, huge_pages={0: {MIB2: Pool(1, 1)}})},
            "hugepages",
        ),
        ({"disks": [{"size": "1G", "bus": "ide"}]}, "disks[0].bus"),
        ({"nics": [{"network": "user", "queues": 2}]}, "nics[0].queues"),
    ],
)
def test_what_this_host_has_not_is_refused_with_the_path(spec: dict[str, Any], path: str) -> None:
    spec = {"facts": SERVER, **spec}
    with pytest.raises(SpecError) as caught:
        made(**spec)
    assert caught.value.path == path
    assert caught.value.hint


def test_huge_pages_that_are_not_free_are_refused_with_the_command() -> None:
    with pytest.raises(RefusedError) as caught:
        made(SERVER, hugepages="2M", memory="2G", numa=0)
    assert "1024 pages of 2M are needed, 512 are free on node 0" in caught.value.message
    assert "echo 1536 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages" in (
        caught.value.hint or ""
    )


def test_huge_pages_need_no_ordinary_memory() -> None:
    facts = replace(SERVER, memory_free=100 << 20)
    design, _ = made(facts, hugepages="2M", memory="512M")
    assert design.backing.page == MIB2
    with pytest.raises(RefusedError, match="100M free"):
        made(facts, memory="512M")


MEMORY = [
    ({"family": "memory", "memory": "2G"}, SERVER, (GIB, False, 1, False)),
    ({"family": "memory", "memory": "1500M"}, SERVER, (MIB2, False, 0, False)),
    ({"family": "memory", "memory": "1500M"}, replace(SERVER, huge_pages={}), (None, True, 0, False)),
    ({"family": "memory", "hugepages": "none", "locked": False}, SERVER, (None, False, 0, False)),
    ({}, SERVER, (None, False, None, True)),
    ({"balloon": False}, SERVER, (None, False, None, False)),
    ({"locked": True}, SERVER, (None, True, None, False)),
    ({"family": "network", "memory": "1G", "cpu": "emulated"}, SERVER, (None, False, 0, True)),
]


@pytest.mark.parametrize(("spec", "facts", "expected"), MEMORY)
def test_backing(spec: dict[str, Any], facts: Any, expected: tuple[Any, ...]) -> None:
    design, _ = made(facts, **spec)
    backing = design.backing
    # Node 1 is preferred only where node 0 has no pages for it.
    assert (backing.page, backing.locked, backing.balloon) == (expected[0], expected[1], expected[3])
    assert (backing.node is None) == (expected[2] is None)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (SERVER, "EPT"),
        (replace(SERVER, vendor="AMD"), "NPT"),
        (replace(SERVER, paging="shadow"), "shadow"),
        (replace(SERVER, paging=None), "unknown"),
        (replace(SERVER, kvm=NO_KVM.kvm), "software"),
    ],
)
def test_paging_is_reported(facts: Any, text: str) -> None:
    assert value(made(facts)[1], "memory.paging") == text


def test_memory_of_the_family_and_of_the_image() -> None:
    assert made(SERVER)[0].memory == 256 << 20
    assert made(SERVER, family="memory")[0].memory == 1 << 30
    big = replace(MICRO, min_memory=type(MICRO.min_memory)(700_000_001))
    design, plan = decide(parse({"name": "a", "image": "micro"}), SERVER, {"micro": big}, {"micro": 64 << 20})
    assert design.memory >= 700_000_001
    assert design.memory % MIB2 == 0
    assert "needs" in reason(plan, "memory")


def test_disks_by_family() -> None:
    design, plan = made(SERVER, family="compute", vcpus=4, memory="1G", disks=[{}, {"size": "1G", "iothread": False}])
    first, second = design.disks
    assert (first.iothread, first.queues, first.cache, first.io) == (1, 4, "none", "native")
    assert (second.iothread, second.queues) == (None, 4)
    assert "io_uring" in rejected(plan, "disks[0].cache")
    general = made(SERVER, vcpus=2)[0].disks[0]
    assert (general.iothread, general.queues, general.cache) == (None, 2, None)
    on_tmpfs = made(replace(SERVER, pool_file_system="tmpfs"), family="compute")[0].disks[0]
    assert on_tmpfs.cache is None


@pytest.mark.parametrize(("machine", "bus", "device"), [("q35", "sata", "sda"), ("pc", "ide", "hda")])
def test_emulated_disk_by_machine(machine: str, bus: str, device: str) -> None:
    design, _ = made(SERVER, machine=machine, disks=[{"io": "emulated"}])
    assert (design.disks[0].bus.value, design.disks[0].device, design.disks[0].queues) == (bus, device, None)


def test_block_device_of_the_host() -> None:
    spec = {"image": None, "disks": [{"io": "passthrough", "source": "/dev/sdb"}]}
    design, plan = made(SERVER, **spec)
    assert (design.disks[0].source, design.disks[0].volume, design.volumes) == ("/dev/sdb", "", ())
    assert [s.verb for s in plan.steps] == ["define", "start"]
    with pytest.raises(RefusedError, match="is mounted there"):
        made(replace(SERVER, block_devices={"/dev/sdb": "is mounted there"}), **spec)


NICS = [
    ({}, SERVER, 1, ("virtio", True, None)),
    ({}, SERVER, 4, ("virtio", True, 4)),
    ({}, SERVER, 12, ("virtio", True, 8)),
    ({"queues": 2}, SERVER, 12, ("virtio", True, 2)),
    ({"vhost": "off"}, SERVER, 4, ("virtio", False, None)),
    ({}, replace(SERVER, vhost_net=False), 4, ("virtio", False, None)),
    ({}, replace(SERVER, vhost_net=None), 4, ("virtio", None, None)),
    ({"network": "user"}, SERVER, 4, ("virtio", None, None)),
    ({"io": "emulated"}, SERVER, 4, ("e1000e", None, None)),
    ({"model": "rtl8139"}, SERVER, 4, ("rtl8139", None, None)),
    ({}, NO_KVM, 2, ("virtio", None, None)),
]


@pytest.mark.parametrize(("nic", "facts", "vcpus", "expected"), NICS)
def test_nics(nic: dict[str, Any], facts: Any, vcpus: int, expected: tuple[Any, ...]) -> None:
    design, _ = made(facts, vcpus=vcpus, nics=[nic])
    assert (design.nics[0].model, design.nics[0].vhost, design.nics[0].queues) == expected


@pytest.mark.parametrize(
    ("nic", "facts", "message"),
    [
        ({"vhost": "on"}, replace(SERVER, vhost_net=False), "no /dev/vhost-net"),
        ({"vhost": "on", "network": "user"}, SERVER, "no tap device"),
        ({"vhost": "on"}, NO_KVM, "KVM guests only"),
    ],
)
def test_vhost_that_cannot_be_is_refused(nic: dict[str, Any], facts: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        made(facts, nics=[nic])
    assert caught.value.hint


def test_helpers_of_a_linux_guest() -> None:
    assert made(SERVER)[0].helpers == Helpers(("poll-control", "pv-ipi"), True, (), ("kvmclock",))


def test_helpers_of_a_windows_guest() -> None:
    design, plan = made(SERVER, guest="windows")
    assert set(design.helpers.hyperv) == SERVER.hyperv
    assert design.helpers.localtime
    assert design.helpers.timers == ("hypervclock",)
    assert "libvirt does not offer it" in rejected(plan, "helpers.hyperv")["reset"]
    fewer = made(replace(SERVER, hyperv=frozenset(["synic", "stimer", "evmcs"]), vendor="AMD"), guest="windows")
    assert fewer[0].helpers.hyperv == ()
    assert rejected(fewer[1], "helpers.hyperv")["stimer"] == "needs synic"


def test_no_helpers_under_tcg_and_the_reason() -> None:
    design, plan = made(NO_KVM, guest="windows")
    assert design.helpers == Helpers(localtime=True)
    assert "KVM's" in reason(plan, "helpers")


def test_interrupts_are_reported() -> None:
    _, plan = made(SERVER, vcpus=4)
    assert value(plan, "interrupts.apic") == "APICv"
    assert value(plan, "interrupts.msi-x") == "vda 5, nics[0] 10"
    assert value(made(replace(SERVER, virtual_interrupts=False))[1], "interrupts.apic") == "in-kernel APIC"


def test_topology_of_capabilities() -> None:
    layout = read(
        """<capabilities><host><cpu><pages unit='KiB' size='4'/><pages unit='KiB' size='1048576'/></cpu>
        <topology><cells><cell id='0'><pages unit='KiB' size='4'>99</pages><pages unit='KiB' size='2048'>7</pages>
        <cpus><cpu id='1' socket_id='0' core_id='0'/><cpu id='0' socket_id='0' core_id='0'/><cpu id='2'/></cpus>
        </cell></cells></topology></host></capabilities>"""
    )
    assert layout.numbers == {0, 1}  # CPU 2 is offline
    assert layout.cores() == [(0, 1)]
    assert layout.pages == {0: {MIB2: 7, GIB: 0}}
    assert read("<capabilities/>") == Topology((), (), {})
    assert pinned_in(
        "<domain><cputune><vcpupin vcpu='0' cpuset='2-3'/><emulatorpin cpuset='0'/></cputune></domain>"
    ) == {2, 3}


@given(st.frozensets(st.integers(0, 64), max_size=20))
def test_ranges_read_back(cpus: frozenset[int]) -> None:
    from vmkit.host.tree import cpu_list

    assert frozenset(cpu_list(ranges(cpus))) == cpus


families = st.sampled_from(["general", "compute", "memory", "network", "compat"])


@settings(deadline=None)
@given(
    family=families,
    vcpus=st.integers(1, 20),
    memory=st.integers(64, 4096),
    pinned=st.frozensets(st.integers(0, 15)),
    guest=st.sampled_from(["linux", "windows", "other"]),
    facts=st.sampled_from([SERVER, HOST, NO_KVM, replace(SERVER, paging=None, vhost_net=None, hyperv=None)]),
)
def test_any_family_on_any_host_gives_a_sound_design(
    family: str, vcpus: int, memory: int, pinned: frozenset[int], guest: str, facts: Any
) -> None:
    facts = replace(facts, pinned=pinned)
    spec = {"family": family, "vcpus": vcpus, "memory": f"{memory}M", "guest": guest}
    if memory < 96 or facts.memory_free < (memory + 64) << 20:
        with pytest.raises((SpecError, RefusedError)):
            made(replace(facts, huge_pages={}), **spec)
        return
    design, plan = made(facts, **spec)
    assert all(c.reason and all(r.reason for r in c.rejected) for c in plan.choices)
    if design.pinning:
        used = [n for cpus in design.pinning.vcpus for n in cpus]
        assert len(used) == len(set(used)) == vcpus
        assert not set(used) & (pinned | {0, 8})
        assert {c.node for c in facts.topology.cpus if c.number in used} == {design.backing.node}
    if design.backing.page:
        assert design.memory % design.backing.page == 0
        free = facts.huge_pages[design.backing.node or 0][design.backing.page].free
        assert free * design.backing.page >= design.memory
    assert not (design.backing.locked and design.backing.balloon)
    assert made(facts, **spec) == (design, plan)
