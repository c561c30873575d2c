"""Folders as tar archives. A guest is not trusted: what it sends stays in the folder it was asked for."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vmkit.errors import EffectError, RefusedError


def pack(folder: Path, name: str, sink: BinaryIO) -> int:
    """Write a folder as a tar archive whose only member at the top is `name`; returns the number of its files.

    Everything belongs to root in it, since this machine's users are not the guest's. Sockets are left out.

    Raises:
        RefusedError: something in it cannot be read.
    """
    count = 0

    def ours(member: tarfile.TarInfo) -> tarfile.TarInfo:
        nonlocal count
        count += member.isfile()
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    try:
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as archive:
            archive.add(folder, arcname=name, filter=ours)
    except OSError as e:
        raise RefusedError(
            f"cannot read {e.filename or folder}: {e.strerror}", hint="see who may read it: ls -l"
        ) from e
    return count


def unpack(source: BinaryIO, folder: Path) -> tuple[int, tuple[str, ...]]:
    """Unpack a tar archive into a folder, which is made if it is missing. Files that are there are replaced.

    Owners, set-uid bits and devices of the guest are not taken over, and nothing is written outside of the folder:
    not by '..', not by an absolute name, not through a symbolic link.

    Returns:
        The number of files, and the names of what was left out.

    Raises:
        EffectError: it is damaged, or tries to write elsewhere; what came before is there.
    """
    files, left_out = 0, []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for member in archive:
                path = _within(folder, member.name)
                if member.isdir():
                    path.mkdir(exist_ok=True)
                    path.chmod(stat.S_IRWXU | member.mode & 0o777)
                elif member.isfile():
                    _write(archive, member, path)
                    files += 1
                elif member.issym():
                    _remove(path)
                    path.symlink_to(member.linkname)
                elif member.islnk():
                    _remove(path)
                    os.link(_within(folder, member.linkname), path, follow_symlinks=False)
                    files += 1
                else:
                    left_out.append(member.name)
    except tarfile.TarError as e:
        raise EffectError(
            f"what the guest sent is damaged: {e}",
            left=f"a part of it is in {folder}",
            hint="try again; is there room in the guest's /var/tmp?",
        ) from e
    except OSError as e:
        raise EffectError(
            f"cannot write {e.filename or folder}: {e.strerror}",
            hint=f"see the folder: ls -ld {folder}; df -h {folder}",
        ) from e
    return files, tuple(left_out)


def _within(folder: Path, name: str) -> Path:
    """The path of a member; its parents are real folders below `folder`."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise EffectError(
            f"the guest sent {name!r}, which would leave the folder",
            left=f"{folder} holds what came before",
            hint="its tar is not to be trusted; copy single files",
        )
    path = folder
    for part in parts[:-1]:
        path = path / part
        if path.is_symlink():
            raise EffectError(
                f"the guest sent {name!r}, which leads through a symbolic link",
                hint="nothing is written outside of the folder; copy that part by itself",
            )
        path.mkdir(exist_ok=True)
    return path / parts[-1] if parts else folder


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = archive.extractfile(member)
    _remove(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as f:
        if content is not None:
            shutil.copyfileobj(content, f, 1 << 20)
        os.fchmod(fd, stat.S_IRUSR | member.mode & 0o777)
    os.utime(path, (member.mtime, member.mtime))


def _remove(path: Path) -> None:
    """Make room for a file or a link; a folder stays, and its name is then taken."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()
