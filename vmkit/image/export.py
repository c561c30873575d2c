"""Writing an image to a file outside the store."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Final

from vmkit.errors import ConflictError, EffectError, RefusedError, SpecError, UnsupportedError
from vmkit.image import archive
from vmkit.image.manifest import Image
from vmkit.progress import Finished, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.files import free_space, sync_dir, sync_file
from vmkit.system.process import run
from vmkit.values import Bytes, quoted

FORMATS: Final = {".tar": "tar", ".qcow2": "qcow2", ".raw": "raw", ".img": "raw", ".vmdk": "vmdk", ".vhdx": "vhdx"}
"""Formats by the file's suffix. 'tar' is the whole image, the others are its disk alone."""
CONVERT_TIMEOUT: Final = 3600.0


def export(image: Image, target: Path, *, force: bool = False, reporter: Reporter = silent) -> Path:
    """Write an image; see `vmkit.image.api.Images.export`."""
    kind = FORMATS.get(target.suffix.lower())
    if kind is None:
        raise SpecError(
            f"{quoted(target.name)} has no suffix that says a format",
            path="file",
            hint=f"end it with {', '.join(FORMATS)}",
        )
    if kind != "tar" and image.disk is None:
        raise UnsupportedError(f"the image '{image.name}' has no disk", hint="export it as .tar")
    if target.exists() and not force:
        raise ConflictError(f"{target} exists", hint="choose another file, or replace it: --force")
    if not target.parent.is_dir():
        raise RefusedError(f"there is no folder {target.parent}", hint=f"mkdir -p {target.parent}")
    if free_space(target.parent) < image.size:
        raise RefusedError(f"no space: {image.size} are needed in {target.parent}", hint="free some: df -h")
    half = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        if kind == "tar":
            archive.pack(image, half, reporter)
        else:
            assert image.disk  # noqa: S101 - seen above
            _convert(image.disk.path, half, kind, reporter)
        sync_file(half)
        half.replace(target)
        sync_dir(target.parent)
    except OSError as e:
        raise EffectError(
            f"cannot write {target}: {e.strerror}",
            left="nothing is left of it",
            hint=f"see the folder: ls -ld {target.parent}; df -h {target.parent}",
        ) from e
    finally:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
    return target


def _convert(disk: Path, target: Path, kind: str, reporter: Reporter) -> None:
    seconds = stopwatch()
    reporter(Started("export", kind))
    run(["qemu-img", "convert", "-f", "qcow2", "-O", kind, disk, target.absolute()], timeout=CONVERT_TIMEOUT)
    reporter(Finished("export", seconds(), str(Bytes(target.stat().st_blocks * 512))))
