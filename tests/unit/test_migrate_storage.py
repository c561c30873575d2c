"""Which files of a VM are copied when it moves, what is made and removed for that, and how it is told."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest

from vmkit.errors import CancelledError, ConflictError, RefusedError, UnreachableError
from vmkit.hypervisor.domain import JobStats
from vmkit.hypervisor.storage import VolumeFacts
from vmkit.migrate import copying
from vmkit.migrate.disks import DiskWatch
from vmkit.migrate.facts import GuestFacts, Presence, TargetFacts
from vmkit.migrate.files import GuestFile, files_of
from vmkit.migrate.jobs import JobProgress
from vmkit.migrate.outcome import Place, Seen, Verdict
from vmkit.migrate.plan import same_storage
from vmkit.migrate.session import Stop, StopReason
from vmkit.migrate.settle import Settled
from vmkit.migrate.storage import Copy, Kind, copies, mirrored, named_by_content, room, unfit
from vmkit.progress import Advanced, Event, Finished, Started, silent

P = "/var/lib/vmkit/pool"
BLOB = f"{P}/0123456789abcdef.qcow2"
XML = f"""
<domain><metadata><v:vm xmlns:v='urn:vmkit:vm:1'>{{"spec": {{}}, "image": "x", "volumes": ["w-0.qcow2", "w-seed.iso"],
"console_log": "w-console.log"}}</v:vm></metadata>
<os><type>hvm</type><kernel>{P}/fedcba9876543210.kernel</kernel></os><devices>
<disk type='file' device='disk'><driver type='qcow2'/><source file='{P}/w-0.qcow2'/>
  <backingStore type='file'><format type='qcow2'/><source file='{P}/middle.qcow2'/>
    <backingStore type='file'><format type='qcow2'/><source file='{BLOB}'/><backingStore/></backingStore>
  </backingStore><target dev='vda'/></disk>
<disk type='file' device='cdrom'><driver type='raw'/><source file='{P}/w-seed.iso'/>
  <target dev='sda'/><readonly/></disk>
<disk type='file' device='disk'><driver type='raw'/><source file='/srv/data.raw'/><target dev='vdb'/></disk>
<serial><log file='{P}/w-console.log' append='on'/></serial></devices></domain>
"""
FILES = files_of(ET.fromstring(XML))


def guest(files: tuple[GuestFile, ...] = FILES, *, off: bool = False) -> GuestFacts:
    return cast("GuestFacts", SimpleNamespace(files=files, off=off))


def volume(path: str, **changed: Any) -> VolumeFacts:
    name = path.rpartition("/")[2]
    form = "qcow2" if name.endswith("qcow2") else "raw"
    return replace(VolumeFacts("vmkit", name, form, 2**30, 2**20, 2**21), **changed)


def meeting(**presence: Presence) -> TargetFacts:
    """Everything is missing at the target but what is named, by the first letters of its file's name."""
    files = {f.path: Presence.ABSENT for f in FILES}
    for start, where in presence.items():
        files |= {p: where for p in files if p.rpartition("/")[2].startswith(start)}
    return TargetFacts(None, None, files, None, None, volumes={p: volume(p) for p in files})


def test_files_in_a_domain() -> None:
    by_path = {f.path: f for f in FILES}
    assert by_path[f"{P}/w-0.qcow2"].backing == f"{P}/middle.qcow2"
    assert by_path[f"{P}/middle.qcow2"].backing == BLOB
    assert {p for p, f in by_path.items() if f.own} == {f"{P}/w-{n}" for n in ("0.qcow2", "seed.iso", "console.log")}
    assert [(f.device, f.written) for f in FILES if f.role == "disk"] == [("vda", True), ("vdb", True)]


