"""Mounting, in the mount namespace of the caller."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from vmkit.errors import EffectError

_MS_NOSUID: Final = 2  # <sys/mount.h>
_MS_NODEV: Final = 4
_MS_BIND: Final = 4096
_MNT_DETACH: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


def bind(source: Path, target: Path) -> None:
    """Have the file or folder `source` seen at `target`, which exists.

    Raises:
        EffectError: the kernel refused.
    """
    _mount(str(source), target, None, _MS_BIND, None)


def tmpfs(target: Path, *, mode: int = 0o755) -> None:
    """Lay an empty file system in memory over the folder `target`.

    Raises:
        EffectError: the kernel refused.
    """
    _mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode={mode:o}")


def sysfs(target: Path = Path("/sys")) -> None:
    """Mount a sysfs that shows the network namespace of the caller.

    Raises:
        EffectError: the kernel refused.
    """
    _mount("sysfs", target, "sysfs", _MS_NOSUID | _MS_NODEV, None)


def detach_under(folder: Path) -> None:
    """Take every mount at or below `folder` out of this mount namespace; what uses one keeps it (MNT_DETACH).

    Raises:
        EffectError: the kernel refused.
    """
    # A mount may hide another one, which can be reached only after it: hence the rounds.
    while points := mounts_under(folder):
        if not any([_libc.umount2(str(point).encode(), _MNT_DETACH) == 0 for point in points]):  # noqa: C419 - all of them
            raise EffectError(f"cannot unmount {points[0]}: {os.strerror(ctypes.get_errno())}")


def mounts_under(folder: Path) -> list[Path]:
    """Mount points at or below a folder, deepest first, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4].encode().decode("unicode_escape"))
        if point == folder or folder in point.parents:
            found.append(point)
    return sorted(found, key=lambda p: len(p.parts), reverse=True)


def _mount(source: str, target: Path, kind: str | None, flags: int, data: str | None) -> None:
    words = [None if w is None else w.encode() for w in (source, str(target), kind, data)]
    if _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise EffectError(f"cannot mount {source} on {target}: {reason}")
