"""Bounds of functions from .eh_frame (Linux Standard Base 5.0, 10.6), which a stripped executable keeps. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# DW_EH_PE encodings: low four bits the format, the next three what it is relative to.
_FORMATS: Final = {0x0: (8, False), 0x2: (2, False), 0x3: (4, False), 0x4: (8, False), 0xA: (2, True)} | {
    0xB: (4, True),
    0xC: (8, True),
}
_PC_RELATIVE: Final = 0x10


@dataclass(frozen=True, slots=True)
class Entry:
    """A function: link address, bytes; its record (FDE) and the one that this refers to (CIE), lengths included."""

    start: int
    size: int
    common: bytes
    own: bytes


def function_bounds(data: bytes, address: int) -> list[tuple[int, int]]:
    """Address and size of each function that the section describes, by address.

    Args:
        data: the section; damaged records end the reading.
        address: where it is linked to.
    """
    return sorted({(f.start, f.size) for f in entries(data, address)})


def entries(data: bytes, address: int) -> Iterator[Entry]:
    """Each record about a function, with the bytes of it and of the record that it shares with others."""
    encodings: dict[int, int] = {}
    for at, body, end in _records(data):
        identity = int.from_bytes(data[body : body + 4], "little")
        if identity == 0:
            encodings[at] = _pointer_encoding(data[body + 4 : end])
            continue
        encoding = encodings.get(body - identity, 0xFF)
        size, signed = _FORMATS.get(encoding & 0x0F, (0, False))
        field = body + 4
        if not size or encoding & 0x70 not in (0, _PC_RELATIVE) or field + 2 * size > end:
            continue
        start = int.from_bytes(data[field : field + size], "little", signed=signed)
        if encoding & 0x70 == _PC_RELATIVE:
            start += address + field
        length = int.from_bytes(data[field + size : field + 2 * size], "little")
        if length:
            common = body - identity
            end_of_common = common + 4 + int.from_bytes(data[common : common + 4], "little")
            yield Entry(start, length, data[common:end_of_common], data[at:end])


def _records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Offsets of each record, of its second field, and of its end."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        if length in (0, 0xFFFFFFFF) or at + 4 + length > len(data):
            return
        yield at, at + 4, at + 4 + length
        at += 4 + length


def _pointer_encoding(cie: bytes) -> int:
    """The encoding of addresses in the records of this CIE; absolute if it does not say."""
    end = cie.find(b"\0", 1)
    augmentation = cie[1:end]
    if not augmentation.startswith(b"z"):
        return 0 if not augmentation else 0xFF
    at = end + 1
    for _ in range(3):  # code alignment, data alignment, return register; then the length of what follows
        at = _skip(cie, at)
    at = _skip(cie, at)
    for letter in augmentation[1:]:
        if at >= len(cie):
            return 0xFF
        if letter == ord("R"):
            return cie[at]
        if letter == ord("L"):
            at += 1
        elif letter == ord("P"):
            size, _ = _FORMATS.get(cie[at] & 0x0F, (0, False))
            if not size:
                return 0xFF
            at += 1 + size
        elif letter not in b"SB":
            return 0xFF
    return 0


def _skip(data: bytes, at: int) -> int:
    """Past a LEB128 number."""
    while at < len(data) and data[at] & 0x80:
        at += 1
    return at + 1
