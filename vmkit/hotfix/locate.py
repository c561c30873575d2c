"""Finding the place of a change in a binary by its bytes, and making a patch of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from vmkit.errors import NotFoundError, RefusedError, SpecError
from vmkit.hotfix.manifest import Edit, Patch, Pattern, parse, render
from vmkit.system.elf import Binary, Segment, read_binary
from vmkit.values import check_name

CONTEXT: Final = 16
"""Bytes before and after the change that the patch expects too; as many as the segment has where it ends sooner."""


def find_all(pattern: Pattern, data: bytes, limit: int = 100) -> list[int]:
    """Offsets at which the pattern matches, overlapping matches too; at most `limit` of them."""
    body = b"".join(re.escape(bytes((v,))) if k else b"." for v, k in zip(pattern.values, pattern.known, strict=True))
    found = []
    for match in re.finditer(b"(?=" + body + b")", data, re.DOTALL):
        found.append(match.start())
        if len(found) == limit:
            break
    return found


def find_unique(binary: Binary, pattern: Pattern) -> tuple[Segment, bytes, int]:
    """The executable segment where the pattern is, that segment's bytes, and the offset of the match in them.

    Raises:
        NotFoundError: it is nowhere in the code.
        RefusedError: it is there more than once.
    """
    found = [(s, data, o) for s, data in binary.code() for o in find_all(pattern, data)]
    if not found:
        raise NotFoundError(f"the bytes {_short(pattern)} are nowhere in the code of {binary.path}")
    if len(found) > 1:
        where = ", ".join(f"{s.address + o:#x}" for s, _, o in found[:4])
        count = f"{len(found)} times" if len(found) < 100 else "100 times or more"
        raise RefusedError(
            f"the bytes {_short(pattern)} are in the code of {binary.path} {count}: {where}",
            hint="add bytes before or after them to --find and --replace until the place is unique",
        )
    return found[0]


def make_patch(
    path: Path,
    *,
    find: str,
    replace: str,
    patch_id: str,
    title: str | None = None,
    cve: str = "",
    context: int = CONTEXT,
) -> Patch:
    """A patch that puts `replace` where `find` is in the ELF file `path`. The file is only read.

    Args:
        path: the executable.
        find: bytes in hexadecimal, ?? for any; they have to be at exactly one place of its code.
        replace: bytes in hexadecimal, at most as many as `find`; they go where `find` begins.
        patch_id: name of the patch.
        title: one line; made from the bytes if None.
        cve: CVE number, or ''.
        context: bytes before and after that the patch expects too.

    Raises:
        SpecError: find, replace, the id, the title or the CVE number are not sound.
        NotFoundError, RefusedError: see `find_unique` and `read_binary`.
    """
    check_name(patch_id, path="--id")
    pattern = Pattern.parse(find, path="--find")
    replacement = Pattern.parse(replace, path="--replace").concrete
    if replacement is None:
        raise SpecError("a replacement has no wildcards", path="--replace")
    if len(replacement) > len(pattern):
        raise SpecError(f"{len(replacement)} bytes do not fit into {len(pattern)}", path="--replace")
    if not any(pattern.known):
        raise SpecError("there are only wildcards in it", path="--find")
    binary = read_binary(path)
    segment, data, offset = find_unique(binary, pattern)
    begin = max(0, offset - context)
    expected = Pattern.of(data[begin : offset + len(pattern) + context])
    edit = Edit(segment.address + begin, "", 0, expected, offset - begin, replacement)
    shown = title or f"{path.name}: {_short(pattern)} becomes {_short(Pattern.of(replacement))}"
    return parse(render(Patch(patch_id, shown, cve, "qemu", (binary.build_id,), (edit,))))


def _short(pattern: Pattern) -> str:
    text = str(pattern.part(0, 16))
    return f"{text} ..." if len(pattern) > 16 else text
