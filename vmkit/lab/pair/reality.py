"""Which hosts of a pair lab run, by what there is of their processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmkit.lab.layout import Layout
from vmkit.lab.pair.blueprint import Blueprint
from vmkit.lab.pair.config import DAEMONS
from vmkit.lab.reality import processes
from vmkit.system.namespaces import Resident


@dataclass(frozen=True, slots=True)
class HostReality:
    """A host that runs.

    Attributes:
        init: number of its first process, as this PID namespace sees it.
        missing: daemons that should run in it and do not.
    """

    init: int
    missing: tuple[str, ...]


def running_hosts(layout: Layout, plan: Blueprint | None) -> tuple[dict[str, HostReality], bool]:
    """The hosts that run, by name; and whether the switch does."""
    names = {h.name for h in plan.hosts} if plan else set()
    mine = processes(layout)
    hosts = {}
    for init in mine:
        if not init.mark or init.inner_pid != 1:
            continue
        name = _hostname(init)
        if name in names:
            commands = {r.command for r in mine if r.pids == init.pids}
            hosts[name] = HostReality(init.id.pid, tuple(d for d in DAEMONS if d not in commands))
    return hosts, any(r.mark and r.command == "dnsmasq" for r in mine)


def _hostname(init: Resident) -> str:
    """A host's name is in the argument of its init: .../lab/pair/h1/init.json."""
    try:
        words = Path(f"/proc/{init.id.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    path = next((w.decode(errors="replace") for w in words if w.endswith(b"/init.json")), "")
    return Path(path).parent.name
