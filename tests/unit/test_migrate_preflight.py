"""Judging whether a VM can move: pure functions over facts that were captured from real hosts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmkit.errors import ConflictError, RefusedError, SpecError, UnsupportedError
from vmkit.hypervisor.domain import DomainState
from vmkit.hypervisor.migration import Sighting
from vmkit.migrate.facts import GuestFacts, HostFacts, Presence, TargetFacts, parse_guest
from vmkit.migrate.files import GuestFile
from vmkit.migrate.plan import Request, check_off, make_plan, same_storage
from vmkit.migrate.preflight import Case, Level, judge
from vmkit.migrate.traps import TRAPS, sprung

DATA = Path(__file__).parents[1] / "data" / "migrate"
UUID = "a45ebc1a-bd3d-4261-9ee0-1d1d85f1d556"


def sighting(state: DomainState = DomainState.RUNNING, *, name: str = "web1", uuid: str = UUID) -> Sighting:
    return Sighting(name, uuid, state, "", persistent=True, autostart=False, job=False, migrating=False)


@pytest.fixture
def guest() -> GuestFacts:
    return parse_guest((DATA / "guest-tcg.xml").read_text(), sighting())


def host(n: int) -> HostFacts:
    return HostFacts(
        uri=f"qemu+ssh://root@h{n}/system",
        hostname=f"h{n}",
        uuid=f"0000000{n}-0000-0000-0000-000000000000",
        driver="QEMU",
        libvirt=(11, 3, 0),
        hypervisor=(10, 0, 2),
        memory_free=2**30,
        guests={("qemu", "x86_64"): frozenset({"pc-q35-10.0", "pc-q35-9.2", "q35"})},
        cpu_model="EPYC",
        networks={"lab": True, "spare": False},
    )


@pytest.fixture
def case(guest: GuestFacts) -> Case:
    files = {f.path: Presence.PRESENT for f in guest.files}
    return Case(guest, host(1), host(2), TargetFacts(None, None, files, None, None))


def refusals(case: Case) -> dict[str, str]:
    return {f.check: f.text for f in judge(case).refused}


def test_a_captured_domain_is_read(guest: GuestFacts) -> None:
    assert (guest.virt_type, guest.arch, guest.machine) == ("qemu", "x86_64", "pc-q35-10.0")
    assert guest.memory == 192 * 2**20
    assert (guest.cpu_mode, guest.features) == ("custom", {"hypervisor", "lahf_lm"})
    assert {f.role: f.path for f in guest.files} == {
        "kernel": "/var/lib/vmkit/pool/0f1e2d3c4b5a6978.kernel",
        "initrd": "/var/lib/vmkit/pool/8796a5b4c3d2e1f0.initrd",
    }
    assert (guest.networks, guest.bridges, guest.devices) == (("lab",), (), ())


def test_snapshots_stay_behind_and_so_the_vm_does(case: Case) -> None:
    two = refusals(replace(case, guest=replace(case.guest, snapshots=2)))
    assert two == {"snapshots": "it has 2 snapshots, which libvirt does not take along"}


def test_all_in_order(case: Case) -> None:
    report = judge(case)
    assert report.refused == ()
    assert report.warnings == ()
    assert {f.check for f in report.findings} >= {
        "hosts",
        "state",
        "versions",
        "type",
        "cpu",
        "name",
        "network",
        "room",
    }
    report.require()


def test_one_report_holds_every_reason(case: Case) -> None:
    target = replace(case.target, memory_free=2**20, networks={}, guests={})
    gone = dict.fromkeys(case.meeting.files, Presence.ABSENT)
    report = judge(replace(case, target=target, meeting=replace(case.meeting, files=gone, cpu_lack="no avx2")))
    assert {f.check for f in report.refused} == {"type", "cpu", "kernel", "initrd", "network", "room"}
    assert all(f.fix for f in report.refused if f.check != "type")
    with pytest.raises(RefusedError) as caught:
        report.require()
    assert len(caught.value.details) == len(report.refused) - 1
    assert caught.value.exit_code == 3


def test_the_same_host_is_refused(case: Case) -> None:
    assert "same host" in refusals(replace(case, target=replace(case.target, uuid=case.source.uuid)))["hosts"]


def test_which_states_move(case: Case) -> None:
    crashed = replace(case.guest, state="crashed", running=False)
    assert "crashed" in refusals(replace(case, guest=crashed))["state"]
    paused = replace(case.guest, state="paused", running=False, paused=True)
    assert refusals(replace(case, guest=paused)) == {}
    busy = judge(replace(case, guest=replace(case.guest, job=True)))
    with pytest.raises(ConflictError, match="another job"):
        busy.require()


def test_a_vm_that_is_shut_off_moves_without_its_memory(case: Case) -> None:
    off = replace(case.guest, state="shut off", running=False, cpu_mode="host-passthrough", cpu_xml="", hugepages=True)
    full = replace(case, guest=off, target=replace(case.target, memory_free=0, cpu_model="another"))
    assert refusals(full) == {}
    assert "is saved" in refusals(replace(full, guest=replace(off, saved=True)))["state"]
    assert "TPM" in refusals(replace(full, guest=replace(off, tpm=True)))["state"]
    xen = replace(full, source=replace(full.source, driver="Xen"), target=replace(full.target, driver="Xen"))
    assert "Xen driver moves no VM that is shut off" in refusals(xen)["state"]
    variables = GuestFile("/var/lib/libvirt/qemu/nvram/web1.fd", "nvram")
    absent = replace(full.meeting, files={**full.meeting.files, variables.path: Presence.ABSENT})
    uefi = replace(full, guest=replace(off, files=(*off.files, variables)), meeting=absent)
    assert "variables of UEFI" in refusals(uefi)["nvram"]
    plan = make_plan(Request("web1", "qemu+ssh://h2/system"), full, judge(full))
    assert [s.verb for s in plan.steps] == ["check", "move", "verify"]
    assert next(c for c in plan.choices if c.subject == "technique").value == "cold"


def test_what_is_about_memory_is_refused_for_a_vm_that_is_shut_off() -> None:
    check_off("web1", {"mode": "auto", "transport": "auto", "parallel": None, "zero_copy": False})
    with pytest.raises(SpecError, match="--max-downtime: is about the memory of a running VM, and web1 is shut off"):
        check_off("web1", {"max_downtime": 0.3})
    with pytest.raises(SpecError, match="--compress: "):
        check_off("web1", {"compression": "xbzrle"})


def test_machine_type_that_the_target_does_not_know(case: Case) -> None:
    newer = replace(case, guest=replace(case.guest, machine="pc-q35-10.2"))
    assert "pc-q35-10.2" in refusals(newer)["machine"]


def test_kvm_guest_and_a_target_without_kvm(case: Case) -> None:
    found = refusals(replace(case, guest=replace(case.guest, virt_type="kvm")))
    assert "'kvm'" in found["type"]
    assert "offers qemu" in found["type"]


@pytest.mark.parametrize(
    ("mode", "target_cpu", "level"),
    [
        ("host-passthrough", "EPYC", Level.WARNING),
        ("host-passthrough", "Skylake", Level.REFUSED),
        ("custom", "x", Level.OK),
    ],
)
def test_cpu_modes(case: Case, mode: str, target_cpu: str, level: Level) -> None:
    changed = replace(case, guest=replace(case.guest, cpu_mode=mode), target=replace(case.target, cpu_model=target_cpu))
    assert [f.level for f in judge(changed).findings if f.check == "cpu"] == [level]


def test_names_taken_at_the_target(case: Case) -> None:
    def with_(uuid: Sighting | None, name: Sighting | None) -> Case:
        return replace(case, meeting=replace(case.meeting, by_uuid=uuid, by_name=name))

    off = sighting(DomainState.SHUTOFF)
    assert refusals(with_(off, off)) == {}  # the same VM's inactive definition
    assert "already runs" in refusals(with_(sighting(), sighting()))["name"]
    stranger = sighting(DomainState.SHUTOFF, uuid="11111111-bd3d-4261-9ee0-1d1d85f1d556")
    assert "another domain named web1" in refusals(with_(None, stranger))["name"]
    assert "under another name, old1" in refusals(with_(sighting(DomainState.SHUTOFF, name="old1"), None))["name"]


def test_networks(case: Case) -> None:
    inactive = replace(case, target=replace(case.target, networks={"lab": False}))
    assert "not active" in refusals(inactive)["network"]
    bridged = judge(replace(case, guest=replace(case.guest, networks=(), bridges=("br7",))))
    assert [f.text for f in bridged.warnings] == ["the bridge br7 could not be checked at the target"]


@pytest.mark.parametrize(
    ("role", "presence", "level"),
    [
        ("disk", Presence.SAME, Level.OK),
        ("disk", Presence.PRESENT, Level.WARNING),
        ("disk", Presence.OTHER, Level.REFUSED),
        ("disk", Presence.ABSENT, Level.REFUSED),
        ("disk", Presence.UNKNOWN, Level.WARNING),
        ("image", Presence.OTHER, Level.OK),
        ("cdrom", Presence.ABSENT, Level.REFUSED),
        ("nvram", Presence.ABSENT, Level.OK),
    ],
)
def test_files(case: Case, role: str, presence: Presence, level: Level) -> None:
    file = GuestFile("/srv/d", role)
    changed = replace(
        case, guest=replace(case.guest, files=(file,)), meeting=replace(case.meeting, files={"/srv/d": presence})
    )
    assert [f.level for f in judge(changed).findings if f.check == role] == [level]


def test_a_host_device_cannot_move(case: Case) -> None:
    xml = (DATA / "guest-tcg.xml").read_text()
    device = (
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' bus='0x01' slot='0x10' "
        "function='0x2'/></source></hostdev>"
    )
    guest = parse_guest(xml.replace("</devices>", device + "</devices>"), sighting())
    with pytest.raises(UnsupportedError, match=r"0000:01:10\.2"):
        judge(replace(case, guest=guest)).require()


def test_disks_and_their_backing_files_are_found() -> None:
    disk = (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>"
        "<source file='/p/web1-0.qcow2'/>"
        "<backingStore type='file'><format type='qcow2'/><source file='/p/base.qcow2'/><backingStore/></backingStore>"
        "<target dev='vda'/></disk><disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>"
        "<disk type='network' device='disk'><source protocol='rbd' name='pool/img'/><target dev='vdb'/></disk>"
    )
    xml = (DATA / "guest-tcg.xml").read_text().replace("<devices>", "<devices>" + disk)
    files = [f for f in parse_guest(xml, sighting()).files if f.role not in ("kernel", "initrd")]
    assert [(f.path, f.role, f.written, f.network) for f in files] == [
        ("/p/web1-0.qcow2", "disk", True, False),
        ("/p/base.qcow2", "image", False, False),
        ("pool/img", "disk", True, True),
    ]


# -- traps


def test_traps_have_a_source_and_a_way_out() -> None:
    assert len({t.id for t in TRAPS}) == len(TRAPS)
    assert all(t.source and t.fix and t.harm for t in TRAPS)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ({}, {}, []),
        ({"hypervisor": (7, 2, 19)}, {}, ["tcg-qemu-7"]),
        ({"hypervisor": (8, 0, 0)}, {}, []),
        ({}, {"hypervisor": (7, 2, 19)}, ["tcg-qemu-7", "qemu-older"]),
        ({}, {"hypervisor": (10, 0, 1)}, []),
        ({}, {"hypervisor": (9, 2, 0)}, ["qemu-older"]),
    ],
)
def test_traps_of_an_emulated_guest(case: Case, source: dict, target: dict, expected: list[str]) -> None:
    found = sprung(case.guest, replace(case.source, **source), replace(case.target, **target))
    assert [t.id for t in found] == expected


@pytest.mark.parametrize(
    ("versions", "caught"),
    [
        (((9, 9, 0), (9, 10, 0)), True),
        (((9, 0, 0), (10, 1, 0)), True),
        (((9, 0, 0), (10, 2, 0)), False),
        (((9, 10, 0), (10, 1, 0)), False),
    ],
)
def test_trap_of_vmx_guests(case: Case, versions: tuple, caught: bool) -> None:
    guest = replace(case.guest, virt_type="kvm", features=frozenset({"vmx"}))
    source, target = (replace(h, libvirt=v) for h, v in zip((case.source, case.target), versions, strict=True))
    assert [t.id for t in sprung(guest, source, target)] == (["vmx-libvirt-9.10"] if caught else [])
    assert sprung(replace(guest, features=frozenset()), source, target) == []


# -- plan


def test_the_plan_gives_a_reason_for_everything(case: Case) -> None:
    plan = make_plan(Request("web1", case.target.uri, probe="192.0.2.31"), case, judge(case))
    assert [s.verb for s in plan.steps] == ["check", "probe", "send", "switch", "verify", "move"]
    assert all(c.value and c.reason for c in plan.choices)
    assert all(s.what and s.reason for s in plan.steps)
    assert plan.warnings == ()


def test_the_plan_says_what_stands_against_it(case: Case) -> None:
    bad = replace(case, target=replace(case.target, memory_free=0))
    plan = make_plan(Request("web1", case.target.uri), bad, judge(bad))
    assert any(w.startswith("refused: the VM needs 192M") for w in plan.warnings)


def test_libvirts_storage_check_is_left_out_only_for_files_shown_to_be_the_same(guest: GuestFacts) -> None:
    disks = (GuestFile("/a", "disk"), GuestFile("/b", "disk"), GuestFile("/k", "kernel"))
    guest = replace(guest, files=disks)
    assert same_storage(guest, {"/a": Presence.SAME, "/b": Presence.SAME, "/k": Presence.PRESENT})
    assert not same_storage(guest, {"/a": Presence.SAME, "/b": Presence.PRESENT})
    assert not same_storage(replace(guest, files=()), {})


@pytest.mark.parametrize(
    ("field", "value"), [("deadline", 0.0), ("bandwidth", 0), ("max_downtime", 0.0), ("max_downtime", 3000.0)]
)
def test_values_that_cannot_be_meant(field: str, value: float) -> None:
    request = replace(Request("web1", "qemu:///system"), **{field: value})
    with pytest.raises(SpecError, match=f"--{field.replace('_', '-')}"):
        request.check()
