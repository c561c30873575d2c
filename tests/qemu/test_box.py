"""A Vagrant box is made of a small disk, taken apart again, and everything is on it as it should be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vmkit.errors import EffectError
from vmkit.lab import box
from vmkit.system.process import find_program, run

MIB = 2**20


def tool(*argv: str | Path) -> str:
    return run([find_program(str(argv[0]), package="e2fsprogs"), *argv[1:]]).stdout


def disk_of(tree: Path, disk: Path) -> Path:
    with disk.open("wb") as f:
        f.truncate(64 * MIB)
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", tree, disk)
    return disk


@pytest.fixture
def source(tmp_path: Path) -> box.Source:
    tree = tmp_path / "tree"
    for folder in ("etc/ssh", "etc/sudoers.d", "home", "root"):
        (tree / folder).mkdir(parents=True)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (tree / "etc/shadow").write_text("root:*:19000:0:99999:7:::\n")
    (tree / "etc/group").write_text("root:x:0:\nshadow:x:42:\nkvm:x:106:\n")
    (tree / "etc/gshadow").write_text("root:*::\n")
    (tree / "etc/hostname").write_text("kvm-host\n")
    (tmp_path / "kernel").write_bytes(b"kernel")
    (tmp_path / "initrd").write_bytes(b"initrd")
    disk = disk_of(tree, tmp_path / "disk.raw")
    return box.Source(disk, tmp_path / "kernel", tmp_path / "initrd", "root=/dev/vda quiet", "digest")


def make(source: box.Source, folder: Path) -> box.Made:
    kernel, initrd = box.kernel_files(Path("/boot-of-libvirt"), "k" * 64)
    return box.make(
        source, folder, version="1.2", key="k" * 64, public_keys=("ssh-rsa AAAA",), kernel=kernel, initrd=initrd
    )


def test_box_holds_the_disk_with_the_account(source: box.Source, tmp_path: Path) -> None:
    before = source.disk.read_bytes()
    made = make(source, tmp_path / "box")
    assert source.disk.read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "box").iterdir()) == ["catalogue.json", "kvm-host.box"]

    out = tmp_path / "out"
    out.mkdir()
    run(["tar", "-xf", made.box, "-C", out])
    assert sorted(p.name for p in out.iterdir()) == ["Vagrantfile", "boot.json", "box.img", "metadata.json"]
    metadata = json.loads((out / "metadata.json").read_text())
    assert metadata == {"provider": "libvirt", "format": "qcow2", "virtual_size": box.SIZE_GIB, "vmkit": "k" * 64}
    boot = json.loads((out / "boot.json").read_text())
    assert boot["cmdline"] == "root=/dev/vda quiet"
    assert boot["kernel"] == "/boot-of-libvirt/vmkit-kkkkkkkkkkkkkkkk.vmlinuz"
    catalogue = json.loads(made.catalogue.read_text())
    assert catalogue["name"] == box.NAME
    assert catalogue["versions"][0]["providers"][0]["url"] == made.box.as_uri()

    raw = tmp_path / "raw"
    run(["qemu-img", "convert", "-O", "raw", out / "box.img", raw])
    assert raw.stat().st_size == box.SIZE_GIB * 2**30
    tool("e2fsck", "-f", "-n", raw)

    def stat(path: str) -> tuple[str, str, str]:
        found = re.search(
            r"Mode:\s+(\d+).*?User:\s+(\d+)\s+Group:\s+(\d+)", tool("debugfs", "-R", f"stat {path}", raw), re.DOTALL
        )
        assert found, path
        return found[1], found[2], found[3]

    def cat(path: str) -> str:
        return tool("debugfs", "-R", f"cat {path}", raw)

    assert stat("/home/vagrant") == ("0755", "1000", "1000")
    assert stat("/home/vagrant/.ssh") == ("0700", "1000", "1000")
    assert stat("/home/vagrant/.ssh/authorized_keys") == ("0600", "1000", "1000")
    assert stat("/etc/shadow") == ("0640", "0", "42")
    assert stat("/etc/sudoers.d/vagrant") == ("0440", "0", "0")
    assert cat("/home/vagrant/.ssh/authorized_keys") == "ssh-rsa AAAA\n"
    assert "vagrant:x:1000:1000:" in cat("/etc/passwd")
    assert "kvm:x:106:vagrant" in cat("/etc/group")
    assert "PRIVATE KEY" in cat("/etc/ssh/ssh_host_ed25519_key")
    assert cat("/etc/machine-id") == ""
    assert cat("/etc/hostname") == "vmkit\n"


def test_a_disk_without_accounts_is_no_host(source: box.Source, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "etc").mkdir(parents=True)
    bare = box.Source(disk_of(empty, tmp_path / "bare.raw"), source.kernel, source.initrd, "", "d")
    with pytest.raises(EffectError, match="has no /etc/passwd"):
        make(bare, tmp_path / "box")


def test_kernel_is_put_where_qemu_may_read_it(source: box.Source, tmp_path: Path) -> None:
    kernel, initrd = box.place_kernel(source, tmp_path / "boot", "a" * 64)
    assert (kernel.read_bytes(), initrd.read_bytes()) == (b"kernel", b"initrd")
    assert kernel.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "boot").stat().st_mode & 0o777 == 0o711
    inode = kernel.stat().st_ino
    assert box.place_kernel(source, tmp_path / "boot", "a" * 64) == (kernel, initrd)
    assert kernel.stat().st_ino == inode
