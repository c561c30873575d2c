"""What a patch file for the kernel has besides what all patch files have."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from typing import Any, Final

from vmkit.errors import SpecError
from vmkit.hotfix.document import RawModule, RawPatch
from vmkit.hotfix.manifest import SYMBOL, Edit, Livepatch, Patch, Pattern
from vmkit.values import quoted

MODULE_LIMIT: Final = 4 << 20
"""Largest livepatch module, bytes; one of a few functions has 20,000."""
NAME_LIMIT: Final = 55
"""Longest name of a kernel module (MODULE_NAME_LEN in include/linux/module.h, less the ending 0)."""

_C_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,511}\Z", re.ASCII)
_RELEASE = re.compile(r"[0-9][A-Za-z0-9._+~-]{0,63}\Z", re.ASCII)


def check_c_name(name: str, path: str) -> str:
    """A name of C, as functions, modules and objects of the kernel have; returned as it is.

    Raises:
        SpecError: it is none.
    """
    if not _C_NAME.match(name):
        raise SpecError(f"{quoted(name)} is not a name of C", path=path, hint="letters, digits and _")
    return name


def check_release(text: str, path: str) -> str:
    """The release of a kernel, returned as it is.

    Raises:
        SpecError: it is none.
    """
    if not _RELEASE.match(text):
        raise SpecError(f"{quoted(text)} is not the release of a kernel", path=path, hint="uname -r prints it")
    return text


def kernel_patch(raw: RawPatch, build_ids: tuple[str, ...], found: RawModule) -> Patch:
    """The patch of a file with `target = "kernel"`.

    Raises:
        SpecError: something in it is wrong; `path` names the field.
    """
    if raw.room or raw.clear or raw.code_sha256:
        raise SpecError("room, clear and code_sha256 are for processes", path="target")
    edits = []
    for i, edit in enumerate(raw.edits):
        path = f"edits[{i}]"
        if edit.replacement or edit.offset or edit.address is not None:
            raise SpecError("functions of a kernel are replaced whole: symbol and expected are all", path=path)
        match = SYMBOL.match(edit.symbol or "")
        if not match:
            raise SpecError(
                f"{quoted(edit.symbol or '')} is not a symbol", path=f"{path}.symbol", hint="write its name"
            )
        symbol = check_c_name(match[1], f"{path}.symbol")
        offset = int(match[2] or "0", 0 if (match[2] or "").startswith("0x") else 10)
        expected = Pattern.parse(edit.expected, path=f"{path}.expected")
        if not any(expected.known):
            raise SpecError("all bytes are wildcards", path=f"{path}.expected", hint="say what is replaced")
        edits.append(Edit(None, symbol, offset, expected, 0, b""))
    part = Livepatch(
        check_release(found.release, "livepatch.release"),
        check_c_name(found.object, "livepatch.object"),
        check_c_name(found.name, "livepatch.name"),
        _module(found),
    )
    if len(part.name) > NAME_LIMIT:
        raise SpecError(f"is longer than {NAME_LIMIT} characters", path="livepatch.name")
    return Patch(raw.id, raw.title, raw.cve, raw.target, build_ids, tuple(edits), livepatch=part)


def written(livepatch: Livepatch) -> dict[str, Any]:
    """The table livepatch of a patch file."""
    return {
        "release": livepatch.release,
        "object": livepatch.object,
        "name": livepatch.name,
        "sha256": hashlib.sha256(livepatch.module).hexdigest(),
        "data": base64.b64encode(zlib.compress(livepatch.module, 9)).decode(),
    }


def _module(found: RawModule) -> bytes:
    path = "livepatch.data"
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(found.data, validate=True), MODULE_LIMIT)
    except (ValueError, binascii.Error, zlib.error) as e:
        raise SpecError("is no deflated module in base64", path=path) from e
    if not inflate.eof or not data.startswith(b"\x7fELF"):
        raise SpecError(f"is no kernel module of up to {MODULE_LIMIT >> 20} MiB", path=path)
    if hashlib.sha256(data).hexdigest() != found.sha256:
        raise SpecError("is not the module that sha256 is of", path=path)
    return data
