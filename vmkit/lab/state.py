"""lab.json: what a lab is made of, on disk before it is made."""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Network
from typing import Any

from vmkit.lab.blueprint import Blueprint, HostPlan
from vmkit.lab.layout import Layout
from vmkit.system.files import write_atomic

_FORMAT = 1


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
        plan: None until a subnet is settled.
    """

    name: str
    kind: str
    token: str
    created: str
    phase: Phase
    plan: Blueprint | None = None

    def at(self, phase: Phase, plan: Blueprint | None = None) -> LabState:
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
        "plan": None if state.plan is None else asdict(replace(state.plan, hosts=())) | _written(state.plan),
    }
    write_atomic(layout.state, json.dumps(body, indent=1))


def _written(plan: Blueprint) -> dict[str, Any]:
    return {"subnet": str(plan.subnet), "hosts": [asdict(h) for h in plan.hosts]}


def load(layout: Layout) -> LabState | None:
    """What is written down of a lab; None if nothing is, or nothing that this version can read."""
    try:
        body = json.loads(layout.state.read_text())
        return LabState(
            body["name"],
            body["kind"],
            body["token"],
            body["created"],
            Phase(body["phase"]),
            None if body["plan"] is None else _plan(body["plan"]),
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def _plan(body: dict[str, Any]) -> Blueprint:
    return Blueprint(
        subnet=IPv4Network(body["subnet"]),
        link=body["link"],
        gateway=body["gateway"],
        switch=body["switch"],
        switch_mac=body["switch_mac"],
        dhcp=(body["dhcp"][0], body["dhcp"][1]),
        static=(body["static"][0], body["static"][1]),
        hosts=tuple(HostPlan(**h) for h in body["hosts"]),
    )
