"""Files of checksums, as publishers of images have them: SHA256SUMS, SHA512SUMS, CHECKSUM. Pure.

Two layouts: that of sha256sum(1), `HEX  NAME` with a star before the name for binary mode, and that of BSD,
`SHA256 (NAME) = HEX`. Lines that are neither are comments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

from vmkit.errors import RefusedError, SpecError
from vmkit.values import quoted

LIMIT: Final = 4 << 20
"""Bytes of the largest file of checksums that is read."""

_ALGORITHMS: Final = {64: "sha256", 128: "sha512"}
_GNU = re.compile(r"\\?([0-9a-fA-F]{64}|[0-9a-fA-F]{128})[ \t]+\*?(\S.*)")
_BSD = re.compile(r"(?:SHA256|SHA512) \((.+)\) = ([0-9a-fA-F]{64}|[0-9a-fA-F]{128})")


@dataclass(frozen=True, slots=True)
class Digest:
    """A checksum: `algorithm` is 'sha256' or 'sha512', `value` lower-case hexadecimal."""

    algorithm: str
    value: str

    @classmethod
    def parse(cls, text: str, *, path: str = "sha256") -> Digest:
        """From 64 or 128 hexadecimal digits.

        Raises:
            SpecError: it is neither.
        """
        value = text.strip().lower()
        if len(value) not in _ALGORITHMS or set(value) - set("0123456789abcdef"):
            hint = "it has 64 hexadecimal digits (or 128 for SHA-512): sha256sum FILE"
            raise SpecError("not a SHA-256 digest", path=path, hint=hint)
        return cls(_ALGORITHMS[len(value)], value)


def parse_sums(text: str) -> dict[str, Digest]:
    """Digests by file name. Folders before a name are left out, as in './a.qcow2'.

    Raises:
        RefusedError: it names no file, or one file twice with different digests.
    """
    found: dict[str, Digest] = {}
    for line in text.splitlines():
        if match := _BSD.fullmatch(line.strip()):
            name, value = match[1], match[2]
        elif match := _GNU.fullmatch(line.rstrip()):
            value, name = match[1], match[2]
        else:
            continue
        name, digest = PurePosixPath(name).name, Digest.parse(value)
        if found.setdefault(name, digest).algorithm == digest.algorithm and found[name] != digest:
            raise RefusedError(
                f"the checksums name {quoted(name)} twice, with different digests",
                hint="ask the publisher which one holds, and give that one: --sha256 HEX",
            )
        if digest.algorithm == "sha512" and found[name].algorithm == "sha256":
            found[name] = digest
    if not found:
        raise RefusedError("the checksums name no file", hint="see what it is: it may be an error page")
    return found


def digest_of(source: str, sums: dict[str, Digest]) -> Digest:
    """The digest of what is fetched from `source`, a path or URL.

    Raises:
        RefusedError: the checksums do not name it; the hint says what they name.
    """
    name = base_name(source)
    if name in sums:
        return sums[name]
    others = ", ".join(sorted(n for n in sums if n.endswith((".qcow2", ".img", ".raw", ".xz")))[:5])
    hint = f"they name {others}" if others else "see that they belong to this file"
    raise RefusedError(f"the checksums do not name {quoted(name)}", hint=hint)


def base_name(source: str) -> str:
    """The file's own name, from a path or URL."""
    path = unquote(urlsplit(source).path) if "://" in source else source
    return PurePosixPath(path).name
