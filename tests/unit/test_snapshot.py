"""Snapshots decided on facts alone: the kind, what is refused and said; the tree; the files that are a VM's own."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from vmkit.errors import ConflictError, NotFoundError, RefusedError, SpecError, UnsupportedError
from vmkit.hypervisor.domain import DomainState
from vmkit.vm.describe import Disk
from vmkit.vm.snapshot import decide
from vmkit.vm.snapshot.facts import SnapshotFacts
from vmkit.vm.snapshot.model import Kind, Snapshot, SnapshotFiles, descendants, files_of, in_order, parse, tree
from vmkit.vm.snapshot.volumes import own_files

POOL = "/pool"
VDA = Disk("vda", "virtio", "/pool/web-0.qcow2", "qcow2", "disk", readonly=False)
RAW = Disk("vdb", "virtio", "/data/big.img", "raw", "disk", readonly=False)
BLOCK = Disk("vdb", "virtio", "/dev/vg/big", "raw", "disk", readonly=False)
SEED = Disk("sda", "sata", "/pool/web-seed.iso", "raw", "cdrom", readonly=True)


def snap(name: str, parent: str | None = None, *, kind: Kind = Kind.INTERNAL, current: bool = False) -> Snapshot:
    when = f"2026-11-21T10:00:0{len(name) % 10}+00:00"
    return Snapshot(name, parent, when, "running", True, kind, current, "", ("vda",))


def facts(**more: object) -> SnapshotFacts:
    found = SnapshotFacts(
        name="web",
        driver="QEMU",
        libvirt=(11, 3, 0),
        state=DomainState.RUNNING,
        reason="",
        persistent=True,
        saved=False,
        busy=False,
        disks=(VDA, SEED),
        nvram=None,
        assigned=0,
        snapshots=(),
        files={},
        checkpoints=(),
        volumes=("web-0.qcow2",),
        pool=POOL,
    )
    snapshots = more.get("snapshots", ())
    files = {s.name: SnapshotFiles({"vda": "/pool/web-0.qcow2"}, {}, None) for s in snapshots}  # type: ignore[attr-defined]
    return replace(found, **{"files": files, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "memory", "kind", "reason"),
    [
        ({}, True, Kind.INTERNAL, "every disk is qcow2"),
        ({}, False, Kind.EXTERNAL, "only together with its memory"),
        ({"state": DomainState.SHUTOFF}, True, Kind.INTERNAL, "every disk is qcow2"),
        ({"disks": (VDA, RAW)}, True, Kind.EXTERNAL, "vdb is raw"),
        ({"disks": (VDA, RAW), "state": DomainState.SHUTOFF}, True, Kind.EXTERNAL, "vdb is raw"),
        ({"disks": ()}, True, Kind.EXTERNAL, "no disk to keep it in"),
        ({"nvram": "raw"}, True, Kind.EXTERNAL, "UEFI variables are in a raw file"),
        ({"nvram": "qcow2"}, True, Kind.INTERNAL, "every disk is qcow2"),
        ({"nvram": "qcow2", "libvirt": (10, 8, 0)}, True, Kind.EXTERNAL, "10.9.0 does"),
        ({"snapshots": (snap("a", kind=Kind.EXTERNAL),)}, True, Kind.EXTERNAL, "there are external ones"),
        ({"snapshots": (snap("a"),)}, True, Kind.INTERNAL, "every disk is qcow2"),
        ({"libvirt": (9, 0, 0)}, True, Kind.INTERNAL, "every disk is qcow2"),
    ],
)
def test_the_kind_follows_from_disks_firmware_and_libvirt(
    more: dict[str, object], memory: bool, kind: Kind, reason: str
) -> None:
    decision = decide.take(facts(**more), "s", memory=memory)
    assert decision.kind is kind
    choice = decision.plan.choices[0]
    assert reason in " ".join([choice.reason, *(r.reason for r in choice.rejected)])
    assert decision.memory == (memory and more.get("state") is not DomainState.SHUTOFF)


@pytest.mark.parametrize(
    ("more", "memory", "against"),
    [
        # Going back to an internal one would write into the file that the external one rests upon.
        ({"snapshots": (snap("a"),)}, False, "there are internal ones"),
        ({"snapshots": (snap("a"),), "disks": (VDA, RAW)}, True, "there are internal ones"),
        ({"libvirt": (9, 0, 0)}, False, "cannot go back to one (10.0.0 can)"),
        ({"disks": (VDA, replace(RAW, source="pool/image"))}, True, "vdb is not a file"),
        ({"disks": (), "state": DomainState.SHUTOFF}, True, "no disk"),
    ],
)
def test_where_neither_kind_can_be_both_reasons_are_given(more: dict[str, object], memory: bool, against: str) -> None:
    with pytest.raises(UnsupportedError, match="no snapshot of web can be made") as refused:
        decide.take(facts(**more), "s", memory=memory)
    assert [d.partition(":")[0] for d in refused.value.details] == ["internal", "external"]
    assert against in refused.value.details[1]
    assert refused.value.hint


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({"snapshots": (snap("s"),)}, ConflictError, "has a snapshot 's'"),
        ({"saved": True, "state": DomainState.SHUTOFF}, ConflictError, "saved memory"),
        ({"persistent": False}, UnsupportedError, "no definition"),
        ({"busy": True}, ConflictError, "another operation"),
        ({"state": DomainState.PAUSED, "reason": "migration"}, ConflictError, "another operation"),
        ({"assigned": 1}, UnsupportedError, "devices of the host"),
        ({"driver": "Xen"}, UnsupportedError, "has no snapshots"),
        ({"state": DomainState.CRASHED}, ConflictError, "is crashed"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_touched(
    more: dict[str, object], error: type[RefusedError], match: str
) -> None:
    with pytest.raises(error, match=match):
        decide.take(facts(**more), "s")


@pytest.mark.parametrize("name", ["../x", "a b", "-x", "x" * 64])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(SpecError):
        decide.take(facts(), name)


def test_names_are_found_for_whoever_gives_none() -> None:
    assert decide.take(facts(), None).name == "snap1"
    assert decide.take(facts(snapshots=(snap("snap1"), snap("snap3"))), None).name == "snap2"


def test_files_of_an_external_one_lie_beside_the_disks_and_in_the_pool_for_a_device() -> None:
    taken = decide.take(facts(disks=(replace(VDA, source="/pool/web-0.older.qcow2"), BLOCK, SEED)), "s")
    assert taken.overlays == {"vda": "/pool/web-0.s.qcow2", "vdb": "/pool/web-vdb.s.qcow2"}
    assert taken.memory_file == "/pool/web-s.mem"
    root = ET.fromstring(decide.snapshot_xml(taken))
    assert {d.get("name"): d.get("snapshot") for d in root.iterfind("disks/disk")} == {
        "vda": "external",
        "vdb": "external",
        "sda": "no",
    }
    assert root.find("memory").attrib == {"snapshot": "external", "file": "/pool/web-s.mem"}  # type: ignore[union-attr]


def test_a_revert_forgets_marks_of_backups_and_saved_memory_and_says_what_is_lost() -> None:
    there = facts(
        snapshots=(snap("a", current=True),),
        checkpoints=("vmkit-1-x",),
        saved=True,
        state=DomainState.SHUTOFF,
        disks=(VDA, RAW, SEED),
    )
    back = decide.revert(there, "a")
    assert (back.forget, back.drop_saved, back.state) == (("vmkit-1-x",), True, DomainState.RUNNING)
    assert [s.verb for s in back.plan.steps] == ["forget", "drop", "revert", "verify"]
    assert any("vdb (/data/big.img)" in w for w in back.plan.warnings)
    with pytest.raises(ConflictError, match="checkpoints of another tool"):
        decide.revert(replace(there, checkpoints=("virtnbdbackup.0",)), "a")
    with pytest.raises(NotFoundError, match="no snapshot 'aa'") as refused:
        decide.revert(there, "aa")
    assert "did you mean a" in (refused.value.hint or "") or "snapshot list" in (refused.value.hint or "")


def test_a_revert_without_memory_leaves_it_off_unless_asked_to_start() -> None:
    one = replace(snap("a", kind=Kind.EXTERNAL), memory=False)
    there = facts(snapshots=(one,))
    assert decide.revert(there, "a").state is DomainState.SHUTOFF
    assert decide.revert(there, "a", start=True).state is DomainState.RUNNING
    with pytest.raises(ConflictError, match="tear away"):
        decide.revert(replace(there, assigned=1), "a")


def test_offline_external_snapshots_forget_marks_since_libvirt_takes_none_beside_them() -> None:
    off = facts(disks=(VDA, RAW), state=DomainState.SHUTOFF, checkpoints=("vmkit-1-x",))
    assert decide.take(off, "s").forget == ("vmkit-1-x",)
    assert decide.take(replace(off, state=DomainState.RUNNING), "s").forget == ()


def chain(kind: Kind, current: str) -> tuple[Snapshot, ...]:
    links = (("a", None), ("b", "a"), ("c", "b"), ("d", "b"))
    return in_order([snap(n, p, kind=kind, current=n == current) for n, p in links])


@pytest.mark.parametrize(
    ("current", "names", "children", "order"),
    [
        ("d", ["d"], False, ("d",)),
        ("d", ["c"], False, ("c",)),
        ("d", ["a"], False, ("a",)),
        ("d", ["b"], False, None),  # c and d rest upon it
        ("d", ["b"], True, ("d", "c", "b")),
        ("d", ["a", "c"], False, ("c", "a")),
        ("a", ["a"], False, None),  # b and the VM rest upon it
        ("a", ["a"], True, ("d", "c", "b", "a")),
        ("b", ["c", "d", "b"], False, ("d", "c", "b")),
    ],
)
def test_external_ones_are_deleted_only_where_libvirt_can_merge(
    current: str, names: list[str], children: bool, order: tuple[str, ...] | None
) -> None:
    there = facts(snapshots=chain(Kind.EXTERNAL, current))
    if order is None:
        with pytest.raises(RefusedError, match="cannot merge") as refused:
            decide.remove(there, names, children=children)
        assert refused.value.hint
        return
    assert decide.remove(there, names, children=children).names == order


def test_internal_ones_are_deleted_in_any_order() -> None:
    there = facts(snapshots=chain(Kind.INTERNAL, "a"))
    assert decide.remove(there, ["b"]).names == ("b",)
    assert decide.remove(there, ["a"], children=True).names == ("d", "c", "b", "a")
    with pytest.raises(NotFoundError):
        decide.remove(there, ["b", "x"])


def test_an_external_one_under_a_vm_that_has_not_run_since_is_left() -> None:
    there = facts(snapshots=chain(Kind.EXTERNAL, "d"), state=DomainState.PAUSED, reason="from snapshot")
    with pytest.raises(ConflictError, match="has not run since") as refused:
        decide.remove(there, ["d"])
    assert refused.value.hint == "vmkit resume web"


def test_the_tree_shows_where_the_vm_is() -> None:
    lines = tree(chain(Kind.INTERNAL, "c"))
    assert [line.replace("2026-11-21T10:00:01+00:00", "T") for line in lines] == [
        "a  T  running, with memory",
        "└─ b  T  running, with memory",
        "   ├─ c  T  running, with memory",
        "   │  └─ (now)",
        "   └─ d  T  running, with memory",
    ]
    assert tree([]) == ("(now)",)
    assert descendants(chain(Kind.INTERNAL, "c"), "b") == ("c", "d")


def test_what_libvirt_says_is_read() -> None:
    xml = """<domainsnapshot><name>e1</name><description>before</description><state>running</state>
      <parent><name>e0</name></parent><creationTime>1795254991</creationTime>
      <memory snapshot='external' file='/pool/web-e1.mem'/>
      <disks><disk name='vda' snapshot='external' type='file'><source file='/pool/web-0.e1.qcow2'/></disk>
      <disk name='sda' snapshot='no'/></disks>
      <domain type='kvm'><name>web</name><devices><disk type='file' device='disk'><source file='/pool/web-0.qcow2'/>
      <target dev='vda' bus='virtio'/></disk></devices></domain></domainsnapshot>"""
    one = parse(xml, current=True)
    assert one == Snapshot(
        "e1", "e0", "2026-11-21T09:56:31+00:00", "running", True, Kind.EXTERNAL, True, "before", ("vda",)
    )
    assert files_of(xml) == SnapshotFiles(
        {"vda": "/pool/web-0.qcow2"}, {"vda": "/pool/web-0.e1.qcow2"}, "/pool/web-e1.mem"
    )
    plain = "<domainsnapshot><name>o</name><state>shutoff</state><memory snapshot='no'/><disks/></domainsnapshot>"
    assert (parse(plain).state, parse(plain).memory, parse(plain).kind) == ("shut off", False, Kind.INTERNAL)


def test_files_that_a_deletion_takes_along_are_the_vms_own() -> None:
    files = {
        "e1": SnapshotFiles({"vda": "/pool/web-0.qcow2"}, {"vda": "/pool/web-0.e1.qcow2"}, "/pool/web-e1.mem"),
        "e2": SnapshotFiles({"vda": "/pool/web-0.1795254666"}, {"vdb": "/data/big.e2.qcow2"}, "/else/web-e2.mem"),
    }
    now = replace(VDA, source="/pool/web-0.e1.1795254671")
    there = replace(facts(snapshots=(snap("e1"), snap("e2"))), files=files, disks=(now, RAW))
    assert own_files(there) == ("web-0.1795254666", "web-0.e1.1795254671", "web-0.e1.qcow2", "web-e1.mem")
    assert own_files(replace(there, volumes=None)) == ()
    # A linked clone's disk rests upon a disk of its origin, whose name may begin like its own.
    clone = replace(there, disks=(replace(VDA, source="/pool/web-1-0.qcow2"),), files={})
    assert own_files(clone) == ()
    shared = replace(there, disks=(replace(VDA, source="/pool/0123456789abcdef.qcow2"),), files={})
    assert own_files(shared) == ()
