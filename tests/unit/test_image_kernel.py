"""The kernel of an image: taken out of its bzImage where that saves time; which drivers a device asks for."""

from __future__ import annotations

import lzma
import struct

import pytest

from vmkit.errors import UnsupportedError
from vmkit.image.bzimage import has_pvh_entry, uncompressed
from vmkit.image.modules import drivers


def elf(*, pvh: bool) -> bytes:
    """A 64-bit ELF file with one program header, of notes."""
    note = struct.pack("<III", 4, 8, 18 if pvh else 1) + b"Xen\0" + bytes(8)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1)
    return head.ljust(64, b"\0") + struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(note), len(note), 4) + note


def bzimage(payload: bytes) -> bytes:
    image = bytearray(0x400)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<II", image, 0x248, 0, len(payload))
    return bytes(image) + payload


def test_xz_is_undone_where_the_kernel_has_a_pvh_entry() -> None:
    kernel = elf(pvh=True)
    assert has_pvh_entry(kernel)
    packed = lzma.compress(kernel) + struct.pack("<I", len(kernel))
    assert uncompressed(bzimage(packed)) == kernel


def test_what_cannot_be_booted_that_way_is_left_as_it_is() -> None:
    assert not has_pvh_entry(elf(pvh=False))
    assert uncompressed(bzimage(lzma.compress(elf(pvh=False)))) is None
    assert uncompressed(bzimage(b"\x02!L\x18 LZ4")) is None
    assert uncompressed(b"no kernel") is None
    assert uncompressed(elf(pvh=True)) is None


def test_a_damaged_kernel_is_an_error() -> None:
    packed = lzma.compress(elf(pvh=True))
    damaged = bytearray(packed)
    damaged[30] ^= 0xFF
    for payload in (bytes(damaged), packed[: len(packed) // 2]):
        with pytest.raises(UnsupportedError, match="cannot be unpacked"):
            uncompressed(bzimage(payload))


def test_drivers_by_modalias() -> None:
    dependencies = {"kernel/a/e1000.ko": (), "kernel/b/ahci.ko.xz": ("kernel/b/libahci.ko",), "kernel/b/libahci.ko": ()}
    aliases = (
        "# Aliases extracted from modules themselves.\n"
        "alias pci:v00008086d0000100Esv*sd*bc*sc*i* e1000\n"
        "alias pci:v*d*sv*sd*bc01sc06i01* ahci\n"
        "alias pci:v00008086d000010CAsv*sd*bc*sc*i* igbvf\n"
        "alias usb:v1234p* e1000\n"
    )
    found = drivers(("e1000", "ahci", "igbvf"), aliases, dependencies)
    assert found == [("pci:v00008086d0000100Esv*sd*bc*sc*i*", "e1000"), ("pci:v*d*sv*sd*bc01sc06i01*", "ahci")]
