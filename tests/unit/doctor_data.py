"""Captured hosts in tests/data/hosts/, and the report on each that is expected."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

from vmkit.host import doctor
from vmkit.host.facts.libvirt import Answers
from vmkit.host.facts.probe import ProbeFacts
from vmkit.values import to_plain

HOSTS = Path(__file__).parents[1] / "data" / "hosts"
SCHEMA = Path(__file__).parents[2] / "templates" / "doctor.schema.json"
REGENERATE = bool(os.environ.get("VMKIT_REGENERATE"))
"""Write what is found over what is expected (CONTRIBUTING.md, 'Expected output')."""


def names() -> list[str]:
    return sorted(p.name for p in HOSTS.iterdir())


def tree_text(name: str) -> str:
    return (HOSTS / name / "tree.txt").read_bytes().decode(errors="replace")  # as system.process decodes


def report_on(name: str) -> doctor.Report:
    folder = HOSTS / name
    said = json.loads((folder / "answers.json").read_text())
    probe = ProbeFacts(**said.pop("probe"))
    for key in ("libvirt", "hypervisor"):
        said[key] = tuple(said[key]) if said[key] else None
    for key in ("capabilities", "domain_capabilities"):
        file = folder / f"{key.replace('_', '-')}.xml"
        said[key] = file.read_text() if file.exists() else ""
    return doctor.diagnose(name, tree_text(name), Answers(**said), probe)


def expected(file: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What the file says; with VMKIT_REGENERATE set it says what was found from now on."""
    if REGENERATE:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=True) + "\n")
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


def plain(report: doctor.Report) -> dict[str, Any]:
    result: dict[str, Any] = to_plain(report)
    return result


def schema() -> dict[str, Any]:
    """The JSON schema of a report, from its classes; the fields' descriptions are those of the docstrings."""
    import msgspec

    made = msgspec.json.schema(doctor.Report)
    for kind in classes(doctor.Report):
        found = made["$defs"].get(kind.__name__)
        if found is None or not dataclasses.is_dataclass(kind):
            continue
        text = inspect.getdoc(kind) or ""
        described = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text.partition("Attributes:")[2], re.MULTILINE))
        found["description"] = " ".join(text.partition("\n\n")[0].split())
        found["additionalProperties"] = False
        for field, value in found["properties"].items():
            if words := described.get(field):
                found["properties"][field] = {"description": " ".join(words.split()), **value}
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vmkit doctor -o json, version 1",
        **made,
    }
    plain_schema: dict[str, Any] = json.loads(json.dumps(whole))
    return plain_schema


def classes(root: type) -> list[type]:
    """The dataclasses that a report is made of."""
    import typing

    found: dict[type, None] = {}

    def walk(hint: Any) -> None:
        if dataclasses.is_dataclass(hint) and isinstance(hint, type) and hint not in found:
            found[hint] = None
            for inner in typing.get_type_hints(hint).values():
                walk(inner)
        for part in typing.get_args(hint):
            walk(part)

    walk(root)
    return list(found)
