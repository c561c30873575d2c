"""The pure parts of the micro builder: archive, module order, package fields."""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from vmkit.errors import UnsupportedError
from vmkit.image.cpio import Node, archive, with_parents
from vmkit.image.modules import load_order, module_name, parse_dependencies, unpacked, unsigned
from vmkit.image.packages import dependencies

DEP = """\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
"""


def test_archive_is_the_same_each_time_and_aligned() -> None:
    nodes = with_parents([Node.file("a/b/c", b"12345", 0o755), Node.link("a/l", "b/c")])
    data = archive(nodes)
    assert data == archive(nodes)
    assert len(data) % 512 == 0
    assert [n.path for n in nodes] == ["a", "a/b", "a/b/c", "a/l"]
    assert data.startswith(b"070701")


@pytest.mark.skipif(shutil.which("cpio") is None, reason="checks against the cpio program, which is not installed")
def test_archive_is_read_by_cpio(tmp_path: Path) -> None:
    nodes = with_parents([Node.file("bin/x", b"\0" * 513, 0o755), Node.link("bin/l", "x"), Node.folder("e", 0o1777)])
    subprocess.run(["cpio", "-id", "--quiet"], input=archive(nodes), cwd=tmp_path, check=True)
    assert (tmp_path / "bin/x").read_bytes() == b"\0" * 513
    assert (tmp_path / "bin/x").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bin/l").readlink() == Path("x")
    assert (tmp_path / "e").stat().st_mode & 0o1777 == 0o1777


def test_device_nodes_need_no_root() -> None:
    data = archive([Node.character_device("dev/console", 5, 1)])
    assert data[14:22] == b"00002180"  # S_IFCHR | 0600
    assert data[78:94] == b"0000000500000001"


def test_modules_load_after_what_they_need() -> None:
    order = load_order(["virtio_pci", "virtio-rng", "button"], parse_dependencies(DEP), ["kernel/acpi/button.ko"])
    names = [module_name(p) for p in order]
    assert names == ["virtio", "virtio_ring", "virtio_pci", "virtio_rng"]


def test_a_missing_module_is_named_unless_it_is_optional() -> None:
    with pytest.raises(UnsupportedError, match="e1000"):
        load_order(["e1000"], parse_dependencies(DEP), [])
    assert load_order([], parse_dependencies(DEP), [], ["e1000", "virtio"]) == ["kernel/drivers/virtio/virtio.ko"]


def test_modules_are_unpacked_and_their_signature_removed() -> None:
    body = b"\x7fELF" + b"m" * 100
    signature = b"s" * 40
    signed = body + signature + bytes(8) + struct.pack(">I", len(signature)) + b"~Module signature appended~\n"
    assert unsigned(signed) == body
    assert unsigned(body) == body
    assert unsigned(unpacked("a.ko.xz", lzma.compress(signed))) == body
    assert unpacked("a.ko", body) == body
    with pytest.raises(UnsupportedError):
        unpacked("a.ko.lzo", body)


def test_dependencies_from_a_package_field() -> None:
    text = "libc6 (>= 2.34), libglib2.0-0t64 | libglib2.0-0, python3:any, linux-image-6.1.0-56-cloud-amd64 (= 6.1)"
    assert dependencies(text) == ["libc6", "libglib2.0-0t64", "python3", "linux-image-6.1.0-56-cloud-amd64"]
    assert dependencies("") == []
    assert dependencies("$(rm), -x") == []
