"""Files of images by their content: HOME/blobs has a hard link to each, named by its SHA-256.

So two images with the same kernel, or one disk imported twice, take their space once. The link in an image's folder is
enough for the image: a blob that is missing does no harm, and one that no image names may go at any time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Collection
from pathlib import Path

from vmkit.image.manifest import ImageFile
from vmkit.system.files import ensure_dir, home


def root() -> Path:
    """The folder; it may not exist."""
    return home() / "blobs"


def share(file: ImageFile) -> None:
    """Make the file of an image share its bytes with any other that has the same content.

    Where the file system has no hard links, nothing happens.
    """
    blob = ensure_dir(root(), 0o711) / file.sha256
    with contextlib.suppress(OSError):
        if blob.exists() and blob.stat().st_size == file.size:
            if not blob.samefile(file.path):
                link(blob, file.path)
        else:
            blob.unlink(missing_ok=True)
            os.link(file.path, blob)


def link(source: Path, target: Path) -> None:
    """Make `target`, which may be there, a hard link to `source`, at one moment.

    Raises:
        OSError: the file system cannot.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    os.link(source, temporary)
    try:
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # rename(2) leaves it where both are the same file


def unused(wanted: Collection[str]) -> list[Path]:
    """Blobs whose digest is not one of `wanted`."""
    try:
        return sorted(p for p in root().iterdir() if p.name not in wanted)
    except (FileNotFoundError, PermissionError):
        return []


def sweep(wanted: Collection[str]) -> list[Path]:
    """Remove those; returns them. No image loses anything by it."""
    gone = unused(wanted)
    for path in gone:
        path.unlink(missing_ok=True)
    return gone
