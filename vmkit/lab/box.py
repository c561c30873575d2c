"""A Vagrant box for the libvirt provider, made from the disk of a nested KVM host.

The disk gets the account that Vagrant logs in with, written into its file system by debugfs(8): nothing is mounted, and
nothing else on the disk is changed. It has no boot loader, so the box says where the kernel is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkit.errors import EffectError
from vmkit.lab.box_files import USER, Edit, debugfs_script, edits, versions_of
from vmkit.progress import Finished, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.files import ensure_dir, write_atomic
from vmkit.system.process import find_program, run
from vmkit.system.templates import template

NAME: Final = "vmkit/kvm-host"
RECIPE: Final = "1"
"""Part of a box's key: to be changed with what this module writes into a box."""
READ: Final = ("passwd", "shadow", "group", "gshadow")
SIZE_GIB: Final = 16
"""Of a box's disk. It takes only the room that is used."""


@dataclass(frozen=True, slots=True)
class Source:
    """The host that a box is made from.

    Attributes:
        disk: raw image, an ext4 file system without partitions, /dev/vda to the host.
        kernel: its kernel.
        initrd: its initramfs.
        cmdline: kernel command line that boots it.
        digest: changes whenever one of the files does.
    """

    disk: Path
    kernel: Path
    initrd: Path
    cmdline: str
    digest: str


@dataclass(frozen=True, slots=True)
class Made:
    """A box in a file of its own, with the catalogue that `vagrant box add` reads."""

    version: str
    catalogue: Path
    box: Path