def test_what_others_stand_on_comes_first() -> None:
    found = copies(guest(), meeting())
    order = [c.path for c in found]
    assert order.index(BLOB) < order.index(f"{P}/middle.qcow2") < order.index(f"{P}/w-0.qcow2")
    assert {c.path.rpartition("/")[2]: c.kind for c in found} == {
        "0123456789abcdef.qcow2": Kind.IMAGE,
        "fedcba9876543210.kernel": Kind.IMAGE,
        "middle.qcow2": Kind.FILE,
        "w-seed.iso": Kind.FILE,
        "w-console.log": Kind.FILE,
        "w-0.qcow2": Kind.DISK,
        "data.raw": Kind.DISK,
    }
    assert sorted(mirrored(guest(), meeting())) == ["vda", "vdb"]


def test_disks_of_a_vm_that_is_shut_off_are_copied_as_they_lie() -> None:
    found = {c.path: c for c in copies(guest(off=True), meeting())}
    assert {c.path for c in found.values() if c.idle} == {f"{P}/w-0.qcow2", "/srv/data.raw"}
    assert found["/srv/data.raw"].size == 2**20  # what is in use: holes are not sent
    assert mirrored(guest(off=True), meeting()) == ()
    facts = meeting()
    facts.volumes["/srv/data.raw"] = volume("/srv/data.raw", format="vmdk")
    assert unfit(next(f for f in FILES if f.device == "vdb"), guest(off=True), facts) is None


@pytest.mark.parametrize("where", [Presence.SAME, Presence.PRESENT, Presence.OTHER, Presence.UNKNOWN])
def test_what_the_target_has_is_left_alone(where: Presence) -> None:
    assert "/srv/data.raw" not in [c.path for c in copies(guest(), meeting(data=where))]


def test_a_disk_on_an_image_of_unknown_content_is_not_copied() -> None:
    facts = meeting(middle=Presence.PRESENT)
    disk = next(f for f in FILES if f.device == "vda")
    assert "may differ" in str(unfit(disk, guest(), facts))
    assert mirrored(guest(), facts) == ("vdb",)
    facts.files[BLOB] = Presence.PRESENT
    facts.files[f"{P}/middle.qcow2"] = Presence.SAME
    assert unfit(disk, guest(), facts) is None  # the name of the lower one says what is in it


@pytest.mark.parametrize(
    ("changed", "why"), [({"encrypted": True}, "encrypted"), ({"format": "vmdk"}, "its format is vmdk")]
)
def test_disks_that_cannot_be_copied(changed: dict[str, Any], why: str) -> None:
    facts = meeting()
    facts.volumes["/srv/data.raw"] = volume("/srv/data.raw", **changed)
    disk = next(f for f in FILES if f.device == "vdb")
    assert why in str(unfit(disk, guest(), facts))
    del facts.volumes["/srv/data.raw"]
    assert "no storage pool of the source" in str(unfit(disk, guest(), facts))
    assert "other VMs" in str(unfit(replace(disk, shareable=True), guest(), meeting()))


def test_room_is_what_is_in_use_and_what_it_can_grow_to() -> None:
    need = room(copies(guest(), meeting()))
    assert need["/srv"] == (2**20, 2**30)
    assert need[P] == (2**20 + 5 * 2**21, 2**30 + 5 * 2**21)


def test_libvirts_check_is_left_out_only_for_what_is_shown_to_be_shared() -> None:
    facts = meeting(data=Presence.SAME)
    assert not same_storage(guest(), facts.files)
    assert same_storage(guest(), facts.files, {f"{P}/w-0.qcow2"})
    assert not same_storage(guest(), meeting().files, {f"{P}/w-0.qcow2", "/srv/data.raw"})  # none is left to vouch for


@pytest.mark.parametrize(
    ("name", "is_blob"), [("0123456789abcdef.qcow2", True), ("w-0.qcow2", False), ("0123456789abcdef.iso", False)]
)
def test_names_made_of_content(name: str, is_blob: bool) -> None:
    assert named_by_content(f"{P}/{name}") is is_blob


def test_the_empty_volume_is_like_the_disk() -> None:
    found = {c.path: c for c in copies(guest(), meeting())}
    root = ET.fromstring(copying.volume_xml(found[f"{P}/w-0.qcow2"]))
    assert (root.findtext("capacity"), root.findtext("allocation")) == (str(2**30), "0")
    assert root.findtext("backingStore/path") == f"{P}/middle.qcow2"
    assert ET.fromstring(copying.volume_xml(found["/srv/data.raw"])).find("backingStore") is None


