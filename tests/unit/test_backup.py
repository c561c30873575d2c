"""Backups decided on facts alone: full or incremental and why, chains, damage, and the definition of a VM made anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vmkit.errors import ConflictError, EffectError, NotFoundError, RefusedError, SpecError, UnsupportedError
from vmkit.system.shell import Shell
from vmkit.vm.backup import manifest
from vmkit.vm.backup.decide import (
    BackupFacts,
    backup_xml,
    checkpoint_xml,
    decide,
    mark_of,
    side_files,
)
from vmkit.vm.backup.manifest import Backup, DiskCopy, Extent, Listed, SideFile
from vmkit.vm.backup.marks import split_marks
from vmkit.vm.backup.rewrite import Rewrite, rewritten
from vmkit.vm.backup.store import Repository, absolute
from vmkit.vm.describe import Disk
from vmkit.vm.metadata import NAMESPACE, Remembered, remembered_in, to_text

UUID = "d4e665bc-18fd-4f3f-8723-1f46fd60c9c7"
VDA = Disk("vda", "virtio", "/pool/web-0.qcow2", "qcow2", "disk", readonly=False)
RAW = Disk("vdb", "virtio", "/dev/vg/data", "raw", "disk", readonly=False)
SEED = Disk("sda", "sata", "/pool/web-seed.iso", "raw", "cdrom", readonly=True)


def backup(identity: str, parent: str | None = None, **more: object) -> Backup:
    made = Backup(
        id=identity,
        vm="web",
        uuid=UUID,
        created="2026-11-21T10:00:00+00:00",
        extent=Extent.INCREMENTAL if parent else Extent.FULL,
        parent=parent,
        mark=f"vmkit-x-{identity}",
        consistency="crash",
        disks=(DiskCopy("vda", "vda.qcow2", 1 << 26, 100, "ab" * 32),),
        side=(SideFile("kernel", "/pool/k.kernel", "cd-k.kernel", "cd" * 32),),
        xml="<domain/>",
    )
    return replace(made, **more)  # type: ignore[arg-type]


SIZES = {"a/vda.qcow2": 100, "b/vda.qcow2": 100, "c/vda.qcow2": 100, "files/cd-k.kernel": 7}
LINE = (backup("a"), backup("b", "a"), backup("c", "b"))


def facts(*backups: Backup, **more: object) -> BackupFacts:
    found = BackupFacts(
        name="web",
        uuid=UUID,
        uri="qemu:///system",
        driver="QEMU",
        active=True,
        busy=False,
        disks=(VDA, SEED),
        checkpoints=tuple(b.mark for b in backups if b.mark),
        repository="/backup/web",
        listed=manifest.judged(backups, SIZES),
    )
    return replace(found, **more)  # type: ignore[arg-type]


def test_the_first_is_full_and_the_next_holds_what_changed() -> None:
    first = decide(facts())
    assert (first.extent, first.parent, first.disks, first.left_out, first.old) == (
        Extent.FULL,
        None,
        ("vda",),
        ("sda",),
        (),
    )
    after = decide(facts(*LINE))
    assert (after.extent, after.parent) == (Extent.INCREMENTAL, LINE[2])
    assert after.old == tuple(b.mark for b in LINE)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"checkpoints": ()}, "a revert, or another host, lost the mark"),
        ({"disks": (VDA, replace(VDA, device="vdb"))}, "the disks are not those of c"),
        ({"uuid": "other"}, "of another VM of this name"),
        ({"disks": (VDA, RAW)}, "vdb is not qcow2"),
        ({"listed": manifest.judged(LINE, {**SIZES, "b/vda.qcow2": 99})}, "is damaged: what it rests upon, b"),
        ({"listed": manifest.judged(LINE[:1] + LINE[2:], SIZES)}, "what it rests upon, b, is gone"),
        ({"listed": manifest.judged(LINE, {k: v for k, v in SIZES.items() if "files" not in k})}, "missing or cut"),
    ],
)
def test_full_where_nothing_counts_what_changed(more: dict[str, object], reason: str) -> None:
    decision = decide(facts(*LINE, **more))
    assert decision.extent is Extent.FULL
    assert reason in decision.plan.choices[0].reason


def test_full_because_it_was_asked_for_and_without_marks_for_raw_disks() -> None:
    assert decide(facts(*LINE), full=True).plan.choices[0].reason == "it was asked for"
    raw = decide(facts(disks=(VDA, RAW)))
    assert raw.marks is False
    assert raw.plan.warnings


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({"active": False}, ConflictError, "web is off"),
        ({"busy": True}, ConflictError, "another operation"),
        ({"driver": "Xen"}, UnsupportedError, "makes no backups"),
        ({"disks": (SEED,)}, RefusedError, "no disk"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, object], error: type[RefusedError], match: str) -> None:
    with pytest.raises(error, match=match):
        decide(facts(**more))


def test_marks_of_other_repositories_and_tools_are_left_alone() -> None:
    here, elsewhere = mark_of("/backup/web", "lost"), mark_of("/other/web", "a")
    assert here != mark_of("/other/web", "lost")
    decision = decide(facts(*LINE, checkpoints=(here, elsewhere, "virtnbdbackup.0", LINE[2].mark or "")))
    assert decision.old == (here, LINE[2].mark)
    assert split_marks((here, "virtnbdbackup.0")) == ((here,), ("virtnbdbackup.0",))


def test_what_libvirt_is_asked_for() -> None:
    decision = decide(facts(*LINE))
    root = ET.fromstring(backup_xml(decision, {"vda": "/backup/web/.partial-d/vda.qcow2"}))
    assert root.findtext("incremental") == "vmkit-x-c"
    assert {d.get("name"): d.get("backup") for d in root.iterfind("disks/disk")} == {"vda": "yes", "sda": "no"}
    root = ET.fromstring(checkpoint_xml(decision, "m"))
    assert {d.get("name"): d.get("checkpoint") for d in root.iterfind("disks/disk")} == {"vda": "bitmap", "sda": "no"}


def test_manifests_go_there_and_back_and_damage_is_told() -> None:
    text = manifest.to_json(LINE[1])
    assert manifest.parse(text, where="x") == LINE[1]
    for wrong in (text[:-20], "[]", "{}", text.replace('"uuid"', '"uid"'), text.replace('"full"', '"half"')):
        if wrong != text:
            with pytest.raises(EffectError, match="x is damaged"):
                manifest.parse(wrong, where="x")
    later = json.dumps({**json.loads(text), "format": 2})
    with pytest.raises(EffectError, match="later version"):
        manifest.parse(later, where="x")


def test_chains() -> None:
    listed = manifest.judged(LINE, SIZES)
    assert [b.id for b in manifest.chain(listed, None, where="r")] == ["a", "b", "c"]
    assert [b.id for b in manifest.chain(listed, "b", where="r")] == ["a", "b"]
    with pytest.raises(NotFoundError, match="no backup 'x' in r"):
        manifest.chain(listed, "x", where="r")
    with pytest.raises(NotFoundError, match="no backup in /d/web") as none:
        manifest.chain((), None, where="/d/web")
    assert none.value.hint == "see what there is: vmkit backup list /d"
    damaged = manifest.judged(LINE, {**SIZES, "b/vda.qcow2": 1})
    with pytest.raises(RefusedError, match="c in r is damaged") as refused:
        manifest.chain(damaged, None, where="r")
    assert refused.value.hint == "the last one that is whole: --at a"
    two = (Listed(backup("20a"), ""), Listed(backup("20b"), ""))
    with pytest.raises(RefusedError, match="begins several"):
        manifest.chain(two, "20", where="r")


def test_a_backup_that_others_rest_upon_is_not_deleted_alone() -> None:
    listed = manifest.judged(LINE, SIZES)
    assert manifest.resting_upon(listed, {"a"}) == ("b", "c")
    assert manifest.resting_upon(listed, {"b"}) == ("c",)
    assert manifest.resting_upon(listed, {"c"}) == ()
    assert manifest.resting_upon(listed, {"b", "c"}) == ()


XML = f"""<domain type='kvm' id='3'><name>web</name><uuid>{UUID}</uuid><genid>x</genid>
 <metadata><v:vm xmlns:v='{NAMESPACE}'>TEXT</v:vm></metadata>
 <os><type>hvm</type><kernel>/pool/k.kernel</kernel><cmdline>quiet vmkit.name=web vmkit.ip=dhcp</cmdline></os>
 <devices><disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/web' index='1'/>
   <backingStore type='file'><format type='qcow2'/><source file='/x'/></backingStore><target dev='vda'/></disk>
 <disk type='file' device='cdrom'><source file='/pool/web-seed.iso'/><target dev='sda'/><readonly/></disk>
 <interface type='network'><mac address='52:54:00:00:00:01'/><source network='lab'/></interface>
 <serial type='pty'><log file='/pool/web-console.log' append='on'/></serial></devices></domain>""".replace(
    "TEXT", to_text(Remembered({"name": "web", "memory": 1}, "micro", ("web-0.qcow2",), "web-console.log"))
)


@pytest.mark.parametrize("same", [True, False])
def test_the_definition_of_a_vm_made_anew(same: bool) -> None:
    name = "web" if same else "copy"
    change = Rewrite(
        name=name,
        old="web",
        uuid=UUID if same else "11111111-18fd-4f3f-8723-1f46fd60c9c7",
        same=same,
        disks={"vda": f"/pool2/{name}-0.qcow2"},
        side={"/pool/k.kernel": "/pool2/k.kernel", "/pool/web-seed.iso": f"/pool2/{name}-seed.iso"},
        volumes=(f"{name}-0.qcow2", f"{name}-seed.iso"),
        console_log=f"/pool2/{name}-console.log",
    )
    root = ET.fromstring(rewritten(XML, change))
    assert (root.findtext("name"), root.findtext("uuid"), root.get("id")) == (name, change.uuid, None)
    disk, drive = root.findall("devices/disk")
    assert disk.get("type") == "file"
    assert disk.find("source").attrib == {"file": f"/pool2/{name}-0.qcow2"}  # type: ignore[union-attr]
    assert disk.find("driver").get("type") == "qcow2"  # type: ignore[union-attr]
    assert disk.find("backingStore") is None
    assert drive.find("source").get("file") == f"/pool2/{name}-seed.iso"  # type: ignore[union-attr]
    assert root.findtext("os/kernel") == "/pool2/k.kernel"
    assert (root.find("devices/interface/mac") is not None) == same
    assert (root.find("genid") is not None) == same
    assert f"vmkit.name={name} " in root.findtext("os/cmdline", "")
    assert root.find("devices/serial/log").get("file") == change.console_log  # type: ignore[union-attr]
    element = root.find(f"metadata/{{{NAMESPACE}}}vm")
    assert element is not None
    assert remembered_in(ET.tostring(element, encoding="unicode")) == Remembered(
        {"name": name, "memory": 1}, "micro", change.volumes, f"{name}-console.log"
    )


def test_files_that_a_vm_needs_beside_its_disks() -> None:
    assert side_files(XML) == (("kernel", "/pool/k.kernel"), ("drive", "/pool/web-seed.iso"))


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(Shell.local(), "backups") == str(tmp_path / "backups")
    far = Shell.of_uri("qemu+ssh://root@far/system")
    assert absolute(far, "/srv/backups/") == "/srv/backups"
    for wrong in ("backups", "", "/a\nb"):
        with pytest.raises(SpecError):
            absolute(far, wrong)


def test_a_repository_shows_only_what_was_committed(tmp_path: Path) -> None:
    folder = tmp_path / "has space" / "web"
    repository = Repository(Shell.local(), str(folder))
    assert repository.listing() == ()
    kernel = tmp_path / "k.kernel"
    kernel.write_bytes(b"kernel")
    half = ".partial-a"
    assert repository.prepare(half) > 0
    (folder / half / "vda.qcow2").write_bytes(b"x" * 100)
    side = repository.keep("kernel", str(kernel))
    assert side == repository.keep("kernel", str(kernel))
    assert repository.listing() == ()
    digest = "1f72a43b3d1b6ef4a9a16f6e8c1f7a4d" * 2
    made = backup("a", disks=(DiskCopy("vda", "vda.qcow2", 1, 100, digest),), side=(side,))
    repository.commit(half, made)
    assert repository.exists("a")
    assert not repository.exists(half)
    assert [(x.backup, x.problem) for x in repository.listing()] == [(made, "")]
    assert repository.differing([made]) == ("a/vda.qcow2",)
    assert not (folder / "a" / "backup.json").stat().st_mode & 0o077
    (folder / "a" / "vda.qcow2").write_bytes(b"x")
    assert repository.listing()[0].problem == "missing or cut off: vda.qcow2"
    target = tmp_path / "back.kernel"
    repository.copy_out(side, str(target))
    repository.copy_out(side, str(target))
    assert target.read_bytes() == b"kernel"
    target.write_bytes(b"other")
    with pytest.raises(EffectError):
        repository.copy_out(side, str(target))
    repository.remove("a", "nothing")
    assert repository.listing() == ()
