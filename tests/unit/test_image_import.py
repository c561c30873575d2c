"""Importing: what is refused, and that nothing is left of it."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.server
import lzma
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmkit.errors import ConflictError, EffectError, NotFoundError, RefusedError, SpecError, UnreachableError
from vmkit.image import qcow2
from vmkit.image.api import Images
from vmkit.progress import Advanced, Event

pytestmark = pytest.mark.usefixtures("home")


def qemu_img(*argv: object) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "good.raw"
    path.write_bytes(os.urandom(256 * 1024) + bytes(768 * 1024))
    return path


@pytest.fixture
def good(raw: Path) -> Path:
    path = raw.with_suffix(".qcow2")
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    return path


@pytest.fixture(autouse=True)
def nothing_left(home: Path) -> Iterator[None]:
    """After each test there are whole images and locks, and no trace of anything else."""
    yield
    assert not [p for p in (home / "images").glob(".*") if not p.name.endswith(".lock")]
    assert not list((home / "jobs").glob("*.json"))


def refused(source: object, kind: type[Exception] = RefusedError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        Images().import_(str(source), "new", **options)
    assert Images().list() == []
    return str(caught.value)


def test_both_formats_become_qcow2_with_the_same_content(raw: Path, good: Path, tmp_path: Path) -> None:
    for i, source in enumerate((raw, good)):
        made = Images().import_(source, f"disk{i}")
        assert made.disk
        assert made.kernel is None
        assert made.source == str(source)
        assert qcow2.virtual_size(made.disk.path) == 1 << 20
        qemu_img("compare", "-f", "qcow2", "-F", "raw", made.disk.path, raw)
        assert made.disk.sha256 == hashlib.sha256(made.disk.path.read_bytes()).hexdigest()


def test_the_checksum_is_of_the_source(good: Path) -> None:
    digest = hashlib.sha256(good.read_bytes()).hexdigest()
    assert Images().import_(good, "upper", sha256=digest.upper()).name == "upper"
    Images().delete("upper")
    text = refused(good, sha256="0" * 64)
    assert digest in text
    assert "checksum" in text
    assert "SHA-256" in refused(good, SpecError, sha256="12")


def test_backing_files_and_data_files_are_refused(good: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", good, "-F", "qcow2", overlay)
    assert "backing file" in refused(overlay)
    outside = tmp_path / "outside.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/secret.raw", outside, "1M")
    assert "another file" in refused(outside)


def test_a_data_file_that_only_an_extension_names(good: Path, tmp_path: Path) -> None:
    """The feature bit cleared, the name still there: QEMU's reading of it is not relied upon."""
    data = bytearray(good.read_bytes())
    struct.pack_into(">II4s", data, struct.unpack_from(">I", data, 100)[0], 0x44415441, 4, b"/etc")
    bad = tmp_path / "bad.qcow2"
    bad.write_bytes(data)
    assert "another file" in refused(bad)


def test_encrypted_and_other_formats_are_refused(raw: Path, tmp_path: Path) -> None:
    vmdk = tmp_path / "a.vmdk"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", raw, vmdk)
    assert "vmdk" in refused(vmdk)
    locked = tmp_path / "l.qcow2"
    secret = ["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"]
    qemu_img("create", "-f", "qcow2", *secret, locked, "1M")
    assert "encrypted" in refused(locked)


def test_compressed_sources_are_unpacked(raw: Path, tmp_path: Path) -> None:
    for i, packer in enumerate((gzip, lzma, bz2)):
        packed = tmp_path / f"packed{i}"
        packed.write_bytes(packer.compress(raw.read_bytes()))
        made = Images().import_(packed, f"disk{i}", sha256=hashlib.sha256(packed.read_bytes()).hexdigest())
        assert made.disk
        qemu_img("compare", "-f", "qcow2", "-F", "raw", made.disk.path, raw)


@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"BZh9"])
def test_compressed_files_that_are_damaged(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(magic + bytes(509))
    assert "damaged" in refused(path)


def test_compressed_files_of_other_kinds_are_refused_with_a_next_step(tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(508))
    with pytest.raises(RefusedError) as caught:
        Images().import_(path, "new")
    assert "unpack" in str(caught.value.hint)


def test_truncated_files_are_refused(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    for size in (0, 3, 60, 100, 200, 70_000, len(whole) - 64 * 1024):
        path = tmp_path / f"cut{size}"
        path.write_bytes(whole[:size])
        refused(path)
    page = tmp_path / "page.html"
    page.write_text("<html>404</html>")
    assert "sectors" in refused(page)


def test_sources_that_are_no_files(tmp_path: Path) -> None:
    refused(tmp_path)
    refused("/dev/zero")
    refused(tmp_path / "missing", NotFoundError)
    refused("x" * 5000)
    refused("ftp://localhost/x", SpecError)
    refused("file:///etc/passwd", SpecError)
    refused("nbd://localhost/x", SpecError)
    refused("json:{}", NotFoundError)
    refused("http://127.0.0.1:1/x y", SpecError)
    refused("http://127.0.0.1:1/x", UnreachableError)
    for url in ("http://127.0.0.1:port/x", "http://[::1/x", "http:///x"):
        refused(url, SpecError)


def test_a_taken_name_is_refused_before_anything_is_fetched(good: Path) -> None:
    Images().import_(good, "one")
    with pytest.raises(ConflictError):
        Images().import_("http://127.0.0.1:1/x", "one")


@pytest.mark.parametrize("at", [4, 20, 100])
def test_headers_that_contradict_themselves(good: Path, at: int) -> None:
    head = bytearray(good.read_bytes()[:65536])
    struct.pack_into(">I", head, at, 0xFFFFFFF1)
    with pytest.raises(RefusedError):
        qcow2.parse_header(bytes(head))


class Site(http.server.BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        match self.path:
            case "/good" | "/short":
                self.send_response(200)
                self.send_header("Content-Length", str(len(self.body) + (self.path == "/short") * 512))
                self.end_headers()
                self.wfile.write(self.body)
            case "/huge":
                self.send_response(200)
                self.send_header("Content-Length", str(1 << 60))
                self.end_headers()
            case "/to-file" | "/to-ftp" | "/moved":
                self.send_response(302)
                where = {"/to-file": "file:///etc/passwd", "/to-ftp": "ftp://127.0.0.1:1/x", "/moved": "/good"}
                self.send_header("Location", where[self.path])
                self.end_headers()
            case _:
                self.send_error(404)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def site(good: Path) -> Iterator[str]:
    Site.body = good.read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_download(site: str, good: Path) -> None:
    seen: list[Event] = []
    digest = hashlib.sha256(good.read_bytes()).hexdigest()
    made = Images().import_(f"{site}/moved", "web", sha256=digest, reporter=seen.append)
    assert made.source == f"{site}/moved"
    assert [e.done for e in seen if isinstance(e, Advanced)][-1] == good.stat().st_size


def test_downloads_that_go_wrong(site: str) -> None:
    assert "404" in refused(f"{site}/none", NotFoundError)
    assert "cut off" in refused(f"{site}/short", EffectError)
    assert "space" in refused(f"{site}/huge")
    refused(f"{site}/to-file", UnreachableError)
    refused(f"{site}/to-ftp", SpecError)
    assert "checksum" in refused(f"{site}/good", sha256="0" * 64)
