"""The one fact that is read from a qcow2 file itself. Format: QEMU's docs/interop/qcow2.rst, section 'Header'."""

from __future__ import annotations

import struct
from pathlib import Path

from vmkit.errors import EffectError
from vmkit.values import Bytes


def virtual_size(path: Path) -> Bytes:
    """Size of the disk that a guest sees, bytes.

    Raises:
        EffectError: it is not a qcow2 file, or cannot be read.
    """
    try:
        with path.open("rb") as f:
            head = f.read(32)
    except OSError as e:
        raise EffectError(f"cannot read {path}: {e.strerror}") from e
    if len(head) < 32 or head[:4] != b"QFI\xfb":
        raise EffectError(f"{path} is not a qcow2 file", hint="build or import the image again")
    return Bytes(struct.unpack(">Q", head[24:32])[0])
