"""Looking at a disk image that a stranger made, before QEMU opens it in earnest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from vmkit.errors import EffectError, RefusedError
from vmkit.image import qcow2
from vmkit.system.process import run

CHECK_TIMEOUT: Final = 3600.0
FORMATS: Final = ("qcow2", "raw", "vdi", "vhdx", "vpc")
"""Formats of disk images that are taken; vmdk is not, since its header may name other files."""


def examine(path: Path) -> str:
    """The format of a disk image, one of FORMATS, after looking for everything that would make it unsafe or useless.

    A backing or data file named by the image would make QEMU read any file of this machine into the guest.

    Raises:
        RefusedError: it is encrypted, damaged, names other files, or has another format.
    """
    with path.open("rb") as f:
        head = f.read(qcow2.HEADER_LIMIT)
    if qcow2.is_qcow2(head):
        header = qcow2.parse_header(head, path.name)
        if header.backing:
            raise RefusedError(
                f"{path.name} names a backing file, which could be any file of this machine",
                hint="have its maker flatten it: qemu-img convert -O qcow2",
            )
        if header.data_file:
            raise RefusedError(
                f"{path.name} keeps its data in another file, which could be any file of this machine",
                hint="have its maker put it into one: qemu-img convert -O qcow2",
            )
        if header.encrypted:
            raise RefusedError(f"{path.name} is encrypted", hint="decrypt it first: qemu-img convert")
    info = _qemu_info(path)
    kind = str(info.get("format"))
    if kind not in FORMATS:
        hint = f"convert it first: qemu-img convert -f {kind} -O qcow2"
        raise RefusedError(f"{path.name} has the format {kind}; {', '.join(FORMATS)} are taken", hint=hint)
    if (kind == "qcow2") != qcow2.is_qcow2(head) or info.get("backing-filename"):
        raise RefusedError(
            f"{path.name} is not what its header says",
            hint="have its maker convert it again: qemu-img convert -O qcow2",
        )
    size = path.stat().st_size
    if kind == "raw" and (size == 0 or size % 512):
        raise RefusedError(
            f"{path.name} is no disk image: {size} bytes are not a whole number of sectors",
            hint="see what it is: file; a download may have been cut off, or be an error page",
        )
    if kind == "qcow2":
        _check(path)
    return kind


def _qemu_info(path: Path) -> dict[str, Any]:
    try:
        answer = json.loads(run(["qemu-img", "info", "--output=json", plain_path(path)]).stdout)
    except EffectError as e:
        raise RefusedError(
            f"{path.name} is not a disk image that QEMU can read",
            details=(e.message,),
            hint="see what it is: file; a download may have been cut off, or be an error page",
        ) from e
    return answer if isinstance(answer, dict) else {}


def plain_path(path: Path) -> str:
    """A path that QEMU cannot take for one of its protocols, as it would 'nbd:...' or 'json:{...}'."""
    return str(path.absolute())


def _check(path: Path) -> None:
    """Have QEMU look through the tables of a qcow2 file; a truncated one shows there. Leaked clusters do no harm."""
    done = run(["qemu-img", "check", "-f", "qcow2", plain_path(path)], check=False, timeout=CHECK_TIMEOUT)
    if done.status not in (0, 3):
        lines = tuple((done.stderr or done.stdout).strip().splitlines()[:4])
        raise RefusedError(f"{path.name} is damaged, or was cut off", details=lines, hint="fetch it again")
