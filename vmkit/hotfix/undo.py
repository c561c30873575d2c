"""What vmkit remembers of a patch: its text, and the bytes that it took the place of, process by process.

HOME/hotfix/ID/record.json, replaced atomically and on disk before the first byte is written. It says where to look,
never what is there: whether a process carries a patch is read from its memory each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from vmkit.errors import IndeterminateError
from vmkit.hotfix.verify import Span, Write
from vmkit.system.files import ensure_dir, home, locked, write_atomic
from vmkit.system.process import ProcessId
from vmkit.values import check_name


@dataclass(frozen=True, slots=True)
class Saved:
    """One process that was written to, or was about to be.

    Attributes:
        process: the process.
        guest: name of its VM at that time.
        writes: `old` is what was there before the patch, `new` is the patch; in apply's direction whatever was done.
        room: memory that it has mapped for the patch, or was about to; None if the patch needs none.
    """

    process: ProcessId
    guest: str
    writes: tuple[Write, ...]
    room: Span | None = None


@dataclass(frozen=True, slots=True)
class Remembered:
    """The record of one patch: the text of the patch file, and what it replaced.

    Attributes:
        active: whether processes that come later are to get it too.
        files: for each executable that it was applied to, by path, its build id.
        boot: for a patch of the kernel, which boot of it carries it, as far as is known; '' if none does.
    """

    patch_id: str
    text: str
    saved: tuple[Saved, ...]
    active: bool = False
    files: dict[str, str] = field(default_factory=dict)
    boot: str = ""

    def of(self, process: ProcessId) -> tuple[Write, ...]:
        """What was replaced in this process; () if nothing is known."""
        return next((s.writes for s in self.saved if s.process == process), ())

    def room_of(self, process: ProcessId) -> Span | None:
        """The room for new code in this process."""
        return next((s.room for s in self.saved if s.process == process), None)


def one_at_a_time(wait: float = 0.0) -> AbstractContextManager[None]:
    """Hold the lock of this machine's hotfixes. Raises ConflictError if another process has it for over `wait` s."""
    return locked(home() / "hotfix" / "lock", busy="another hotfix is being applied on this machine", wait=wait)


def save(patch_id: str, text: str, saved: Sequence[Saved]) -> None:
    """Remember a patch and these processes, beside what is known of others that still run. On disk when it returns.

    Raises:
        RefusedError: it cannot be written; what was there before still is.
    """
    before = recall(patch_id) or Remembered(patch_id, text, ())
    fresh = {s.process for s in saved}
    kept = [s for s in before.saved if s.process not in fresh and s.process.alive()]
    _write(replace(before, text=text, saved=(*kept, *saved)))


def forget(patch_id: str, processes: Iterable[ProcessId]) -> None:
    """Drop these processes, and those that have ended. The patch stays known, so that it can be applied by id."""
    before = recall(patch_id)
    if before is not None:
        gone = set(processes)
        kept = tuple(s for s in before.saved if s.process not in gone and s.process.alive())
        _write(replace(before, saved=kept))


def activate(patch_id: str, *, on: bool, files: Mapping[str, str] | None = None) -> None:
    """Remember whether processes that come later are to get a patch, and which files (path: build id) it is in.

    Raises:
        RefusedError: it cannot be written.
        IndeterminateError: the record is damaged.
    """
    before = recall(patch_id)
    if before is not None and (before.active is not on or files):
        _write(replace(before, active=on, files={**before.files, **(files or {})} if on else {}))


def carried(patch_id: str, boot: str) -> None:
    """Remember which boot of the kernel carries a patch; '' if none does. Raises as `activate` does."""
    before = recall(patch_id)
    if before is not None and before.boot != boot:
        _write(replace(before, boot=boot))


def active() -> list[Remembered]:
    """The patches that processes that come later are to get. Raises IndeterminateError if a record is damaged."""
    return [r for patch_id in known() if (r := recall(patch_id)) is not None and r.active]


def recall(patch_id: str) -> Remembered | None:
    """What is known of a patch; None if nothing is.

    Raises:
        IndeterminateError: the record is damaged.
    """
    path = _path(patch_id)
    try:
        body = json.loads(path.read_text())
        saved = tuple(
            Saved(
                ProcessId(s["pid"], s["start"]),
                s["guest"],
                tuple(Write(a, bytes.fromhex(old), bytes.fromhex(new)) for a, old, new in s["writes"]),
                Span(*s["room"]) if s.get("room") else None,
            )
            for s in body["processes"]
        )
        files = {str(k): str(v) for k, v in body.get("files", {}).items()}
        boot = str(body.get("boot", ""))
        return Remembered(patch_id, body["patch"], saved, bool(body.get("active", False)), files, boot)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as e:
        raise IndeterminateError(
            f"the undo record of patch {patch_id} cannot be read: {e}", hint=f"look at {path}"
        ) from e


def known() -> list[str]:
    """Patches that there is a record of, by name."""
    try:
        return sorted(p.parent.name for p in (home() / "hotfix").glob("*/record.json"))
    except OSError:
        return []


def _path(patch_id: str) -> Path:
    return home() / "hotfix" / check_name(patch_id, path="id") / "record.json"


def _write(remembered: Remembered) -> None:
    body = {
        "patch": remembered.text,
        "active": remembered.active,
        "files": remembered.files,
        "boot": remembered.boot,
        "processes": [
            {
                "pid": s.process.pid,
                "start": s.process.start,
                "guest": s.guest,
                "room": [s.room.address, s.room.length] if s.room else None,
                "writes": [[w.address, w.old.hex(), w.new.hex()] for w in s.writes],
            }
            for s in remembered.saved
        ],
    }
    path = _path(remembered.patch_id)
    ensure_dir(path.parent, 0o700)
    write_atomic(path, json.dumps(body, indent=1), mode=0o600)
