"""The header of qcow2 files, read here so that what a stranger's file says is judged before QEMU opens it.

Format: docs/interop/qcow2.txt of QEMU.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkit.errors import RefusedError
from vmkit.values import Bytes

MAGIC: Final = b"QFI\xfb"
HEADER_LIMIT: Final = 64 * 1024
"""Bytes of a file that are looked at. Header extensions lie in the first cluster, which is 64 KiB by default; a larger
cluster whose extensions go on beyond this is refused."""

_FIXED: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_V3: Final = struct.Struct(">QQQII")
_DATA_FILE_BIT: Final = 1 << 2
_END_OF_EXTENSIONS: Final = 0
_BACKING_FORMAT: Final = 0xE2792ACA
_DATA_FILE_NAME: Final = 0x44415441
_AGAIN: Final = "fetch it again; what is in it: qemu-img check"


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """What matters of a qcow2 header.

    Attributes:
        version: 2 or 3.
        virtual_size: bytes that the guest sees.
        backing: whether it names a backing file.
        data_file: whether its data is in another file.
        encrypted: whether it is encrypted.
    """

    version: int
    virtual_size: Bytes
    backing: bool
    data_file: bool
    encrypted: bool


def is_qcow2(head: bytes) -> bool:
    """Whether a file that begins so is qcow2 (or its predecessor qcow)."""
    return head.startswith(MAGIC)


def parse_header(head: bytes, what: str = "the file") -> Qcow2Header:
    """Read the header from the first bytes of a file (HEADER_LIMIT of them, or the whole file if it is shorter).

    Args:
        head: the bytes.
        what: the file, for messages.

    Raises:
        RefusedError: it is cut off or contradicts itself.
    """
    if len(head) < _FIXED.size or not is_qcow2(head):
        raise RefusedError(f"{what} is no whole qcow2 file: its header is cut off", hint=_AGAIN)
    _, version, backing_offset, _, cluster_bits, size, crypt, *_ = _FIXED.unpack_from(head)
    if version not in (2, 3):
        raise RefusedError(
            f"{what} is qcow of version {version}, which is not one of 2 and 3",
            hint="convert it: qemu-img convert -O qcow2",
        )
    if not 9 <= cluster_bits <= 21:
        raise RefusedError(f"{what} is damaged: no qcow2 file has clusters of 2^{cluster_bits} bytes", hint=_AGAIN)
    incompatible, length = 0, _FIXED.size
    if version == 3:
        if len(head) < _FIXED.size + _V3.size:
            raise RefusedError(f"{what} is no whole qcow2 file: its header is cut off", hint=_AGAIN)
        incompatible, *_, length = _V3.unpack_from(head, _FIXED.size)
        if length < _FIXED.size + _V3.size or length % 8:
            raise RefusedError(f"{what} is damaged: no qcow2 header is {length} bytes long", hint=_AGAIN)
    names = _extensions(what, head, length, min(1 << cluster_bits, backing_offset or (1 << cluster_bits)))
    return Qcow2Header(
        version=version,
        virtual_size=Bytes(size),
        backing=backing_offset != 0 or _BACKING_FORMAT in names,
        data_file=bool(incompatible & _DATA_FILE_BIT) or _DATA_FILE_NAME in names,
        encrypted=crypt != 0,
    )


def _extensions(what: str, head: bytes, start: int, end: int) -> set[int]:
    """Types of the header extensions between `start` and `end`."""
    found = set()
    at = start
    while at + 8 <= end:
        if at + 8 > len(head):
            raise RefusedError(f"{what} is damaged: its header is larger than is sensible", hint=_AGAIN)
        kind, length = struct.unpack_from(">II", head, at)
        if kind == _END_OF_EXTENSIONS:
            break
        found.add(kind)
        at += 8 + length + -length % 8
    return found


def virtual_size(path: Path) -> Bytes:
    """Bytes that a guest sees of a qcow2 file.

    Raises:
        RefusedError: it is none, or it cannot be read.
    """
    try:
        with path.open("rb") as f:
            return parse_header(f.read(HEADER_LIMIT), path.name).virtual_size
    except OSError as e:
        raise RefusedError(f"cannot read {path}: {e.strerror}", hint=f"see who may read it: ls -l {path}") from e
