"""Images as files outside the store, and that no content is stored twice."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.unit.test_image_store import put
from vmkit.errors import ConflictError, EffectError, NotFoundError, RefusedError, SpecError, UnsupportedError
from vmkit.image import archive, blobs, store
from vmkit.image.api import Images
from vmkit.image.importer import name_for
from vmkit.image.manifest import Image, ImageKind
from vmkit.values import Bytes

pytestmark = pytest.mark.usefixtures("home")


def whole(name: str, disk: Path | None = None) -> Image:
    """An image with a kernel, and with a disk unless there is none."""
    with store.making(name) as (folder, commit):
        (folder / "kernel").write_bytes(b"kernel" * 1000)
        files = {"kernel": store.describe(folder / "kernel")}
        if disk:
            target = folder / "disk.qcow2"
            subprocess.run(["qemu-img", "convert", "-O", "qcow2", disk, target], check=True)
            files["disk"] = store.describe(target)
        fixed = ("x86_64", "2026-01-01T00:00:00+00:00", "a test")
        return commit(Image(name, ImageKind.DEBIAN, *fixed, **files, cmdline="quiet", user="debian", cloud_init=True))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(range(256)) * 1024 + bytes(768 * 1024))
    return path


def test_an_archive_brings_the_whole_image_back(raw: Path, tmp_path: Path) -> None:
    made = whole("one", raw)
    Images().export("one", tmp_path / "copy.tar")
    back = Images().import_(tmp_path / "copy.tar")
    assert back.name == "copy"
    assert [(f.sha256, f.size) for f in back.files] == [(f.sha256, f.size) for f in made.files]
    assert (back.cmdline, back.user, back.cloud_init, back.kind) == ("quiet", "debian", True, ImageKind.DEBIAN)
    for ours, theirs in zip(back.files, made.files, strict=True):
        assert ours.path.samefile(theirs.path)
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_disks_in_other_formats(raw: Path, tmp_path: Path) -> None:
    whole("one", raw)
    for suffix in (".raw", ".img", ".qcow2", ".vmdk", ".vhdx"):
        target = Images().export("one", tmp_path / f"out{suffix}")
        compare = ["qemu-img", "compare", *(["-f", "raw"] if suffix in (".raw", ".img") else []), "-F", "raw"]
        subprocess.run([*compare, target, raw], check=True, capture_output=True)


def test_exports_that_cannot_be(raw: Path, tmp_path: Path) -> None:
    whole("one", raw)
    whole("bare")
    there = tmp_path / "there.tar"
    there.write_text("mine")
    for call, kind in (
        (("one", tmp_path / "x.zip"), SpecError),
        (("one", there), ConflictError),
        (("one", tmp_path / "no/x.tar"), RefusedError),
        (("bare", tmp_path / "x.raw"), UnsupportedError),
        (("none", tmp_path / "x.tar"), NotFoundError),
    ):
        with pytest.raises(kind):
            Images().export(*call)
    assert there.read_text() == "mine"
    Images().export("one", there, force=True)
    assert archive.is_archive(there)


def rewritten(
    source: Path, target: Path, change: dict[str, bytes | None], extra: dict[str, bytes] | None = None
) -> Path:
    """The archive with members changed, left out (None), or added."""
    with tarfile.open(source) as old, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
        members = {m.name: old.extractfile(m).read() for m in old}  # type: ignore[union-attr]
        for name, data in {**members, **change, **(extra or {})}.items():
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
    return target


def test_archives_that_were_tampered_with(raw: Path, tmp_path: Path, home: Path) -> None:
    whole("one", raw)
    good = Images().export("one", tmp_path / "one.tar")
    kernel = b"kernel" * 999 + b"Kernel"
    cases = {
        "wrong": rewritten(good, tmp_path / "wrong.tar", {"kernel": kernel}),
        "longer": rewritten(good, tmp_path / "longer.tar", {"kernel": kernel + b"x"}),
        "missing": rewritten(good, tmp_path / "missing.tar", {"kernel": None}),
        "more": rewritten(good, tmp_path / "more.tar", {}, {"../../evil": b"x"}),
        "manifest": rewritten(good, tmp_path / "manifest.tar", {archive.MANIFEST: b"{}"}),
    }
    cut = tmp_path / "cut.tar"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    for path in (*cases.values(), cut):
        with pytest.raises(RefusedError):
            Images().import_(path, "bad")
    assert [i.name for i in Images().list()] == ["one"]
    assert not (tmp_path / "evil").exists()
    assert [p.name for p in (home / "images").glob(".new*")] == []


def test_the_same_content_is_stored_once(raw: Path, home: Path) -> None:
    one = Images().import_(raw, "one")
    two = Images().import_(raw, "two")
    assert one.disk
    assert two.disk
    assert one.disk.path.samefile(two.disk.path)
    assert [p.name for p in blobs.root().iterdir()] == [one.disk.sha256]
    Images().delete("one")
    assert Images().verify("two") == two
    Images().delete("two")
    assert list(blobs.root().iterdir()) == []


def test_nothing_is_read_again_where_the_digest_is_known(raw: Path) -> None:
    one = Images().import_(raw, "one")
    raw.write_bytes(bytes(512))
    again = Images().import_(raw, "again", sha256=one.source_sha256)
    assert [f.sha256 for f in again.files] == [f.sha256 for f in one.files]
    with pytest.raises(RefusedError, match="checksum"):
        Images().import_(raw, "other", sha256="0" * 64)


def test_replacing_lets_go_of_what_was_there() -> None:
    put("one", b"first")
    put("two", b"first")
    put("one", b"second", force=True)
    assert len(list(blobs.root().iterdir())) == 2
    put("two", b"second", force=True)
    assert len(list(blobs.root().iterdir())) == 1


def test_a_damaged_file_is_found(raw: Path) -> None:
    made = Images().import_(raw, "one")
    assert Images().verify("one") == made
    assert made.disk
    made.disk.path.write_bytes(b"other")
    with pytest.raises(EffectError, match="is damaged"):
        Images().verify("one")
    made.disk.path.unlink()
    with pytest.raises(EffectError, match="is missing"):
        Images().verify("one")


def test_a_blob_of_another_size_is_not_shared() -> None:
    made = put("one", b"content")
    blob = blobs.root() / made.files[0].sha256
    blob.unlink()
    blob.write_bytes(b"rot")
    again = put("two", b"content")
    assert again.files[0].path.read_bytes() == b"content"
    assert blob.read_bytes() == b"content"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("https://h/a/noble-server-cloudimg-amd64.img?x=1", "noble-server-cloudimg-amd64"),
        ("/tmp/Fedora Cloud.raw.xz", "Fedora-Cloud"),
        ("x.qcow2", "x"),
        ("debian-13.tar", "debian-13"),
    ],
)
def test_a_name_is_made_of_the_file(source: str, name: str) -> None:
    assert name_for(source) == name


def test_no_name_can_be_made() -> None:
    with pytest.raises(SpecError, match="--name"):
        name_for("https://h/")


def test_sizes_are_of_the_files(raw: Path) -> None:
    made = whole("one", raw)
    assert made.size == Bytes(sum(f.path.stat().st_size for f in made.files))
