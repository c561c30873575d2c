"""lab.json: what a lab is made of, on disk before it is made."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, replace
from typing import Any

from vmkit.lab.layout import Layout
from vmkit.system.files import write_atomic

_FORMAT = 2


class Phase(enum.Enum):
    """How far a lab is. Only `UP` was ever complete."""

    BUILDING = "building"
    UP = "up"
    LEAVING = "being torn down"


@dataclass(frozen=True, slots=True)
class LabState:
    """One lab as written down.

    Attributes:
        token: random, so that a lab is not mistaken for a later one of the same name.
        plan: what the kind's blueprint says of itself, in plain JSON values; None until it is settled.
    """

    name: str
    kind: str
    token: str
    created: str
    phase: Phase
    plan: dict[str, Any] | None = None

    def at(self, phase: Phase, plan: dict[str, Any] | None = None) -> LabState:
        """The same lab in another phase, and with its blueprint once that is known."""
        return replace(self, phase=phase, plan=plan or self.plan)


def save(layout: Layout, state: LabState) -> None:
    """Write a state to disk, whole or not at all.

    Raises:
        RefusedError: no space, or not permitted.
    """
    body = {
        "format": _FORMAT,
        "name": state.name,
        "kind": state.kind,
        "token": state.token,
        "created": state.created,
        "phase": state.phase.value,
        "plan": state.plan,
    }
    write_atomic(layout.state, json.dumps(body, indent=1))


def load(layout: Layout) -> LabState | None:
    """What is written down of a lab; None if nothing is, or nothing that this version can read."""
    try:
        body = json.loads(layout.state.read_text())
        plan = body["plan"]
        if plan is not None and not isinstance(plan, dict):
            return None
        return LabState(body["name"], body["kind"], body["token"], body["created"], Phase(body["phase"]), plan)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
