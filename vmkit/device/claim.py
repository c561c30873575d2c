"""What vmkit notes on a host about a function before it lends it out: who asked, and how the function was before.

A claim is a small file in the host's /run, which is gone after a reboot as are drivers' bindings and the settings of
virtual functions. It is written before the first change and removed after the last one was taken back; so one without
a living user tells which function was left behind, by whom, and what it was like. Pure: text in, values out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from vmkit.system.vf import VfSettings

FOLDER: Final = "/run/vmkit/devices"


@dataclass(frozen=True, slots=True)
class Process:
    """A process of some machine, in such a way that another machine, boot or PID namespace is not mistaken for it."""

    host: str
    boot: str
    namespace: str
    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A function that is lent out, or is about to be.

    Attributes:
        address: of the function.
        vm, uuid: who gets it.
        work: the operation, as in 'create web1'.
        by: the process that carries it out.
        since: UTC, ISO 8601.
        lent: the operation has come to its end; from then on the VM is the one that has it.
        driver: which drove it before; None for none.
        pf, net, number: physical function, its network interface, and the number of the virtual function; None for a
            function that is no VF, or whose physical function has no interface.
        before: its settings before; None as for `pf`.
    """

    address: str
    vm: str
    uuid: str
    work: str
    by: Process
    since: str
    lent: bool = False
    driver: str | None = None
    pf: str | None = None
    net: str | None = None
    number: int | None = None
    before: VfSettings | None = None

    def now_lent(self) -> Claim:
        """The same after the operation."""
        return replace(self, lent=True)


def to_text(claim: Claim) -> str:
    """The content of a claim's file: JSON in one line."""
    return json.dumps(asdict(claim), sort_keys=True)


def read_claim(text: str, prefix: str = "") -> Claim | None:
    """Read it back; None where it is not one that this version wrote. `prefix` is put before the text."""
    try:
        body: dict[str, Any] = json.loads(prefix + text)
        before = body.pop("before")
        return Claim(**{**body, "by": Process(**body["by"]), "before": VfSettings(**before) if before else None})
    except (ValueError, KeyError, TypeError):
        return None
