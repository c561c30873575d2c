"""Files that survive a crash: atomic replacement, locks between processes, and where vmkit keeps what is its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vmkit.errors import ConflictError, EffectError, NotFoundError, RefusedError
from vmkit.values import quoted


def home() -> Path:
    """The folder that holds vmkit's own state on this machine.

    $VMKIT_HOME if set; else /var/lib/vmkit for root and $XDG_DATA_HOME/vmkit (~/.local/share/vmkit) for others. It is
    not created here.
    """
    if override := os.environ.get("VMKIT_HOME"):
        return Path(override).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/vmkit")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "vmkit"


def ensure_dir(path: Path, mode: int = 0o755) -> Path:
    """Make a folder and its parents where they are missing. `mode` is set on it only if it is new.

    Raises:
        RefusedError: not permitted, or no space.
    """
    try:
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)
    except OSError as e:
        raise _cannot("make the folder", path, e) from e
    return path


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace a file so that a crash at any moment leaves the old content or the new, and the new is on disk after.

    Raises:
        RefusedError: not permitted, or no space; the old content is untouched.
    """
    import tempfile  # 3 ms that `vmkit list` need not pay

    raw = data.encode() if isinstance(data, str) else data
    temporary = ""
    try:
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(fd, "wb") as f:
            f.write(raw)
            os.fchmod(f.fileno(), mode)
            f.flush()
            os.fsync(f.fileno())
        Path(temporary).replace(path)
        sync_dir(path.parent)
    except OSError as e:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise _cannot("write", path, e) from e


def sync_file(path: Path) -> None:
    """Bring the content of a file to the disk."""
    with path.open("rb") as f:
        os.fsync(f.fileno())


@contextlib.contextmanager
def open_regular(path: Path, what: str, *, limit: int) -> Iterator[BinaryIO]:
    """Open a file that somebody named for reading; a pipe or a device is never waited on.

    Args:
        path: the file.
        what: what it should be, for messages: 'patch file'.
        limit: largest size in bytes.

    Raises:
        NotFoundError: there is none.
        RefusedError: not permitted, not a regular file, or larger.
    """
    import stat

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as e:
        raise NotFoundError(f"no {what} {quoted(str(path))}", hint=f"see what there is: ls {path.parent}") from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise RefusedError(
            f"cannot read the {what} {quoted(str(path))}: {getattr(e, 'strerror', None) or e}",
            hint="see who may read it: ls -l",
        ) from e
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise RefusedError(f"{quoted(str(path))} is not a regular file", hint=f"give the {what} itself")
        if info.st_size > limit:
            raise RefusedError(f"{quoted(str(path))} is larger than {limit} bytes", hint=f"is it really the {what}?")
        with os.fdopen(fd, "rb", closefd=False) as f:
            yield f
    finally:
        os.close(fd)


def sync_dir(path: Path) -> None:
    """Bring the entries of a folder to the disk, so that a rename or an unlink outlives a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(path: Path, *, busy: str, wait: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made if missing); the kernel lets go of it when the process ends.

    Args:
        path: the lock file; it stays behind, unless the block removes it: a lock on a file that has left its path is
            never given to a waiting process.
        busy: the message if another process holds it.
        wait: seconds to wait for it.

    Raises:
        ConflictError: another process holds it.
        RefusedError: the file cannot be made.
    """
    from vmkit.system.clock import Deadline

    ensure_dir(path.parent)
    deadline = Deadline(wait)
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise _cannot("lock", path, e) from e
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                break
        except BlockingIOError:
            if deadline.passed:
                os.close(fd)
                raise ConflictError(busy, hint="try again when it has ended; long operations: vmkit jobs") from None
            time.sleep(0.05)
        os.close(fd)
    try:
        yield
    finally:
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def copy_with_head(source: Path, target: Path, head: bytes) -> None:
    """Make a new file, for its owner alone: `head`, and then what `source` has behind as many bytes.

    The kernel copies; where the file system can, both share the blocks. Nothing is brought to the disk: the file is
    for an immediate use.

    Raises:
        ConflictError: there is a file `target`.
        RefusedError: not permitted, or no space; nothing is left.
    """
    try:
        with source.open("rb") as old:
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as new:
                new.write(head)
                new.flush()
                at, end = len(head), os.fstat(old.fileno()).st_size
                while at < end:
                    copied = os.copy_file_range(old.fileno(), new.fileno(), end - at, at, at)
                    if copied == 0:
                        break
                    at += copied
    except FileExistsError as e:
        raise ConflictError(f"{target} exists", hint="give another name, or move that file away") from e
    except OSError as e:
        target.unlink(missing_ok=True)
        raise _cannot("write", target, e) from e


def free_space(path: Path) -> int:
    """Bytes that this user can still write in the file system of `path` (or of its nearest parent that exists)."""
    while not path.exists():
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def _cannot(verb: str, path: Path, error: OSError) -> RefusedError | EffectError:
    import errno

    if error.errno == errno.ENOSPC:
        return RefusedError(f"cannot {verb} {path}: no space left", hint=f"free some space: df -h {path.parent}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RefusedError(
            f"cannot {verb} {path}: {error.strerror}", hint="run as root, or set VMKIT_HOME to a folder of your own"
        )
    return EffectError(
        f"cannot {verb} {path}: {error.strerror}",
        hint=f"see the disk and the folder: df -h {path.parent}; ls -ld {path.parent}",
    )
