"""The builder of the bench image: the micro guest with the generic kernel, and on its disk the programs that measure.

The disk holds the programs with every library they need, the C library included, so that the same files run in the
guest and on the host: `command` says how.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vmkit.errors import UnsupportedError
from vmkit.image import micro, packages
from vmkit.image.manifest import Image
from vmkit.progress import Reporter, silent
from vmkit.system.files import ensure_dir
from vmkit.system.process import find_program, run
from vmkit.values import Bytes

NAME: Final = "bench"
PROGRAMS: Final = ("stress-ng", "sysbench", "fio", "iperf3")
"""Each the name of a Debian package as well."""

FOLDER: Final = "bench"
"""Folder of the disk's root that holds them."""
LOADER: Final = "ld-linux-x86-64.so.2"
DISK_SIZE: Final = Bytes.parse("256M")
MIN_MEMORY: Final = Bytes.parse("256M")


def build(name: str = NAME, *, force: bool = False, reporter: Reporter = silent) -> Image:
    """Build the image; see `vmkit.image.api.Images.build_bench`."""
    find_program("debugfs", package="e2fsprogs")

    def fill(scratch: Path) -> tuple[Path, Bytes]:
        with micro.step(reporter, "programs", " ".join(PROGRAMS)):
            return _tree(ensure_dir(scratch / "programs")), DISK_SIZE

    return micro.build(
        name, kernel=micro.Kernel.GENERIC, fill=fill, min_memory=MIN_MEMORY, force=force, reporter=reporter
    )


def command(folder: str, program: str, arguments: Sequence[str]) -> list[str]:
    """How a program of the image is run where its folder is `folder`: by the loader that came with it."""
    return [f"{folder}/{LOADER}", "--library-path", folder, f"{folder}/{program}", *arguments]


def unpack(image: Image, folder: Path) -> None:
    """Take the programs out of an image's disk, for use on this machine: afterwards they are in `folder`/FOLDER.

    Raises:
        UnsupportedError: the image has no such disk, or a program for this is missing.
        EffectError: a step failed.
    """
    if image.disk is None:
        raise UnsupportedError(f"the image '{image.name}' has no disk with programs", hint="vmkit image build bench")
    raw = folder / "disk.raw"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image.disk.path, raw], timeout=300)
    # debugfs reads an ext4 file system without mounting it, and so without root.
    run([find_program("debugfs", package="e2fsprogs"), "-R", f"rdump /{FOLDER} {folder}", raw], timeout=300)
    raw.unlink()
    missing = [p for p in (*PROGRAMS, LOADER) if not (folder / FOLDER / p).exists()]
    if missing:
        raise UnsupportedError(
            f"the image '{image.name}' lacks {', '.join(missing)}", hint="vmkit image build bench --force"
        )


def _tree(scratch: Path) -> Path:
    """The folder that becomes the disk: programs and libraries side by side in FOLDER."""
    root = packages.unpack(packages.with_libraries(PROGRAMS), scratch)
    base = ensure_dir(scratch / "disk")
    target = ensure_dir(base / FOLDER)
    for program in PROGRAMS:
        shutil.copy2(root / "usr/bin" / program, target / program)
        for library in packages.needed(root / "usr/bin" / program, root):
            shutil.copy2(library.resolve(), target / library.name)
    return base
