"""The journal of operations: what a process is about to do, on disk before it does it.

One JSON file an operation in HOME/jobs. While the operation runs, its process holds a lock beside it; when it has
ended in order, the file is gone. A file that nobody holds is the trace of a crash: the floor that wrote it knows how to
finish or undo it. (A lock, and not a process number, since the kernel lets go of it on any kind of death, and since it
means the same in every PID namespace.)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from vmkit.errors import ConflictError, IndeterminateError
from vmkit.system.files import ensure_dir, home, sync_dir, write_atomic

DAMAGED: Final = "damaged"
"""Kind of a record whose file cannot be read."""


@dataclass(frozen=True, slots=True)
class Record:
    """One operation.

    Attributes:
        id: short, unique on this machine: 'migrate-3f9a2c'.
        kind: which floor wrote it: 'migrate', 'hotfix', 'create', 'lab', 'image'.
        subject: the VM, image or patch it is about.
        pid: process that carries it out, as it sees itself.
        started: UTC, ISO 8601.
        phase: how far it is, in the words of the floor that wrote it.
        data: what is needed to finish or undo it. Plain JSON values.
    """

    id: str
    kind: str
    subject: str
    pid: int
    started: str
    phase: str
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Its file."""
        return _folder() / f"{self.id}.json"

    @property
    def orphaned(self) -> bool:
        """Whether the process that carried it out is gone."""
        if not self.path.exists():
            return False
        try:
            with _held(self.id):
                return True
        except ConflictError:
            return False

    @property
    def cancel_path(self) -> Path:
        """The file whose presence asks the process to stop."""
        return _folder() / f"{self.id}.cancel"

    @property
    def cancelled(self) -> bool:
        """Whether someone asked for it to stop."""
        return self.cancel_path.exists()

    def request_cancel(self) -> None:
        """Ask the process that carries it out to stop; it looks at its next step."""
        write_atomic(self.cancel_path, f"{os.getpid()}\n")


class Entry:
    """The open journal entry of the calling process.

    Attributes:
        record: what is on disk now.
        keep: leave the file when the block ends, so that the next command looks at what became of it.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.keep = False

    def advance(self, phase: str, **data: Any) -> None:
        """Write the next phase, and what has become known, to disk before the effect it speaks of.

        Raises:
            RefusedError: the file cannot be written.
        """
        self.record = replace(self.record, phase=phase, data={**self.record.data, **data})
        _write(self.record)

    @property
    def cancelled(self) -> bool:
        """Whether another process asked for this operation to stop."""
        return self.record.cancelled


@contextlib.contextmanager
def journalled(kind: str, subject: str, phase: str, **data: Any) -> Iterator[Entry]:
    """Keep a journal entry while the block runs.

    The entry goes when the block ends, by itself or with an error: a block cleans up before it raises. It stays if the
    block raises IndeterminateError or sets `keep`; then the next command takes it up as if the process had died.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = Record(f"{kind}-{secrets.token_hex(3)}", kind, subject, os.getpid(), now, phase, data)
    ensure_dir(_folder(), 0o700)
    with _held(record.id):
        _write(record)
        entry = Entry(record)
        try:
            yield entry
        except IndeterminateError:
            entry.keep = True
            raise
        finally:
            if not entry.keep:
                remove(entry.record)


@contextlib.contextmanager
def taken_over(record: Record) -> Iterator[Entry | None]:
    """Hold the entry of a dead process in order to finish or undo it; None if another process was faster.

    As with `journalled`, the entry goes when the block ends unless it raises IndeterminateError or sets `keep`.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_held(record.id))
        except ConflictError:
            yield None
            return
        current = _read(record.path)
        if current is None:
            yield None
            return
        entry = Entry(current)
        try:
            yield entry
        except BaseException:
            entry.keep = True
            raise
        finally:
            if not entry.keep:
                remove(entry.record)


def records(kind: str | None = None) -> list[Record]:
    """Every operation that is running or was cut off, oldest first. One listing of a folder where there is none."""
    try:
        paths = [p for p in _folder().iterdir() if p.suffix == ".json" and not p.name.startswith(".")]
    except (FileNotFoundError, PermissionError):
        return []
    found = [r for p in paths if (r := _read(p)) and kind in (None, r.kind)]
    return sorted(found, key=lambda r: (r.started, r.id))


def remove(record: Record) -> None:
    """Forget an operation: it has ended, or was finished or undone."""
    for path in (record.path, record.cancel_path, _folder() / f"{record.id}.lock"):
        path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        sync_dir(_folder())


def _folder() -> Path:
    return home() / "jobs"


def _write(record: Record) -> None:
    body = {
        "id": record.id,
        "kind": record.kind,
        "subject": record.subject,
        "pid": record.pid,
        "started": record.started,
        "phase": record.phase,
        "data": record.data,
    }
    write_atomic(record.path, json.dumps(body, indent=1), mode=0o600)


def _read(path: Path) -> Record | None:
    """None where the file went away meanwhile: its operation has just ended. One that no journal wrote is DAMAGED."""
    try:
        b = json.loads(path.read_text())
        return Record(b["id"], b["kind"], b["subject"], b["pid"], b["started"], b["phase"], b["data"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Record(path.stem, DAMAGED, "-", 0, "", DAMAGED)


@contextlib.contextmanager
def _held(record_id: str) -> Iterator[None]:
    fd = os.open(_folder() / f"{record_id}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConflictError(
            f"the operation {record_id} is being carried out by another process", hint="wait for it: vmkit jobs"
        ) from None
    finally:
        os.close(fd)
