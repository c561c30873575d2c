"""What there is of a lab on this machine, whatever its state file says; and the removal of it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from vmkit.errors import DeadlineError, EffectError
from vmkit.lab.layout import FURNISHED, MARK, Layout
from vmkit.system.clock import Deadline
from vmkit.system.files import sync_dir
from vmkit.system.mounts import mounts_under
from vmkit.system.namespaces import Resident, own_networks, residents
from vmkit.system.process import ProcessId


def processes(layout: Layout) -> list[Resident]:
    """Every process of the lab: those that carry its mark, and those that share a namespace with one that does.

    Of the machine's own network namespace only virtual machines that carry the mark are among them.
    """
    own = own_networks()
    everyone = residents(MARK)
    networks = {r.network for r in everyone if r.mark == str(layout.folder)} - own
    return [r for r in everyone if r.network in networks or _machine_of(r, layout.folder)]


def machines(layout: Layout) -> list[Resident]:
    """The lab's virtual machines in this machine's own network namespace."""
    return [r for r in residents(MARK) if _machine_of(r, layout.folder)]


def _machine_of(resident: Resident, folder: Path) -> bool:
    return resident.mark == str(folder) and resident.command.startswith("qemu-system")


def labs_with_processes(folder: Path) -> set[str]:
    """Names of the labs below `folder` that have processes, whether their files are there or not."""
    own = own_networks()
    marked = {
        Path(r.mark) for r in residents(MARK) if r.mark and (r.network not in own or _machine_of(r, Path(r.mark)))
    }
    return {path.name for path in marked if path.parent == folder}


def inside() -> bool:
    """Whether this process runs in a host made of namespaces, from where labs cannot be seen whole."""
    return Path(FURNISHED).exists()


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
