"""What there is of a lab on this machine, whatever its state file says; and the removal of it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmkit.errors import DeadlineError, EffectError
from vmkit.lab.config import DAEMONS, FURNISHED
from vmkit.lab.layout import MARK, Layout
from vmkit.lab.state import LabState
from vmkit.system.clock import Deadline
from vmkit.system.files import sync_dir
from vmkit.system.mounts import mounts_under
from vmkit.system.namespaces import Resident, residents
from vmkit.system.process import ProcessId


@dataclass(frozen=True, slots=True)
class HostReality:
    """A host that runs.

    Attributes:
        init: number of its first process, as this PID namespace sees it.
        missing: daemons that should run in it and do not.
    """

    init: int
    missing: tuple[str, ...]


def processes(layout: Layout) -> list[Resident]:
    """Every process of the lab: those that carry its mark, and those that share a namespace with one that does.

    Processes of the machine's own network namespace are never among them.
    """
    everyone = residents(MARK)
    networks = {r.network for r in everyone if r.mark == str(layout.folder)}
    return [r for r in everyone if r.network in networks]


def labs_with_processes(folder: Path) -> set[str]:
    """Names of the labs below `folder` that have processes, whether their files are there or not."""
    return {Path(r.mark).name for r in residents(MARK) if r.mark and Path(r.mark).parent == folder}


def inside() -> bool:
    """Whether this process runs in a lab's host, from where labs cannot be seen whole."""
    return Path(FURNISHED).exists()


def running_hosts(layout: Layout, state: LabState) -> tuple[dict[str, HostReality], bool]:
    """The hosts that run, by name; and whether the switch does."""
    names = {h.name for h in state.plan.hosts} if state.plan else set()
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


def guests(found: Sequence[Resident]) -> list[Resident]:
    """Those of the processes that are guests."""
    return [r for r in found if r.command.startswith("qemu-system")]


def end_processes(layout: Layout, *, timeout: float = 15.0) -> int:
    """Kill every process of the lab and wait until none is left; returns how many there were.

    A host's init goes first: the kernel then ends all that is in the host at once.

    Raises:
        EffectError: some are still there after `timeout` seconds.
    """
    seen: set[ProcessId] = set()
    left: list[Resident] = []

    def none_left() -> bool:
        left[:] = sorted(processes(layout), key=lambda r: (r.inner_pid != 1, r.id.pid))
        for resident in left:
            seen.add(resident.id)
            resident.id.kill(signal.SIGKILL)
        return not left

    try:
        Deadline(timeout).wait_for("end of the lab's processes", none_left, interval=0.02)
    except DeadlineError as e:
        names = ", ".join(f"{r.command} ({r.id.pid})" for r in left)
        raise EffectError(
            f"processes of the lab {layout.name} do not end: {names}",
            left="its files are still there",
            hint=f"try again: vmkit lab down {layout.name}",
        ) from e
    return len(seen)


def remove_links(layout: Layout) -> None:
    """Delete the lab's interfaces in this network namespace, which it knows by their alias.

    One that got no alias yet needs no removal: its other end is in a namespace that ends with the process that made it.
    """
    from vmkit.system.netlink import Links

    with Links() as links:
        for link in links.all():
            if link.alias == layout.alias:
                links.delete(link.name)


def remove_files(layout: Layout) -> None:
    """Delete the lab's folder, the state file last.

    Raises:
        EffectError: something is mounted in it, or a file cannot be deleted.
    """
    if not layout.folder.exists():
        return
    if mounted := mounts_under(layout.folder):
        raise EffectError(
            f"{mounted[0]} is mounted inside the lab's folder", left="the folder is kept", hint=f"umount {mounted[0]}"
        )
    try:
        for entry in layout.folder.iterdir():
            if entry == layout.state:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        layout.state.unlink(missing_ok=True)
        layout.folder.rmdir()
        sync_dir(layout.folder.parent)
    except OSError as e:
        raise EffectError(
            f"cannot delete {e.filename or layout.folder}: {e.strerror}",
            left="the rest of the folder is kept",
            hint=f"try again: vmkit lab down {layout.name}",
        ) from e
