"""What labs of nested hosts keep between their runs: host images, saved machines, an older QEMU. One folder each.

A folder appears by one rename when everything in it is complete; while it is made its name begins with a dot.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from vmkit.errors import ConflictError, RefusedError
from vmkit.system.files import ensure_dir, free_space, home, locked, sync_dir
from vmkit.values import Bytes

WAIT: Final = 3600.0
"""Seconds that one process waits for another that makes the same thing."""
_NEW: Final = ".new-"
_SYSTEM: Final = Path("/var/lib/vmkit/cache/lab")


@dataclass(frozen=True, slots=True)
class Cached:
    """One thing in the cache.

    Attributes:
        name: 'image-3f9a2c51b0d7', 'booted-...' or 'qemu-...'.
        kind: the word before the dash.
        size: bytes on disk; `size_text` is the same for people.
        created: UTC, ISO 8601.
        used_by: labs that stand on it.
        path: its folder.
    """

    name: str
    kind: str
    size: Bytes
    created: str
    used_by: tuple[str, ...]
    path: Path
    size_text: str


def root() -> Path:
    """The folder of the cache; it may not exist."""
    return (home() / "cache" / "lab").resolve()


def find(name: str) -> Path | None:
    """The folder of a thing that is complete: in this user's cache, or in that of the machine."""
    return next((folder / name for folder in (root(), _SYSTEM) if (folder / name).is_dir()), None)


def make(name: str, needs: int, fill: Callable[[Path], None]) -> Path:
    """The folder of a thing; `fill` makes it in an empty folder if it is not there. Others that want it wait.

    Args:
        name: of the thing.
        needs: bytes that it takes on disk at most.
        fill: raises if it fails; then nothing is left.

    Raises:
        RefusedError: no space.
        ConflictError: another process has been making it for an hour.
    """
    if there := find(name):
        return there
    base = ensure_dir(root())
    with locked(base / f".{name}.lock", busy=f"another process is still making {name}", wait=WAIT):
        if there := find(name):
            return there
        sweep(name)
        if (free := free_space(base)) < needs:
            raise RefusedError(
                f"{name} needs {Bytes(needs)} in {base}, and {Bytes(free)} are free",
                hint="remove what is not used: vmkit lab prune; or set VMKIT_HOME to a folder on another disk",
            )
        half = ensure_dir(base / f"{_NEW}{name}~{secrets.token_hex(4)}", 0o700)
        try:
            fill(half)
            half.rename(base / name)
            sync_dir(base)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return base / name


def sweep(name: str) -> None:
    """Remove what a killed process left half made. The caller holds the lock of that name."""
    for half in root().glob(f"{_NEW}{name}~*"):
        shutil.rmtree(half, ignore_errors=True)


def sweep_all() -> None:
    """The same for everything that nobody makes at this moment."""
    for half in root().glob(f"{_NEW}*"):
        name = half.name.removeprefix(_NEW).rpartition("~")[0]
        with contextlib.suppress(ConflictError), locked(root() / f".{name}.lock", busy="it is being made"):
            sweep(name)


def entries(used: dict[str, tuple[str, ...]]) -> list[Cached]:
    """Everything in this user's cache, by name. `used` says which labs stand on what."""
    found = []
    for path in sorted(root().glob("[a-z]*-*")):
        with contextlib.suppress(FileNotFoundError):
            made = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
            kind = path.name.partition("-")[0]
            size = _size(path)
            found.append(Cached(path.name, kind, size, made, used.get(path.name, ()), path, str(size)))
    return found


def remove(entry: Cached) -> bool:
    """Remove one; False if another process makes one of that name."""
    try:
        with locked(root() / f".{entry.name}.lock", busy="it is being made"):
            gone = root() / f"{_NEW}{entry.name}~{secrets.token_hex(4)}"
            entry.path.rename(gone)
            shutil.rmtree(gone)
            (root() / f".{entry.name}.lock").unlink(missing_ok=True)
    except ConflictError:
        return False
    return True


def _size(folder: Path) -> Bytes:
    return Bytes(sum(f.lstat().st_blocks * 512 for f in _files(folder)))


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())
