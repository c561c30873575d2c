"""What was done with hotfixes on this machine: one line an event, each bound to the one before it by a hash.

HOME/hotfix/history.jsonl. Lines are only ever added, and are on disk before `add` returns. A line's hash is the
SHA-256 of the line without it (JSON, keys sorted, no blanks), which names the hash of the line before: who changes,
drops or puts in a line breaks the chain there. That the newest lines were cut off cannot be seen in the file alone;
whoever wants to be sure of that keeps the newest hash elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from vmkit.errors import IndeterminateError, RefusedError, VmkitError
from vmkit.system.files import ensure_dir, home, locked, sync_dir

FIRST: Final = "0" * 64
"""What the first line names as the hash before it."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line.

    Attributes:
        number: from 1.
        time: UTC, ISO 8601.
        uid: who did it, a number of /etc/passwd.
        what: 'applied', 'reverted', 'failed', 'repaired', 'patched at start', 'patched on arrival',
            'patched by watch' or 'retired'.
        id: of the patch.
        host: libvirt URI.
        processes: each as 'VM (process N)'.
        detail: what went wrong, or what became of it; '' if there is nothing to say.
        before: hash of the line before; FIRST for the first.
        hash: of this one.
    """

    number: int
    time: str
    uid: int
    what: str
    id: str
    host: str
    processes: tuple[str, ...]
    detail: str
    before: str
    hash: str


def digest(event: dict[str, Any]) -> str:
    """The hash of a line, given as its fields; one named 'hash' does not count."""
    body = {k: v for k, v in event.items() if k != "hash"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check(lines: Iterable[str], what: str) -> tuple[Event, ...]:
    """Read lines and follow the chain. Pure.

    Raises:
        IndeterminateError: a line is not what was written; `what` names the file.
    """
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        try:
            raw = json.loads(line)
            sound = set(raw) == {f.name for f in fields(Event)} and digest(raw) == raw["hash"]
            event = Event(**{**raw, "processes": tuple(raw["processes"])}) if sound else None
        except (ValueError, TypeError):
            event = None
        before = events[-1].hash if events else FIRST
        if event is None or event.number != number or event.before != before:
            raise IndeterminateError(
                f"line {number} of {what} is not as it was written: it, or one before it, was changed or is missing",
                hint="compare with a copy; the lines before it are sound",
            )
        events.append(event)
    return tuple(events)


def read() -> tuple[Event, ...]:
    """All events, oldest first, with the chain verified. () if there are none.

    Raises:
        IndeterminateError: the chain is broken.
        RefusedError: the file cannot be read.
    """
    path = _path()
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as e:
        raise RefusedError(f"{path} cannot be read: {e}") from e
    return check(text.splitlines(), str(path))


def add(what: str, patch_id: str, host: str, processes: Sequence[str] = (), detail: str = "") -> None:
    """Add an event. It is on disk when this returns.

    A chain that is broken already is gone on with at its last line, so that what is done is never left unrecorded.

    Raises:
        RefusedError: it cannot be written; the file is as it was.
    """
    path = _path()
    ensure_dir(path.parent, 0o700)
    with locked(path.with_suffix(".lock"), busy="the history of hotfixes is being written", wait=10.0):
        number, before = _last(path)
        body: dict[str, Any] = {
            "number": number + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "uid": os.getuid(),
            "what": what,
            "id": patch_id,
            "host": host,
            "processes": list(processes),
            "detail": detail,
            "before": before,
        }
        line = json.dumps({**body, "hash": digest(body)}) + "\n"
        try:
            _append(path, line.encode())
        except OSError as e:
            raise RefusedError(f"cannot write {path}: {e.strerror}", hint=f"df {path.parent}") from e
        sync_dir(path.parent)


def note(what: str, patch_id: str, host: str, processes: Sequence[str] = (), detail: str = "") -> bool:
    """As `add`, but a failure is an answer: what was done is done, whether it can be written down or not."""
    try:
        add(what, patch_id, host, processes, detail)
    except VmkitError:
        return False
    return True


def _append(path: Path, data: bytes) -> None:
    """All of it, or none: what a full disk cut off is taken away again."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        try:
            # A crash may have left half a line: it stays, as evidence, and the new one begins behind it.
            if size and os.pread(fd, 1, size - 1) != b"\n":
                data = b"\n" + data
            done = os.write(fd, data)
            if done != len(data):
                raise OSError(28, os.strerror(28))
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)


def _last(path: Path) -> tuple[int, str]:
    """Number and hash of the last line that can be read."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return 0, FIRST
    for line in reversed(lines):
        try:
            raw = json.loads(line)
            return int(raw["number"]), str(raw["hash"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0, FIRST


def _path() -> Path:
    return home() / "hotfix" / "history.jsonl"