# -- telling


def stats(memory: int, done: int, total: int) -> JobStats:
    raw = {"disk_processed": done, "disk_total": total, "disk_bps": 5}
    return JobStats(True, 0, memory, 0, 0, 0, 0, 0, None, raw)


def test_progress_of_disks_and_a_deadline_that_begins_with_the_memory() -> None:
    now, events = [0.0], list[Event]()
    watch = DiskWatch(("vda",), lambda: now[0], events.append)
    moved = []
    for t, memory, done in ((1.0, 0, 0), (2.0, 0, 50), (3.0, 0, 50), (4.0, 9, 100), (6.0, 9, 100)):
        now[0] = t
        moved.append(watch.see(stats(memory, done, 100)))
    assert moved == [False, True, False, True, False]
    assert [type(e) for e in events] == [Started, Advanced, Advanced, Advanced, Finished]
    assert (watch.seconds, watch.clock(), watch.sent) == (4.0, 2.0, 100)


def test_without_disks_nothing_is_told() -> None:
    events: list[Event] = []
    watch = DiskWatch((), lambda: 7.0, events.append)
    assert not watch.see(stats(0, 0, 0))
    assert (events, watch.clock()) == ([], 7.0)


# -- making and removing


class FakeHost:
    """A host with one pool, of names alone."""

    def __init__(self, uri: str, *names: str, twin: FakeHost | None = None) -> None:
        self.uri = uri
        self.all = twin.all if twin else set(names)
        self.refuse: str | None = None

    def path(self, name: str) -> str | None:
        return name if name in self.all else None

    def create(self, xml: str) -> None:
        name = str(ET.fromstring(xml).findtext("name"))
        if name == self.refuse:
            raise ConflictError(name)
        self.all.add(name)

    def delete(self, name: str) -> bool:
        self.all.discard(name)
        return True

    @property
    def host(self) -> FakeHost:
        return self


class FakeEntry:
    def __init__(self, copies: tuple[Copy, ...]) -> None:
        self.record = SimpleNamespace(data=copying.begin(copies))
        self.keep = True

    def advance(self, _phase: str, **data: Any) -> None:
        self.record.data |= data


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def relay(_source: FakeHost, target: FakeHost, name: str, _length: int, **_how: Any) -> str:
        target.create(f"<volume><name>{name}</name></volume>")
        return ""

    def put(_source: FakeHost, target: FakeHost, name: str, _length: int, **_how: Any) -> None:
        target.all.add(name)

    monkeypatch.setattr(copying, "pool_of", lambda host, _folder: host)
    monkeypatch.setattr(copying, "users_of", lambda _host, path: ["web9"] if "used" in path else [])
    monkeypatch.setattr(copying, "relay", relay)
    monkeypatch.setattr(copying.blobs, "put", put)
    monkeypatch.setattr(copying.blobs, "discard_half", lambda _pool, _name: False)


def bring(source: FakeHost, target: FakeHost, entry: FakeEntry, wish: Any = lambda: None) -> None:
    found = copies(guest(), meeting())
    hosts = cast("Any", (source, target))
    copying.bring(found, *hosts, cast("Any", entry), wish, silent)


def test_all_is_made_and_journalled_before() -> None:
    found = copies(guest(), meeting())
    source, target, entry = FakeHost("h1"), FakeHost("h2"), FakeEntry(found)
    bring(source, target, entry)
    assert target.all == {c.volume.name for c in found}
    data = entry.record.data
    made = {p for p in data["made"] if "marker" not in p}
    assert made == {c.path for c in found if c.kind is not Kind.IMAGE}
    assert sorted(data["old"]) == sorted(c.path for c in found if c.own)


