"""A whole image as one file: a tar archive of its manifest and its files, which `vmkit image import` takes back.

Every file is compared with the digest in the manifest when it comes back, and its disk is looked at as any other. The
kernel and the saved memory in it are taken as they are: import archives from people whose kernels you would boot.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from vmkit.errors import RefusedError, SpecError
from vmkit.image import qcow2, store
from vmkit.image.examine import examine
from vmkit.image.manifest import Image, ImageFile, from_json, to_json
from vmkit.progress import Advanced, Finished, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.files import free_space
from vmkit.values import Bytes

MANIFEST: Final = "vmkit-image.json"
"""The first member."""
LIMIT: Final = 1 << 20
CHUNK: Final = 1 << 20
_AGAIN: Final = "fetch it again, or have it made again: vmkit image export"


def is_archive(path: Path) -> bool:
    """Whether a file is such an archive."""
    with path.open("rb") as f:
        head = f.read(512)
    # Layout: POSIX ustar, the name in the first 100 bytes and the magic at 257.
    return head[:100].rstrip(b"\0") == MANIFEST.encode() and head[257:262] == b"ustar"


def pack(image: Image, target: Path, reporter: Reporter = silent) -> None:
    """Write the archive of an image to `target`.

    Raises:
        OSError: it cannot be written.
    """
    seconds = stopwatch()
    reporter(Started("export", str(image.size)))
    text = to_json(image).encode()
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        reporter(Advanced("export", done, image.size))

    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as out:
        member = tarfile.TarInfo(MANIFEST)
        member.size = len(text)
        out.addfile(member, io.BytesIO(text))
        for file in image.files:
            member = tarfile.TarInfo(file.path.name)
            member.size = file.size
            with file.path.open("rb") as f:
                out.addfile(member, _Counted(f, advance))
    reporter(Finished("export", seconds(), str(Bytes(target.stat().st_size))))


class _Counted(io.RawIOBase):
    """A file that tells how much is read of it."""

    def __init__(self, source: IO[bytes], advance: Callable[[int], None]) -> None:
        self._source, self._advance = source, advance

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._advance(len(data))
        return data


def unpack(path: Path, folder: Path, reporter: Reporter = silent) -> Image:
    """Take the image out of an archive into an empty folder.

    Raises:
        RefusedError: it is damaged, a file has not the digest that the manifest says, or there is no room.
    """
    seconds = stopwatch()
    reporter(Started("unpack"))
    try:
        with tarfile.open(path, "r:") as source:
            image = _manifest(source, folder, path)
            if free_space(folder) < image.size:
                raise RefusedError(f"no space: {image.size} are needed in {folder.parent}", hint="free some: df -h")
            files = {file.path.name: file for file in image.files}
            while member := source.next():
                if (file := files.pop(member.name, None)) is None:
                    raise RefusedError(
                        f"{path.name} holds {member.name!r}, which its manifest does not name, or twice", hint=_AGAIN
                    )
                _take(source, member, file, path)
    except (tarfile.TarError, EOFError, ValueError) as e:
        raise RefusedError(f"{path.name} is damaged, or was cut off: {e}", hint=_AGAIN) from e
    if files:
        raise RefusedError(f"{path.name} lacks {', '.join(sorted(files))}; it was cut off", hint=_AGAIN)
    if image.disk:
        with image.disk.path.open("rb") as f:
            head = f.read(8)
        if not qcow2.is_qcow2(head):
            raise RefusedError(f"the disk in {path.name} is not qcow2", hint=_AGAIN)
        examine(image.disk.path)
    reporter(Finished("unpack", seconds(), str(image.size)))
    return image


def _manifest(source: tarfile.TarFile, folder: Path, path: Path) -> Image:
    member = source.next()
    data = source.extractfile(member) if member and member.isfile() and member.size <= LIMIT else None
    if member is None or member.name != MANIFEST or data is None:
        raise RefusedError(
            f"{path.name} does not begin with the manifest of an image",
            hint="vmkit image export makes archives that are taken; of others, unpack the disk and import that",
        )
    try:
        image = from_json(data.read().decode(), folder)
    except SpecError as e:
        raise RefusedError(f"the manifest in {path.name} is damaged: {e}", hint=_AGAIN) from e
    if len({f.path for f in image.files}) != len(image.files):
        raise RefusedError(f"the manifest in {path.name} names a file twice", hint=_AGAIN)
    return image


def _take(source: tarfile.TarFile, member: tarfile.TarInfo, file: ImageFile, path: Path) -> None:
    data = source.extractfile(member) if member.isfile() and member.size == file.size else None
    if data is None:
        raise RefusedError(f"{member.name} in {path.name} is not the file that the manifest names", hint=_AGAIN)
    with file.path.open("wb") as out:
        shutil.copyfileobj(data, out, CHUNK)
    if (got := store.describe(file.path).sha256) != file.sha256:
        raise RefusedError(
            f"the checksum of {member.name} in {path.name} is wrong: expected {file.sha256}, got {got}",
            hint=_AGAIN,
        )
