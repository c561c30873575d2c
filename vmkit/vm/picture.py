"""Pictures of a screen: what QEMU writes, as PNG. Pure.

Formats: https://netpbm.sourceforge.net/doc/ppm.html and https://www.w3.org/TR/png-3/.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final

from vmkit.errors import EffectError

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_BLANK: Final = rb"(?:\s|#[^\n]*\n)+"
_HEAD: Final = re.compile(rb"P6" + _BLANK + rb"(\d{1,5})" + _BLANK + rb"(\d{1,5})" + _BLANK + rb"255\s")


def as_png(mime: str, data: bytes) -> bytes:
    """The picture as PNG.

    Args:
        mime: what libvirt calls it; the bytes have the last word.
        data: PNG, or a binary PPM with 8 bits a channel, which is what QEMU writes by default.

    Raises:
        EffectError: it is neither.
    """
    if data.startswith(_PNG):
        return data
    head = _HEAD.match(data)
    width, height = (int(head[1]), int(head[2])) if head else (0, 0)
    pixels = data[head.end() :] if head else b""
    if not width or not height or len(pixels) != width * height * 3:
        raise EffectError(f"what came as {mime} is not a picture", hint="try again: the guest may just change its mode")
    line = width * 3
    # Each line begins with the number of its filter; 0 is none.
    raw = b"".join(b"\0" + pixels[y * line : (y + 1) * line] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(raw, 6)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