def test_after_an_error_what_was_made_is_gone_and_what_is_anothers_stays() -> None:
    source, target = FakeHost("h1"), FakeHost("h2")
    entry = FakeEntry(copies(guest(), meeting()))
    target.refuse = "w-0.qcow2"
    with pytest.raises(ConflictError):
        bring(source, target, entry)
    assert {n for n in target.all if not named_by_content(n)} == set()
    assert f"{P}/w-0.qcow2" not in entry.record.data["made"]
    assert not entry.keep


def test_a_wish_ends_it() -> None:
    source, target = FakeHost("h1"), FakeHost("h2")
    entry = FakeEntry(copies(guest(), meeting()))
    with pytest.raises(CancelledError, match="by Ctrl-C"):
        bring(source, target, entry, lambda: Stop(StopReason.CANCELLED, "Ctrl-C"))
    assert target.all == set()


def test_a_folder_that_is_shared_after_all() -> None:
    source = FakeHost("h1", "w-0.qcow2")
    target = FakeHost("h2", twin=source)
    with pytest.raises(RefusedError, match="both hosts have the same"):
        bring(source, target, FakeEntry(copies(guest(), meeting())))
    assert source.all == {"w-0.qcow2"}


def settled(place: Place, source: Seen, target: Seen, running: int = 1) -> Settled:
    return Settled(Verdict(place, (), ""), source, target, running, (), ())


@pytest.mark.parametrize(
    ("end", "source_left", "target_left"),
    [
        (settled(Place.SOURCE, Seen.RUNNING, Seen.ABSENT), {"old", "used"}, set()),
        (settled(Place.SOURCE, Seen.RUNNING, Seen.DEFINED), {"old", "used"}, set()),
        (settled(Place.NOWHERE, Seen.DEFINED, Seen.ABSENT, 0), {"old", "used"}, set()),
        (settled(Place.NOWHERE, Seen.ABSENT, Seen.DEFINED, 0), {"old", "used"}, {"new"}),
        (settled(Place.NOWHERE, Seen.ABSENT, Seen.ABSENT, 0), {"old", "used"}, {"new"}),
        (settled(Place.UNKNOWN, Seen.RUNNING, Seen.RUNNING, 2), {"old", "used"}, {"new"}),
        (settled(Place.SPLIT, Seen.HANDED, Seen.BROKEN, 0), {"old", "used"}, {"new"}),
        (settled(Place.TARGET, Seen.ABSENT, Seen.RUNNING), {"used"}, {"new"}),
        (settled(Place.TARGET, Seen.DEFINED, Seen.RUNNING), {"old", "used"}, {"new"}),
        (settled(Place.TARGET, Seen.ABSENT, Seen.DEFINED, 0), {"old", "used"}, {"new"}),
    ],
)
def test_nothing_is_removed_in_doubt(end: Settled, source_left: set[str], target_left: set[str]) -> None:
    source, target = FakeHost("h1", "old", "used"), FakeHost("h2", "new")
    data = {"made": [f"{P}/new"], "images": [], "old": [f"{P}/old", f"{P}/used"]}
    reaches = [cast("Any", SimpleNamespace(host=lambda h=h: h)) for h in (source, target)]
    tidied = copying.tidy(end, reaches[0], reaches[1], data)
    assert (source.all, target.all) == (source_left, target_left)
    assert bool(tidied.left) == ("old" not in source_left)  # what is used by another VM is told, and not tried again
    assert not tidied.again


def test_a_host_that_does_not_answer_is_asked_again() -> None:
    def silence() -> Any:
        raise UnreachableError("h1 does not answer")

    reach = cast("Any", SimpleNamespace(host=silence))
    tidied = copying.tidy(settled(Place.TARGET, Seen.ABSENT, Seen.RUNNING), reach, reach, {"old": ["/a"]})
    assert tidied.again
    assert "h1 does not answer" in tidied.left[0]


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (JobProgress(0, 0, 0, 0, 0, 9, 2**20, 2**21), "1M of disks sent, 2M to go"),
        (JobProgress(2**20, 2**21, 3, 0, 0, 9, 2**20, 0), "1M sent, 2M to go, round 3"),
    ],
)
def test_jobs_tell_of_disks_until_memory_is_sent(progress: JobProgress, text: str) -> None:
    assert str(progress) == text
