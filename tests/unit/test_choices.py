"""Decisions about a VM over hosts that were written down: no host is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmkit.errors import ConflictError, NotFoundError, RefusedError, SpecError, UnsupportedError
from vmkit.host.facts.libvirt import guests_of
from vmkit.image.manifest import Image, ImageFile, ImageKind
from vmkit.plan import Plan
from vmkit.values import Bytes
from vmkit.vm.choices.decide import decide
from vmkit.vm.design import CpuDesign, Design
from vmkit.vm.facts import HostFacts
from vmkit.vm.kvm import KvmFact
from vmkit.vm.spec import parse

HOST = HostFacts(
    uri="qemu:///system",
    driver="QEMU",
    arch="x86_64",
    domain_types=frozenset({"kvm", "qemu"}),
    machines=frozenset({"q35", "pc", "pc-q35-10.0"}),
    cpu_models={"kvm": frozenset({"EPYC"}), "qemu": frozenset({"EPYC", "qemu64"})},
    kvm=KvmFact(True, "a probe guest booted on /dev/kvm in 0.6 s"),
    memory_free=8 << 30,
    cpus=2,
    networks={"default": True},
    pool_folder="/pool",
    pool_free=10 << 30,
)
NO_KVM = replace(HOST, kvm=KvmFact(False, "the probe guest did not boot"))


def file(name: str) -> ImageFile:
    return ImageFile(Path("/images") / name, "0" * 64, Bytes(1000))


MICRO = Image(
    name="micro",
    kind=ImageKind.MICRO,
    arch="x86_64",
    created="2026-01-01T00:00:00+00:00",
    source="test",
    kernel=file("kernel"),
    initrd=file("initrd"),
    disk=file("disk.qcow2"),
    cmdline="console=ttyS0",
    agent=True,
    console_marker="ready",
    min_memory=Bytes(96 << 20),
)


def made(facts: HostFacts = HOST, **spec: Any) -> tuple[Design, Plan]:
    spec = {"name": "web1", "image": "micro", **spec}
    images = {"micro": MICRO} if spec["image"] else {}
    return decide(parse(spec), facts, images, {"micro": 64 << 20} if images else {})


def reason(plan: Plan, subject: str) -> str:
    return next(c.reason for c in plan.choices if c.subject == subject)


def test_kvm_when_the_probe_guest_proved_it() -> None:
    design, plan = made()
    assert (design.domain_type, design.accelerator) == ("kvm", "kvm")
    assert design.cpu == CpuDesign("host-model")
    assert "0.6 s" in reason(plan, "accel")
    assert plan.warnings == ()


def test_tcg_when_it_did_not_and_the_plan_says_so() -> None:
    design, plan = made(NO_KVM)
    assert (design.domain_type, design.accelerator) == ("qemu", "tcg")
    assert design.cpu == CpuDesign("custom", "qemu64")
    assert reason(plan, "accel") == "the probe guest did not boot"
    assert "no KVM" in plan.warnings[0]


def test_kvm_that_does_not_work_is_refused_when_asked_for() -> None:
    with pytest.raises(UnsupportedError, match="the probe guest did not boot"):
        made(NO_KVM, accel="kvm")


def test_every_choice_and_step_has_a_reason() -> None:
    _, plan = made(disks=[{}, {"size": "1G", "bus": "sata"}], qemu_args=["-device", "edu"], autostart=True)
    assert all(c.reason for c in plan.choices)
    assert [s.verb for s in plan.steps] == ["place", "create", "create", "define", "mark", "start"]


def test_first_disk_overlays_the_image() -> None:
    design, _ = made()
    (disk,) = design.disks
    assert (disk.volume, disk.backing, disk.size, disk.device) == ("web1-0.qcow2", "micro", 64 << 20, "vda")


def test_disk_letters_go_by_bus() -> None:
    design, _ = made(disks=[{}, {"size": "1G"}, {"size": "1G", "bus": "sata"}, {"size": "1G", "bus": "scsi"}])
    assert [d.device for d in design.disks] == ["vda", "vdb", "sda", "sdb"]


def test_micro_gets_name_and_address_on_the_command_line() -> None:
    design, _ = made(nics=[{"network": "default", "address": "192.0.2.9/24", "gateway": "192.0.2.1"}], cmdline="quiet")
    assert design.cmdline == "console=ttyS0 vmkit.name=web1 vmkit.ip=192.0.2.9/24 vmkit.gw=192.0.2.1 quiet"


@pytest.mark.parametrize(
    ("networks", "kind", "source"),
    [
        ({"default": True, "lab": True}, "network", "default"),
        ({"default": False, "lab": True}, "network", "lab"),
        ({"a": True, "b": True}, "user", ""),
        ({}, "user", ""),
    ],
)
def test_network_auto(networks: dict[str, bool], kind: str, source: str) -> None:
    design, _ = made(replace(HOST, networks=networks))
    assert (design.nics[0].kind, design.nics[0].source) == (kind, source)


def test_no_network_no_nic() -> None:
    assert made(nics=[{"network": "none"}])[0].nics == ()
    assert made(nics=[])[0].nics == ()
    assert made(nics=[{"network": "bridge:br0"}])[0].nics[0].source == "br0"


REFUSED = [
    ({"facts": replace(HOST, domains=frozenset({"web1"}))}, ConflictError, "there is a VM named 'web1'"),
    ({"nics": [{"network": "nowhere"}]}, NotFoundError, "nics[0].network"),
    ({"memory": "64G"}, RefusedError, "has 8G free"),
    ({"memory": "64M"}, SpecError, "less than the image 'micro' needs"),
    ({"facts": replace(HOST, pool_free=1 << 20)}, RefusedError, "no space"),
    ({"disks": [{"size": "32M"}]}, SpecError, "less than the image's 64M"),
    ({"cpu": "EPYX"}, SpecError, "EPYX"),
    ({"machine": "s390"}, SpecError, "no machine type 's390'"),
    ({"image": None, "cmdline": "quiet"}, SpecError, "bring a kernel"),
]


@pytest.mark.parametrize(("change", "kind", "message"), REFUSED)
def test_refusals(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        made(**change)
    assert message in str(caught.value)
    assert getattr(caught.value, "hint", None) or kind is SpecError


def test_pure_the_same_input_gives_the_same_plan() -> None:
    assert made() == made()


def test_guests_of_reads_capabilities() -> None:
    xml = """<capabilities>
    <guest><os_type>hvm</os_type><arch name='i686'><machine>pc</machine><domain type='qemu'/></arch></guest>
    <guest><os_type>hvm</os_type><arch name='x86_64'><machine canonical='pc-q35-10.0'>q35</machine>
    <domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>"""
    types, machines = guests_of(xml, "x86_64")
    assert types == {"qemu", "kvm"}
    assert {"q35", "pc-q35-10.0"} <= machines
