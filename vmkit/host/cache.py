"""Verdicts on KVM, kept until the host boots again or its hypervisor changes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vmkit.errors import UnsupportedError
from vmkit.host.verdict import KvmVerdict
from vmkit.hypervisor.host import Host
from vmkit.system.boot import boot_id
from vmkit.system.files import ensure_dir, home, locked, write_atomic

_SLACK: Final = 120.0
_DRIFT: Final = 0.1
_LIMIT: Final = 200
"""Hosts that are remembered; the oldest go."""


@dataclass(frozen=True, slots=True)
class Boot:
    """What tells one boot of a host from the next.

    Attributes:
        id: the kernel's own identifier, for this machine; '' for others, where it cannot be read.
        uptime: seconds of CPU time per CPU since boot, idle time included.
        wall: this machine's clock (seconds since 1970) when that was read.
        hypervisor: version of QEMU.
    """

    id: str
    uptime: float
    wall: float
    hypervisor: str


def same_boot(before: Boot, now: Boot) -> bool:
    """Whether a host has not booted, nor changed its hypervisor, between two looks at it.

    Without an identifier the uptime has to have grown by the time that has passed; 10 % and 120 s of difference are
    allowed, since stolen time is not counted.
    """
    if before.hypervisor != now.hypervisor or bool(before.id) != bool(now.id):
        return False
    if now.id:
        return before.id == now.id
    passed = now.wall - before.wall
    if passed < 0 or now.uptime < before.uptime:
        return False
    return abs(now.uptime - before.uptime - passed) <= _DRIFT * passed + _SLACK


def boot_of(host: Host) -> Boot:
    """What identifies the host's present boot."""
    version = ".".join(map(str, host.hypervisor_version()))
    own = boot_id() if host.local else ""
    try:
        uptime = 0.0 if own else host.cpu_seconds()
    except UnsupportedError:
        uptime = 0.0
    return Boot(own, uptime, time.time(), version)


def recall(uuid: str, now: Boot) -> KvmVerdict | None:
    """The verdict on the host with this uuid, if it still holds. A damaged file counts as none."""
    entry: Any = _read().get(uuid)
    try:
        before = Boot(**entry["boot"])
        verdict = KvmVerdict(**entry["verdict"])
    except (TypeError, KeyError):
        return None
    return verdict if same_boot(before, now) else None


def remember(uuid: str, now: Boot, verdict: KvmVerdict) -> None:
    """Keep a verdict.

    Raises:
        RefusedError: the file cannot be written.
    """
    folder = ensure_dir(_path().parent)
    with locked(folder / "kvm-probe.lock", busy="the cache of KVM probes is in use", wait=10.0):
        entries = _read()
        entries.pop(uuid, None)
        entries[uuid] = {
            "boot": {"id": now.id, "uptime": now.uptime, "wall": now.wall, "hypervisor": now.hypervisor},
            "verdict": {"works": verdict.works, "reason": verdict.reason, "seconds": verdict.seconds},
        }
        kept = dict(list(entries.items())[-_LIMIT:])
        write_atomic(_path(), json.dumps(kept, indent=1) + "\n")


def _path() -> Path:
    return home() / "cache" / "kvm-probe.json"


def _read() -> dict[str, Any]:
    try:
        entries = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
