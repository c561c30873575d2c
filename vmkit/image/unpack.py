"""Disk images that come compressed: gzip, xz or bzip2."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from pathlib import Path
from typing import IO, Final

from vmkit.errors import RefusedError
from vmkit.progress import Advanced, Finished, Reporter, Started
from vmkit.system.clock import stopwatch
from vmkit.system.files import free_space
from vmkit.values import Bytes

CHUNK: Final = 1 << 20
_SPARE: Final = 256 << 20
"""Bytes that are left free on the file system."""

_PACKED: Final = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
_REFUSED: Final = {b"\x28\xb5\x2f\xfd": "unzstd", b"PK\x03\x04": "unzip"}


def plain(path: Path, target: Path, reporter: Reporter) -> Path:
    """The file itself, or what is in it, unpacked to `target`. Holes stay holes.

    Raises:
        RefusedError: damaged, compressed in another way, or there is no room for it.
    """
    with path.open("rb") as f:
        head = f.read(8)
    for magic, program in _REFUSED.items():
        if head.startswith(magic):
            raise RefusedError(f"{path.name} is compressed", hint=f"unpack it first: {program}")
    packing = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if packing is None:
        return path
    seconds = stopwatch()
    reporter(Started("unpack", packing))
    try:
        with _opened(path, packing) as source, target.open("wb") as out:
            done = _copy(source, out, target, reporter)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError) as e:
        raise RefusedError(f"{path.name} is damaged, or was cut off: {e}", hint="fetch it again") from e
    reporter(Finished("unpack", seconds(), str(Bytes(done))))
    return target


def _opened(path: Path, packing: str) -> gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File:
    match packing:
        case "gzip":
            return gzip.GzipFile(path)
        case "xz":
            return lzma.LZMAFile(path)
        case _:
            return bz2.BZ2File(path)


def _copy(source: gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File, out: IO[bytes], target: Path, reporter: Reporter) -> int:
    done = 0
    while chunk := source.read(CHUNK):
        if free_space(target.parent) < _SPARE:  # a small file may unpack to anything
            raise RefusedError(
                f"no space: what is in it is larger than {Bytes(done)}", hint=f"free some: df -h {target.parent}"
            )
        if chunk.count(0) == len(chunk):
            out.seek(len(chunk), 1)
        else:
            out.write(chunk)
        done += len(chunk)
        reporter(Advanced("unpack", done))
    out.truncate(done)
    return done
