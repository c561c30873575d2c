"""The builder of the bench image: the micro guest with the generic kernel, and on its disk the programs that measure.

The disk holds the programs with every library they need, the C library included, so that the same files run in the
guest and on the host: `command` says how. For the host they are beside the disk in an archive as well, since reading
an ext4 file system without root takes a program that not every host has.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vmkit.errors import UnsupportedError
from vmkit.image import micro, packages
from vmkit.image.manifest import Image
from vmkit.progress import Reporter, silent
from vmkit.system.files import ensure_dir
from vmkit.values import Bytes

NAME: Final = "bench"
PROGRAMS: Final = ("stress-ng", "sysbench", "fio", "iperf3")
"""Each the name of a Debian package as well."""

VF_DRIVERS: Final = ("mlx5_core", "bnxt_en")
"""Of virtual functions, beside those that every such image has (igbvf, ixgbevf, iavf): 5 MB and 1 MB."""

FOLDER: Final = "bench"
"""Folder of the disk's root that holds them."""
ARCHIVE: Final = "programs.tar.gz"
"""The same folder, beside the image's disk."""
LOADER: Final = "ld-linux-x86-64.so.2"
DISK_SIZE: Final = Bytes.parse("256M")
MIN_MEMORY: Final = Bytes.parse("256M")


def build(name: str = NAME, *, force: bool = False, reporter: Reporter = silent) -> Image:
    """Build the image; see `vmkit.image.api.Images.build_bench`."""

    def fill(folder: Path, scratch: Path) -> micro.Content:
        with micro.step(reporter, "programs", " ".join(PROGRAMS)):
            tree = _tree(ensure_dir(scratch / "programs"))
            with tarfile.open(folder / ARCHIVE, "w:gz", compresslevel=1) as archive:
                archive.add(tree / FOLDER, FOLDER)
            return micro.Content(tree, DISK_SIZE, folder / ARCHIVE)

    return micro.build(
        name,
        kernel=micro.Kernel.GENERIC,
        fill=fill,
        more_drivers=VF_DRIVERS,
        min_memory=MIN_MEMORY,
        force=force,
        reporter=reporter,
    )


def command(folder: str, program: str, arguments: Sequence[str]) -> list[str]:
    """How a program of the image is run where its folder is `folder`: by the loader that came with it."""
    return [f"{folder}/{LOADER}", "--library-path", folder, f"{folder}/{program}", *arguments]


def unpack(image: Image, folder: Path) -> None:
    """Take the programs out of an image, for use on this machine: afterwards they are in `folder`/FOLDER.

    Raises:
        UnsupportedError: it has none, or they are damaged.
    """
    hint = "vmkit image build bench --force"
    if image.programs is None:
        raise UnsupportedError(f"the image '{image.name}' holds no programs that measure", hint=hint)
    try:
        target = ensure_dir(folder / FOLDER)
        # By hand: the safe filter of extractall came with Python 3.11.4, and Debian 12 has 3.11.2.
        with tarfile.open(image.programs.path) as content:
            for member in content:
                if member.isfile() and (data := content.extractfile(member)):
                    path = target / Path(member.name).name
                    with path.open("wb") as out:
                        shutil.copyfileobj(data, out)
                    path.chmod(0o755)
    except (tarfile.TarError, OSError, EOFError) as e:
        raise UnsupportedError(f"the programs of the image '{image.name}' cannot be unpacked: {e}", hint=hint) from e
    if missing := [p for p in (*PROGRAMS, LOADER) if not (folder / FOLDER / p).exists()]:
        raise UnsupportedError(f"the image '{image.name}' lacks {', '.join(missing)}", hint=hint)


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
