"""The head of the files that libvirt's QEMU driver saves memory into. Pure.

struct _virQEMUSaveHeader in libvirt's src/qemu/qemu_saveimage.h (version 2, since 0.8; the cookie since 3.7): magic,
version, length of what follows the header, whether it ran, format, offset of the cookie, 14 words of nothing, all in
the byte order of the host. Then the domain XML, a NUL, the cookie, a NUL, and 64 KiB of padding, so that a longer XML
has room; then what QEMU wrote. libvirt compares a new XML with the old one only where it is the one that puts it in.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

from vmkit.errors import EffectError, UnsupportedError

HEADER: Final = struct.Struct("=16s5I56x")
MAGIC: Final = b"LibvirtQemudSave"
VERSION: Final = 2
HEAD_LIMIT: Final = 1 << 24
"""More than any domain's XML; a head that says it is longer is not one."""


@dataclass(frozen=True, slots=True)
class SaveHead:
    """What stands before QEMU's own data.

    Attributes:
        room: bytes for XML, cookie and padding.
        running: whether the domain ran.
        format: number of the compression.
        xml: the domain, as it is started again.
        cookie: what libvirt needs to know besides; kept as it is.
    """

    room: int
    running: int
    format: int
    xml: str
    cookie: bytes

    @classmethod
    def parse(cls, head: bytes) -> Self:
        """Read a head; `head` has at least `head_length` bytes.

        Raises:
            EffectError: it is not one, or not one that was finished.
            UnsupportedError: of a version that is not known.
        """
        magic, version, room, running, kind, cookie = _header(head)
        del magic, version
        body = head[HEADER.size : HEADER.size + room]
        if len(body) < room or cookie > room:
            raise EffectError("the file of a saved memory is cut off")
        xml = body[:cookie] if cookie else body
        text = xml.split(b"\0", 1)[0].decode()
        return cls(room, running, kind, text, body[cookie:].split(b"\0", 1)[0] if cookie else b"")

    def packed(self, xml: str) -> bytes:
        """A head of the same length with another XML.

        Raises:
            EffectError: there is no room for it.
        """
        text = xml.encode() + b"\0"
        body = text + (self.cookie + b"\0" if self.cookie else b"")
        if len(body) > self.room:
            raise EffectError(f"the XML of the new domain has {len(text)} bytes: no room in the file of the memory")
        offset = len(text) if self.cookie else 0
        header = HEADER.pack(MAGIC, VERSION, self.room, self.running, self.format, offset)
        return header + body.ljust(self.room, b"\0")


def head_length(start: bytes) -> int:
    """Bytes of the whole head, from its first HEADER.size bytes. Raises as `SaveHead.parse`."""
    return HEADER.size + int(_header(start)[2])


def _header(start: bytes) -> tuple[bytes, int, int, int, int, int]:
    if len(start) < HEADER.size or not start.startswith(MAGIC):
        raise EffectError("that is not the file of a saved memory, or it was never finished")
    fields = HEADER.unpack_from(start)
    if fields[1] != VERSION or not 0 < fields[2] <= HEAD_LIMIT:
        raise UnsupportedError(
            f"the file of the saved memory has a form that is not known (version {fields[1]})",
            hint="is it from a host of another byte order, or of a newer libvirt?",
        )
    return fields