def key_of(source: Source, public_keys: tuple[str, ...]) -> str:
    """What a box of this source holds, in 64 hexadecimal digits: equal keys, equal boxes."""
    files = sorted(p for p in template("vagrant").iterdir() if p.is_file())
    parts = [RECIPE, source.digest, source.cmdline, *public_keys, *(p.read_text() for p in files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def installed(boxes: Path, key: str) -> str | None:
    """The version of the newest box that Vagrant has in its folder `boxes`, if it was made with this key.

    An older one with the key does not count: `vagrant up` takes the newest.
    """
    there = _boxes(boxes)
    newest = next(iter(versions_of(there)), None)
    return newest if newest and there[newest] == key else None


def keys_in(boxes: Path) -> set[str]:
    """The keys of all versions of the box that Vagrant has."""
    return set(_boxes(boxes).values())


def _boxes(boxes: Path) -> dict[str, str]:
    """Version of each box of ours -> its key."""
    found = {}
    for metadata in (boxes / NAME.replace("/", "-VAGRANTSLASH-")).glob("*/**/metadata.json"):
        with contextlib.suppress(ValueError, OSError):
            version = metadata.relative_to(boxes).parts[1]
            found[version] = str(json.loads(metadata.read_text()).get("vmkit", ""))
    return found


def kernel_files(folder: Path, key: str) -> tuple[Path, Path]:
    """Where kernel and initramfs of a box with this key are, below libvirt's own folder."""
    return folder / f"vmkit-{key[:16]}.vmlinuz", folder / f"vmkit-{key[:16]}.initrd"


def place_kernel(source: Source, folder: Path, key: str) -> tuple[Path, Path]:
    """Put kernel and initramfs where QEMU may read them; nothing is done if they are there.

    Raises:
        RefusedError: not permitted, or no space.
    """
    ensure_dir(folder, 0o711)
    placed = kernel_files(folder, key)
    for file, target in zip((source.kernel, source.initrd), placed, strict=True):
        if not target.exists():
            write_atomic(target, file.read_bytes())
    return placed


def make(
    source: Source,
    folder: Path,
    *,
    version: str,
    key: str,
    public_keys: tuple[str, ...],
    kernel: Path,
    initrd: Path,
    reporter: Reporter = silent,
) -> Made:
    """Make a box and its catalogue in `folder`, which is emptied first.

    Args:
        source: the host; its files are only read.
        folder: where; needs room for the disk twice while it is made.
        version: of the box, numbers with dots.
        key: from `key_of`.
        public_keys: of Vagrant's well-known key pairs, in the form of authorized_keys. Vagrant replaces them by a new
            one when it first logs in.
        kernel: where QEMU will find the kernel.
        initrd: and the initramfs.
        reporter: told of each step.

    Raises:
        EffectError: a program failed, or the disk is not as expected.
    """
    find_program("qemu-img", package="qemu-utils")
    shutil.rmtree(folder, ignore_errors=True)
    scratch = ensure_dir(folder / "scratch")
    disk = scratch / "disk.raw"
    with _step(reporter, "box disk", f"a copy with the account '{USER}'"):
        run(["cp", "--sparse=always", "--reflink=auto", source.disk, disk], timeout=600)
        size = max(disk.stat().st_size, SIZE_GIB * 2**30)
        os.truncate(disk, size)
        _tool(["e2fsck", "-f", "-p", disk])  # resize2fs asks for it
        _tool(["resize2fs", disk])
        _write(disk, edits({name: _read(disk, name) for name in READ}, public_keys, _host_key(scratch)), scratch)
    with _step(reporter, "compress", "to qcow2"):
        image = scratch / "box.img"
        form = ("-c", "-W", "-m", "8", "-o", "compression_type=zstd", "-f", "raw", "-O", "qcow2")
        run(["qemu-img", "convert", *form, disk, image], timeout=1800)
    disk.unlink()
    with _step(reporter, "pack", NAME):
        metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": -(-size // 2**30), "vmkit": key}
        boot = {"kernel": str(kernel), "initrd": str(initrd), "cmdline": source.cmdline}
        (scratch / "metadata.json").write_text(json.dumps(metadata, indent=1))
        (scratch / "boot.json").write_text(json.dumps(boot, indent=1))
        shutil.copyfile(template("vagrant/Vagrantfile"), scratch / "Vagrantfile")
        box = folder / "kvm-host.box"
        with tarfile.open(box, "w") as tar:
            for name in ("metadata.json", "Vagrantfile", "boot.json", "box.img"):
                tar.add(scratch / name, name)
        shutil.rmtree(scratch)
    catalogue = folder / "catalogue.json"
    catalogue.write_text(json.dumps(_catalogue(version, box), indent=1))
    return Made(version, catalogue, box)


def _catalogue(version: str, box: Path) -> dict[str, object]:
    """What `vagrant box add` reads; a box that is added without one has no version."""
    provider = {"name": "libvirt", "url": box.as_uri()}
    return {
        "name": NAME,
        "description": "A Debian host for KVM guests, made by vmkit's scripts/build-box",
        "versions": [{"version": version, "providers": [provider]}],
    }


def _host_key(scratch: Path) -> tuple[str, str]:
    """A fresh key pair for sshd: the private part and the public one."""
    path = scratch / "host_key"
    keygen = find_program("ssh-keygen", package="openssh-client")
    run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", "vmkit box", "-f", path])
    return path.read_text(), path.with_suffix(".pub").read_text()


def _read(disk: Path, name: str) -> str:
    text = _tool(["debugfs", "-R", f"cat /etc/{name}", disk])
    if "root:" not in text:
        raise EffectError(f"the disk {disk} has no /etc/{name}", hint="build it anew: scripts/build-box --force")
    return text


def _write(disk: Path, changes: list[Edit], scratch: Path) -> None:
    """Carry out the edits; debugfs's exit status says nothing, so what it wrote is read back."""
    folder = ensure_dir(scratch / "edits")
    for number, edit in enumerate(changes):
        (folder / str(number)).write_text(edit.content)
    script = folder / "script"
    script.write_text(debugfs_script(changes, folder))
    _tool(["debugfs", "-w", "-f", script, disk])
    for edit in changes:
        if edit.is_file and _tool(["debugfs", "-R", f"cat {edit.path}", disk]) != edit.content:
            raise EffectError(
                f"debugfs did not write {edit.path} into the box's disk",
                hint="build it again: scripts/build-box --force",
            )
    _tool(["e2fsck", "-f", "-n", disk])


def _tool(argv: list[str | Path]) -> str:
    """What one of e2fsprogs' programs prints; they are not on the PATH of every user."""
    return run([find_program(str(argv[0]), package="e2fsprogs"), *argv[1:]], timeout=600).stdout


@contextmanager
def _step(reporter: Reporter, step: str, text: str) -> Iterator[None]:
    reporter(Started(step, text))
    seconds = stopwatch()
    yield
    reporter(Finished(step, seconds(), text))
