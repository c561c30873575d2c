"""Removing what nobody needs: unfinished downloads, blobs of no image, files in a host's pool that no VM uses."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmkit.errors import ConflictError, RefusedError
from vmkit.image import blobs, download, store, usage
from vmkit.image.place import POOL
from vmkit.progress import Note, Reporter, silent
from vmkit.system import journal
from vmkit.system.files import locked
from vmkit.values import Bytes

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that nobody needs.

    Attributes:
        kind: 'download', 'half' (of an image), 'blob', 'image', or 'volume' (of a host's pool).
        name: of the image or volume; of other things their file's name.
        where: folder, or URI of the host.
        size: bytes that it takes, without what it shares with others.
        reason: why it may go.
        size_text: the size for people.
    """

    kind: str
    name: str
    where: str
    size: Bytes
    reason: str
    size_text: str


def on_this_machine() -> list[Leftover]:
    """What vmkit keeps here and nobody needs. What another process works on is left out."""
    parts = [p for p in sorted(download.folder().glob("*.part")) if _free(p.with_suffix(".lock"))]
    found = [_leftover("download", part, "it was cut off") for part in parts]
    found += [_leftover("half", folder, "making or deleting an image was cut off") for folder in _halves()]
    found += [_leftover("blob", path, "no image has it") for path in blobs.unused(store.digests())]
    return found


def on_host(host: Host) -> list[Leftover]:
    """Files of images in the pool of a host that no VM uses. They come back when a VM needs them."""
    seen = usage.survey(host)
    found = usage.unused(seen)
    return [
        Leftover("volume", name, host.uri, size := Bytes(seen.volumes[name].size), why, str(size))
        for name, why in sorted(found.items())
    ]


def images(host: Host) -> list[Leftover]:
    """Images of this machine's store that no VM of a host was made from."""
    there = store.readable()
    used = {use.image for use in usage.uses(usage.survey(host), there)}
    return [
        Leftover("image", i.name, str(store.root()), i.size, f"no VM on {host.uri} uses it", str(i.size))
        for i in there
        if i.name not in used
    ]


def remove(found: list[Leftover], host: Host | None, reporter: Reporter = silent) -> list[Leftover]:
    """Remove them; returns what is gone.

    Raises:
        ConflictError: files of a host's pool are among them, and an operation of vmkit's is under way, which may be
            about to use one.
    """
    if any(entry.kind == "volume" for entry in found) and (busy := [r.id for r in journal.records() if not r.orphaned]):
        raise ConflictError(
            f"files of the pool are not removed while an operation is under way: {', '.join(busy)}",
            hint="run it again when that has ended: vmkit jobs",
        )
    gone = []
    for entry in found:
        try:
            if _remove(entry, host):
                gone.append(entry)
        except RefusedError as e:
            reporter(Note(f"{entry.name} stays: {e.message}", warning=True))
    return gone


def _remove(entry: Leftover, host: Host | None) -> bool:
    path = Path(entry.where) / entry.name
    match entry.kind:
        case "volume":
            return host is not None and host.pool(POOL).delete(entry.name)
        case "image":
            store.delete(entry.name)
            return True
        case "half":
            shutil.rmtree(path, ignore_errors=True)
        case "blob":
            path.unlink(missing_ok=True)
        case "download":
            lock = path.with_suffix(".lock")
            with locked(lock, busy="it is being fetched"):
                for part in (path, path.with_suffix(".json"), lock):
                    part.unlink(missing_ok=True)
    return not path.exists()


def _halves() -> Iterator[Path]:
    """Folders of images that were being made or deleted, and no operation in the journal speaks of."""
    known = {str(r.data.get("folder")) for r in journal.records("image")}
    for mark in (store.NEW, store.GONE):
        for folder in sorted(store.root().glob(f"{mark}*")):
            name = folder.name.removeprefix(mark).partition("~")[0]
            if str(folder) not in known and _free(store.root() / f".{name}.lock"):
                yield folder


def _free(lock: Path) -> bool:
    if not lock.exists():
        return True
    with contextlib.suppress(ConflictError), locked(lock, busy="in use"):
        return True
    return False


def _leftover(kind: str, path: Path, reason: str) -> Leftover:
    size = Bytes(_alone(path))
    return Leftover(kind, path.name, str(path.parent), size, reason, str(size))


def _alone(path: Path) -> int:
    """Bytes that go with a file or folder: without files that have links elsewhere."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(s.st_blocks * 512 for p in files if (s := p.lstat()).st_nlink == 1)
