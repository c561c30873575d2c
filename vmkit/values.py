"""Value types that the whole of vmkit shares. All are immutable and parse from what a person would write."""

from __future__ import annotations

import re
from typing import Any, Final, Self

from vmkit.errors import SpecError

_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*([KMGTP]?)(?:i?B)?\s*\Z", re.IGNORECASE | re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_DURATION = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(ms|s|m|min|h)?\s*\Z", re.ASCII)
_DURATION_UNITS: Final = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")

NAME_LIMIT: Final = 63
"""Longest name of a VM, an image or a lab, in characters: what one DNS label holds (RFC 1035, 2.3.4)."""


class Bytes(int):
    """A number of bytes. Units are powers of two, as in virsh and qemu-img: `512M` is 512 x 2**20."""

    @classmethod
    def parse(cls, text: str | int, *, path: str = "") -> Self:
        """Read `512M`, `1.5G`, `4 GiB` or a plain number of bytes.

        Raises:
            SpecError: it is not a size, or it is negative.
        """
        hint = "write it like 512M or 2G"
        if isinstance(text, int) and not isinstance(text, bool):
            if text < 0:
                raise SpecError(f"{text} is negative", path=path, hint=hint)
            return cls(text)
        match = _SIZE.match(str(text))
        if not match:
            raise SpecError(f"{quoted(str(text))} is not a size", path=path, hint=hint)
        factor = _UNITS[match[2].upper()]
        return cls(float(match[1]) * factor if "." in match[1] else int(match[1]) * factor)

    def __str__(self) -> str:
        """The largest unit that fits: `2G` where it is exact, one decimal (`1.5G`) where not."""
        for unit, factor in reversed(_UNITS.items()):
            if unit and self >= factor:
                return f"{self // factor}{unit}" if self % factor == 0 else f"{self / factor:.1f}{unit}"
        return str(int(self))

    @property
    def kib(self) -> int:
        """Whole KiB, rounded up: the unit of libvirt's <memory>."""
        return -(-int(self) // 1024)


def quoted(text: str, limit: int = 60) -> str:
    """Untrusted text made fit for one line of a message: control characters escaped, long text cut."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return f"'{shown}'" if len(text) <= limit else f"'{shown[:limit]}...' ({len(text)} characters)"


_YAML_WORDS: Final = {
    "array": "a list",
    "object": "a mapping",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "yes or no",
    "null": "nothing",
}


def in_yaml_words(message: str) -> str:
    """What msgspec says of a value of the wrong type, in the words of YAML: 'expected a list, got a mapping'."""

    def word(match: re.Match[str]) -> str:
        names = match[1].split(" | ")
        return " or ".join(_YAML_WORDS[n] for n in names) if _YAML_WORDS.keys() >= set(names) else f"'{match[1]}'"

    if message.startswith("Expected"):
        message = re.sub(r"`([^`]*)`", word, message)
    return message[:1].lower() + message[1:].replace("`", "'")


def check_name(text: str, *, path: str = "name") -> str:
    """Return `text` if it may name a VM, an image, a lab or a patch; it is then safe as one part of a file name.

    Raises:
        SpecError: it is empty, over NAME_LIMIT characters, or holds anything but letters, digits, '.', '_' and '-'.
    """
    hint = f"use 1 to {NAME_LIMIT} letters, digits, '.', '_' or '-', beginning with a letter or a digit"
    if len(text) > NAME_LIMIT:
        raise SpecError(f"{quoted(text)} is too long for a name", path=path, hint=hint)
    if not _NAME.match(text):
        raise SpecError(f"{quoted(text)} cannot be a name", path=path, hint=hint)
    return text


def check_image_name(text: str, *, path: str = "image") -> str:
    """Return `text` if it may mean an image: a name, or an alias of the catalogue such as `debian:12`.

    Raises:
        SpecError: it is neither.
    """
    name, colon, tag = text.partition(":")
    check_name(name, path=path)
    if colon:
        check_name(tag, path=path)
    return text


def check_mac(text: str, *, path: str = "mac") -> str:
    """Return the MAC address in lower case.

    Raises:
        SpecError: it is not six hexadecimal bytes, or it is a multicast address.
    """
    mac = text.lower()
    if not _MAC.match(mac):
        raise SpecError(f"{quoted(text)} is not a MAC address", path=path, hint="write it like 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1:
        raise SpecError(f"{mac} is a multicast address", path=path, hint="the first byte has to be even: 52:54:00:...")
    return mac


def parse_duration(text: str | float, *, path: str = "") -> float:
    """Seconds from `90`, `500ms`, `30s`, `5m` or `1h`.

    Raises:
        SpecError: it is not a duration, or it is negative.
    """
    match = _DURATION.match(str(text))
    if not match:
        raise SpecError(f"{quoted(str(text))} is not a duration", path=path, hint="write it like 30s, 5m or 500ms")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def show_duration(seconds: float) -> str:
    """`340 ms`, `12.3 s` or `4 min 05 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02} s"


def to_plain(value: Any) -> Any:
    """Dataclasses, msgspec structs, enums, paths, tuples and Bytes as what JSON and YAML hold."""
    import dataclasses
    import enum
    import pathlib

    match value:
        case enum.Enum():
            return value.value
        case bool() | None | str() | float():
            return value
        case int():
            return int(value)
        case pathlib.PurePath():
            return str(value)
        case dict():
            return {str(k): to_plain(v) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [to_plain(v) for v in value]
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "__struct_fields__"):
        return {name: to_plain(getattr(value, name)) for name in value.__struct_fields__}
    return str(value)
