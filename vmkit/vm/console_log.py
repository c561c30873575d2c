"""What a guest wrote to its serial console, from its first byte: libvirt logs it into a volume of vmkit's pool."""

from __future__ import annotations

from pathlib import Path

from vmkit.errors import NotFoundError, VmkitError
from vmkit.hypervisor.host import Host
from vmkit.image.place import POOL


def log_name(vm: str) -> str:
    """Name of the volume that holds a VM's console log."""
    return f"{vm}-console.log"


def read(host: Host, volume: str, *, last: int | None = None) -> str:
    """The log, or its last `last` bytes; '' if the guest has not written anything yet.

    Raises:
        UnreachableError: the host does not answer.
    """
    return read_bytes(host, volume, last=last).decode(errors="replace")


def read_bytes(host: Host, volume: str, *, last: int | None = None) -> bytes:
    """As `read`, as it was written."""
    pool = host.pool(POOL)
    local = Path(pool.folder) / volume
    if host.local and local.exists():
        with local.open("rb") as f:
            size = local.stat().st_size
            f.seek(max(0, size - last) if last is not None else 0)
            return f.read()
    try:
        return pool.read(volume, last=last)
    except NotFoundError:
        return b""


def length(host: Host, volume: str | None) -> int:
    """Bytes that have been logged so far; 0 where there is no log."""
    if not volume:
        return 0
    pool = host.pool(POOL)
    local = Path(pool.folder) / volume
    if host.local and local.exists():
        return local.stat().st_size
    pool.refresh()
    try:
        return pool.size(volume)[0]
    except NotFoundError:
        return 0


def read_after(host: Host, volume: str | None, start: int) -> str:
    """As `read_or_nothing`, without the first `start` bytes."""
    try:
        more = length(host, volume) - start
    except VmkitError:
        return ""
    return read_or_nothing(host, volume, last=more) if more > 0 else ""


def remove(host: Host, volume: str) -> None:
    """Forget what was logged, so that the log begins with the next start. Nothing happens if there is none."""
    host.pool(POOL).delete(volume)


def read_or_nothing(host: Host, volume: str | None, *, last: int | None = None) -> str:
    """As `read`, for messages: '' where there is no log or it cannot be read."""
    try:
        return read(host, volume, last=last) if volume else ""
    except VmkitError:
        return ""
