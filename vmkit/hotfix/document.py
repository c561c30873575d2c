"""The fields of a patch file and their types, before anything is made of them.

By hand and not with a library: this is also read on hosts that have nothing but Python (see hotfix.far).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from vmkit.errors import SpecError
from vmkit.values import quoted


class RawEdit(NamedTuple):
    """One change, as it is written."""

    expected: str
    replacement: str = ""
    offset: int = 0
    address: int | str | None = None
    symbol: str | None = None


class RawModule(NamedTuple):
    """What replaces functions of a kernel, as it is written."""

    release: str
    object: str
    name: str
    sha256: str
    data: str


@dataclass(frozen=True, slots=True)
class RawPatch:
    """A patch file, as it is written. Its signature is looked at elsewhere."""

    id: str
    title: str
    target: str
    build_ids: tuple[str, ...]
    edits: tuple[RawEdit, ...]
    cve: str = ""
    clear: tuple[str, ...] = ()
    code_sha256: str = ""
    room: str = ""
    livepatch: RawModule | None = None


_EDIT: Final = {
    "expected": (str,),
    "replacement": (str,),
    "offset": (int,),
    "address": (int, str),
    "symbol": (str,),
}
_SIGNATURE: Final = {"key": (str,), "value": (str,)}
_PATCH: Final = {
    **dict.fromkeys(("id", "title", "target", "cve", "code_sha256", "room"), (str,)),
    **dict.fromkeys(("build_ids", "edits", "clear"), (list,)),
    **dict.fromkeys(("signature", "livepatch"), (dict,)),
}
_LIVEPATCH: Final = dict.fromkeys(RawModule._fields, (str,))
_WORDS: Final = {str: "a string", int: "a whole number", list: "an array", dict: "a table"}


def read_document(document: dict[str, Any]) -> RawPatch:
    """Check names and types of all fields.

    Raises:
        SpecError: a field is missing, unknown or of the wrong type; `path` names it, or the table that it is in.
    """
    found = _table(document, _PATCH, ("id", "title", "target", "build_ids", "edits"), "")
    signature = found.pop("signature", None)
    if signature is not None:
        _table(signature, _SIGNATURE, tuple(_SIGNATURE), "signature")
    for name in ("build_ids", "clear"):
        if name in found:
            found[name] = tuple(_typed(v, (str,), f"{name}[{i}]") for i, v in enumerate(found[name]))
    required = ("expected", "symbol") if "livepatch" in found else ("expected", "replacement")
    tables = [_table(v, _EDIT, required, f"edits[{i}]") for i, v in enumerate(found["edits"])]
    if "livepatch" in found:
        found["livepatch"] = RawModule(**_table(found["livepatch"], _LIVEPATCH, tuple(_LIVEPATCH), "livepatch"))
    return RawPatch(**{**found, "edits": tuple(RawEdit(**t) for t in tables)})


def _table(value: Any, known: Mapping[str, tuple[type, ...]], required: tuple[str, ...], path: str) -> dict[str, Any]:
    table = _typed(value, (dict,), path)
    for name in table:
        if name not in known:
            raise SpecError(f"there is no field {quoted(name)}", path=path, hint=f"known are {', '.join(known)}")
    for name in required:
        if name not in table:
            raise SpecError(f"the field {name} is missing", path=path)
    return {k: _typed(v, known[k], f"{path}.{k}" if path else k) for k, v in table.items()}


def _typed(value: Any, kinds: tuple[type, ...], path: str) -> Any:
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise SpecError(f"has to be {' or '.join(_WORDS[k] for k in kinds)}", path=path)
    return value
