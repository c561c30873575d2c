"""What a spec may say, as text: from the types and docstrings that check it, so that it cannot go stale. Pure."""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from vmkit.values import Bytes

_FIELD = re.compile(r"( *)([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)")
_NONE = re.compile(r"\bNone\b")
"""What Python calls a field that a file leaves out."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name, what kind of value it takes, its default in words, and what it means."""

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a spec: where it stands (`disks[]`), what it is, its fields."""

    path: str
    what: str
    fields: tuple[Field, ...]


def reference() -> tuple[Part, ...]:
    """Every part of a file for `vmkit apply`, VMs first."""
    from vmkit.network.spec import NetworkSpec
    from vmkit.vm.spec import VmSpec

    seen: set[type] = set()
    return (*_parts(VmSpec, "vms[]", seen), *_parts(NetworkSpec, "networks[]", seen))


def _parts(struct: Any, path: str, seen: set[type]) -> Iterator[Part]:
    seen.add(struct)
    hints = typing.get_type_hints(struct)
    meanings = _meanings(struct)
    fields = [
        Field(f.name, _kind(hints[f.name]), _default(f), meanings.get(f.name, ""))
        for f in msgspec.structs.fields(struct)
    ]
    yield Part(path, _first(struct), tuple(fields))
    for field in msgspec.structs.fields(struct):
        for inner, many in _structs(hints[field.name]):
            if inner not in seen:
                where = f"{path}." if "." in path or path not in ("vms[]", "networks[]") else ""
                yield from _parts(inner, f"{where}{field.name}{'[]' if many else ''}", seen)


def _structs(hint: Any) -> Iterator[tuple[Any, bool]]:
    """The structs that a type holds, each with whether there may be several."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield hint, False
        return
    many = typing.get_origin(hint) in (tuple, list)
    for inner in typing.get_args(hint):
        yield from ((struct, many or more) for struct, more in _structs(inner))


def _kind(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(t) for t in inner if t is not type(None)))
    if origin in (tuple, list):
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return "mapping"
    if origin is typing.Literal:
        return "|".join(str(v) for v in inner)
    if isinstance(hint, enum.EnumType):
        return "|".join(str(m.value) for m in hint)  # type: ignore[var-annotated]
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return "mapping"
    words = {Bytes: "size", bool: "yes/no", int: "number", float: "number", str: "text"}
    return words.get(hint, "text")


def _default(field: msgspec.structs.FieldInfo) -> str:
    """What holds where the field is left out; '' where the meaning has to say that."""
    if field.required:
        return "required"
    value = field.default
    match value:
        case None | msgspec.NODEFAULT | "" | ():
            return ""
        case enum.Enum():
            return str(value.value)
        case bool():
            return "yes" if value else "no"
        case int() | float() | str():
            return str(value)
    return ""


def _first(struct: Any) -> str:
    text = inspect.cleandoc(struct.__doc__ or "").partition("\n\n")[0]
    return " ".join(text.split())


def _meanings(struct: Any) -> dict[str, str]:
    """The texts of the 'Attributes' of a docstring. Several names in one line share one."""
    body = inspect.cleandoc(struct.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    margin = None
    for line in body.splitlines():
        match = _FIELD.match(line)
        if match and (margin is None or len(match[1]) == margin):
            margin = len(match[1])
            names = match[2].split(", ")
            for name in names:
                found[name] = match[3]
        elif line.strip():
            for name in names:
                found[name] += f" {line.strip()}"
        else:
            break
    return {name: _NONE.sub("no value", text) for name, text in found.items()}
