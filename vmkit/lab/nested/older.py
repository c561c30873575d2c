"""QEMU 7.2, for the hosts whose guests live on no newer one where QEMU emulates the CPU."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from vmkit.image.tree import check_builder, debootstrap
from vmkit.lab import cache
from vmkit.lab.nested import emulator
from vmkit.lab.nested.hardware import Engine
from vmkit.progress import Finished, Reporter
from vmkit.system.clock import stopwatch
from vmkit.values import Bytes

VERSION: Final = (7, 2)
_SUITE: Final = "bookworm"
_NEEDS: Final = Bytes.parse("1G")
_GLIBC = re.compile(r"(ld-linux|libc|libm|libdl|libpthread|librt|libresolv|libutil|libanl|libnss_\w+|libmvec)[-.].*")


def engine(purpose: str, reporter: Reporter) -> Engine:
    """QEMU 7.2 of Debian 12, unpacked beside everything and run in place.

    It finds its firmware and modules by its own path. Its libraries come along, but not the C library: a newer one
    runs older programs, and the dynamic linker has to be of the same build.

    Args:
        purpose: what wants it, for the error where it cannot be fetched: "shadow paging".
        reporter: told of the fetching.

    Raises:
        RefusedError: it has to be fetched, and that needs root or space.
        EffectError: that failed.
    """
    name = f"qemu-{_SUITE}"
    folder = cache.find(name)
    if folder is None:
        check_builder(f"the older QEMU that {purpose} wants")
        folder = cache.make(name, _NEEDS, lambda half: _unpack(half, reporter))
    binary = folder / "root/usr/bin" / emulator.BINARY
    env = {"LD_LIBRARY_PATH": str(folder / "libraries")}
    return Engine(binary, emulator.version(binary, env), "tcg", folder / "libraries")


def _unpack(folder: Path, reporter: Reporter) -> None:
    seconds = stopwatch()
    tree, libraries = folder / "root", folder / "libraries"
    options = ["--variant=extract"]
    debootstrap(_SUITE, ("qemu-system-x86",), tree, options, folder / "log", reporter, "QEMU 7.2")
    libraries.mkdir()
    for library in (tree / "usr/lib/x86_64-linux-gnu", tree / "lib/x86_64-linux-gnu"):
        for path in library.glob("*.so*") if library.is_dir() else ():
            if not _GLIBC.match(path.name) and not (libraries / path.name).exists():
                shutil.copyfile(path, libraries / path.name)  # follows links, which are relative to the tree
    (folder / "log").unlink()
    folder.chmod(0o755)
    reporter(Finished("QEMU 7.2", seconds(), f"Debian {_SUITE}"))
