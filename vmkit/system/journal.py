"""The journal of operations: what a process is about to do, on disk before it does it.

One JSON file an operation in HOME/jobs. While the operation runs, its file names the process; when it has ended in
order, the file is gone. A file whose process no longer runs is the trace of a crash: the floor that wrote it knows how
to finish or undo it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vmkit.system.files import ensure_dir, home, sync_dir, write_atomic
from vmkit.system.process import ProcessId


@dataclass(frozen=True, slots=True)
class Record:
    """One operation.

    Attributes:
        id: short, unique on this machine: 'migrate-3f9a2c'.
        kind: which floor wrote it: 'migrate', 'hotfix', 'create', 'lab', 'image'.
        subject: the VM, image or patch it is about.
        process: who carries it out.
        started: UTC, ISO 8601.
        phase: how far it is, in the words of the floor that wrote it.
        data: what is needed to finish or undo it. Plain JSON values.
    """

    id: str
    kind: str
    subject: str
    process: ProcessId
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
        return not self.process.alive()

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
    """The open journal entry of the calling process."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def advance(self, phase: str, **data: Any) -> None:
        """Write the next phase, and what has become known, to disk before the effect it speaks of.

        Raises:
            RefusedError: the file cannot be written.
        """
        r = self.record
        self.record = Record(r.id, r.kind, r.subject, r.process, r.started, phase, {**r.data, **data})
        _write(self.record)

    @property
    def cancelled(self) -> bool:
        """Whether another process asked for this operation to stop."""
        return self.record.cancelled


@contextlib.contextmanager
def journalled(kind: str, subject: str, phase: str, **data: Any) -> Iterator[Entry]:
    """Keep a journal entry while the block runs.

    The entry is removed when the block ends, by itself or with an error: a block that leaves something to be done must
    do it before it raises, or raise `KeepJournal`'s sign by setting `entry.record` to a phase and calling `keep`.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = Record(f"{kind}-{secrets.token_hex(3)}", kind, subject, ProcessId.this(), now, phase, data)
    ensure_dir(_folder(), 0o700)
    _write(record)
    entry = Entry(record)
    try:
        yield entry
    finally:
        remove(entry.record)


def records(kind: str | None = None) -> list[Record]:
    """Every operation that is running or was cut off, oldest first. Costs one listing of a folder where there is none."""
    try:
        names = [n for n in os.listdir(_folder()) if n.endswith(".json")]
    except (FileNotFoundError, PermissionError):
        return []
    found = [r for n in names if (r := _read(_folder() / n)) and kind in (None, r.kind)]
    return sorted(found, key=lambda r: (r.started, r.id))


def remove(record: Record) -> None:
    """Forget an operation: it has ended, or was finished or undone."""
    record.path.unlink(missing_ok=True)
    record.cancel_path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        sync_dir(_folder())


def _folder() -> Path:
    return home() / "jobs"


def _write(record: Record) -> None:
    body = {
        "id": record.id,
        "kind": record.kind,
        "subject": record.subject,
        "pid": record.process.pid,
        "pid_start": record.process.start,
        "started": record.started,
        "phase": record.phase,
        "data": record.data,
    }
    write_atomic(record.path, json.dumps(body, indent=1), mode=0o600)


def _read(path: Path) -> Record | None:
    """None where the file went away meanwhile: its operation has just ended."""
    try:
        b = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    process = ProcessId(b["pid"], b["pid_start"])
    return Record(b["id"], b["kind"], b["subject"], process, b["started"], b["phase"], b["data"])
