"""The image store: manifests, and that a half image is never seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vmkit.errors import ConflictError, EffectError, NotFoundError, SpecError
from vmkit.image import recovery, store
from vmkit.image.api import Images
from vmkit.image.manifest import Image, ImageFile, ImageKind, from_json, to_json
from vmkit.progress import Event, Note
from vmkit.system import journal
from vmkit.values import Bytes

DIGEST = "ab" * 32


def image(name: str, folder: Path, content: bytes = b"disk") -> Image:
    (folder / "disk.qcow2").write_bytes(content)
    disk = store.describe(folder / "disk.qcow2")
    return Image(name, ImageKind.IMPORTED, "x86_64", "2026-01-01T00:00:00+00:00", "a test", disk=disk)


def put(name: str, content: bytes = b"disk", *, force: bool = False) -> Image:
    with store.making(name, force=force) as (folder, commit):
        return commit(image(name, folder, content))


def full(folder: Path) -> Image:
    files = {n: ImageFile(folder / n, DIGEST, Bytes(7)) for n in ("kernel", "initrd", "disk")}
    fixed = ("m", ImageKind.MICRO, "x86_64", "2026-01-01T00:00:00+00:00", "Debian")
    return Image(
        *fixed, **files, cmdline="console=ttyS0", agent=True, console_marker="ready", min_memory=Bytes.parse("96M")
    )


def test_manifest_goes_through_json_unchanged(tmp_path: Path) -> None:
    made = full(tmp_path)
    assert from_json(to_json(made), tmp_path) == made
    assert str(tmp_path) not in to_json(made)
    moved = from_json(to_json(made), Path("/elsewhere"))
    assert moved.kernel
    assert moved.kernel.path == Path("/elsewhere/kernel")
    assert made.size == 21


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"format": 99}, "format"),
        ({"kind": "other"}, "kind"),
        ({"name": "../x"}, "name"),
        ({"agent": "yes"}, "agent"),
        ({"min_memory": True}, "min_memory"),
        ({"kernel": "/etc/passwd"}, "kernel"),
        ({"disk": {"file": "../../etc/passwd", "sha256": DIGEST, "size": 1}}, "disk.file"),
        ({"disk": {"file": "d", "sha256": "short", "size": 1}}, "disk.sha256"),
        ({"disk": {"file": "d", "sha256": DIGEST, "size": -1}}, "disk.size"),
    ],
)
def test_manifest_names_the_field_that_is_wrong(tmp_path: Path, change: dict[str, object], path: str) -> None:
    body = {**json.loads(to_json(full(tmp_path))), **change}
    with pytest.raises(SpecError) as caught:
        from_json(json.dumps(body), tmp_path)
    assert caught.value.path == path


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError):
        from_json(text, tmp_path)


def test_an_image_appears_whole_and_only_with_its_files(home: Path) -> None:
    with store.making("one") as (folder, commit):
        (folder / "scratch").mkdir()
        (folder / "scratch" / "big").write_bytes(b"x")
        assert Images().list() == []
        made = commit(image("one", folder))
    assert sorted(p.name for p in (home / "images/one").iterdir()) == ["disk.qcow2", "manifest.json"]
    assert Images().get("one") == made
    assert [i.name for i in Images().list()] == ["one"]
    assert journal.records() == []


def test_nothing_is_left_after_an_error(home: Path) -> None:
    def fail() -> None:
        with store.making("one") as (folder, _):
            image("one", folder)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in (home / "images").iterdir()] == [".one.lock"]
    assert journal.records() == []


def test_a_taken_name_is_refused_unless_it_is_to_be_replaced(home: Path) -> None:
    put("one", b"first")
    with pytest.raises(ConflictError, match="exists") as caught:
        put("one", b"second")
    assert "vmkit image delete one" in str(caught.value.hint)
    put("one", b"third", force=True)
    disk = Images().get("one").disk
    assert disk
    assert disk.path.read_bytes() == b"third"
    assert sorted(p.name for p in (home / "images").iterdir()) == [".one.lock", "one"]


def test_two_at_once_are_refused(home: Path) -> None:
    with store.making("one"), pytest.raises(ConflictError, match="another process"):
        put("one")


def test_missing_images_come_with_a_next_step(home: Path) -> None:
    put("debian-13")
    for name, hint in (("micro", "vmkit image build micro"), ("debian13", "debian-13"), ("zzz", "vmkit image import")):
        with pytest.raises(NotFoundError) as caught:
            Images().get(name)
        assert hint in str(caught.value.hint)
    with pytest.raises(NotFoundError):
        Images().delete("micro")


@pytest.mark.parametrize("name", ["../one", "", "a/b", "x" * 64, "a\nb", ".hidden", "<b>"])
def test_names_that_are_paths_or_worse(home: Path, name: str) -> None:
    for call in (Images().get, Images().delete, put, lambda n: Images().import_("/dev/null", n)):
        with pytest.raises(SpecError):
            call(name)
    assert not (home / "images").exists()


def test_delete(home: Path) -> None:
    put("one")
    Images().delete("one")
    assert Images().list() == []
    assert [p.name for p in (home / "images").iterdir()] == [".one.lock"]


def test_a_damaged_manifest_is_named_and_can_be_deleted(home: Path) -> None:
    put("one")
    put("two")
    (home / "images/one/manifest.json").write_text("{")
    seen: list[Event] = []
    assert [i.name for i in Images().list(seen.append)] == ["two"]
    assert isinstance(seen[0], Note)
    with pytest.raises(EffectError) as caught:
        Images().get("one")
    assert "vmkit image delete one" in str(caught.value.hint)
    Images().delete("one")
    assert store.names() == ["two"]


KILLED = """
import os, sys, time
from pathlib import Path
from vmkit.image import store
from tests.unit.test_image_store import image
with store.making("one", force=True) as (folder, commit):
    made = image("one", folder, b"new")
    if sys.argv[1] == "swap":
        # as far as _commit gets between its two renames
        (folder.parent / "one").rename(folder.parent / ".old-one~")
    print("there", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["half", "swap"])
def test_a_killed_builder_leaves_no_half_image(home: Path, moment: str) -> None:
    put("one", b"before")
    child = subprocess.Popen([sys.executable, "-c", KILLED, moment], stdout=subprocess.PIPE, cwd=Path.cwd())
    assert child.stdout
    assert child.stdout.readline() == b"there\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert store.names() == (["one"] if moment == "half" else [])
    (record,) = journal.records("image")
    assert record.orphaned
    with journal.taken_over(record) as entry:
        assert entry
        said = recovery.recover(entry)
    assert "one" in said
    disk = Images().get("one").disk
    assert disk
    assert disk.path.read_bytes() == b"before"
    assert sorted(p.name for p in (home / "images").iterdir()) == [".one.lock", "one"]
    assert journal.records() == []


def test_settling_never_touches_a_folder_of_someone_else(home: Path, tmp_path: Path) -> None:
    put("one")
    other = tmp_path / ".new-one~1234"
    other.mkdir()
    for path in (other, home, home / "images", home / "images/one", home / "images/.new-two~1"):
        store.settle("one", path)
    assert other.exists()
    assert store.names() == ["one"]


def test_settling_leaves_it_to_whoever_holds_the_name(home: Path) -> None:
    with store.making("one") as (folder, commit):
        store.settle("one", folder.parent / ".new-one~gone")
        commit(image("one", folder))
    assert store.names() == ["one"]
