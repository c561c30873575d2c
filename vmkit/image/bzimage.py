"""The kernel inside a bzImage, unpacked so that the guest need not do it. Pure.

Layout: Documentation/arch/x86/boot.rst of the Linux kernel, protocol 2.08 and later (payload_offset, payload_length).
"""

from __future__ import annotations

import lzma
import struct
from typing import Final

from vmkit.errors import UnsupportedError

_MAGIC: Final = b"HdrS"
_SECTOR: Final = 512
_XZ: Final = b"\xfd7zXZ\0"
_ELF: Final = b"\x7fELF"
_PVH_NOTE: Final = struct.pack("<I", 18) + b"Xen\0"
"""Note XEN_ELFNOTE_PHYS32_ENTRY: name of 4 bytes, value of 4 or 8 bytes, type 18, name 'Xen' (xen/elfnote.h)."""


def uncompressed(kernel: bytes) -> bytes | None:
    """The ELF kernel that QEMU boots by its PVH entry; None where the file has to be booted as it is.

    Only xz is undone: a kernel under TCG takes seconds for that, and next to nothing for LZ4, in which Debian packs
    its cloud kernel.

    Raises:
        UnsupportedError: the file says that it is a bzImage, and is damaged.
    """
    if len(kernel) < 0x260 or kernel[0x202:0x206] != _MAGIC or struct.unpack_from("<H", kernel, 0x206)[0] < 0x208:
        return None
    sectors = kernel[0x1F1] or 4
    offset, length = struct.unpack_from("<II", kernel, 0x248)
    start = (sectors + 1) * _SECTOR + offset
    payload = kernel[start : start + length]
    if not payload.startswith(_XZ):
        return None
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    hint = "apt-get update, and try again"
    try:
        # The kernel's build appends the size of the content, which is no part of the xz stream.
        elf = stream.decompress(payload)
    except lzma.LZMAError as e:
        raise UnsupportedError(f"the kernel cannot be unpacked: {e}", hint=hint) from e
    if not stream.eof:
        raise UnsupportedError("the kernel cannot be unpacked: its end is missing", hint=hint)
    return elf if elf.startswith(_ELF) and has_pvh_entry(elf) else None


def has_pvh_entry(elf: bytes) -> bool:
    """Whether an ELF kernel (64-bit, little-endian) has the note by which QEMU boots it without firmware's help."""
    if elf[4:6] != b"\x02\x01":
        return False
    (table,) = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    for i in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, table + i * size)
        if kind == 4 and _PVH_NOTE in elf[offset : offset + length]:  # PT_NOTE
            return True
    return False
