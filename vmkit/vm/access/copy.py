"""Copying files and folders between this machine and a guest, as cp(1) would, by any way into the guest."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from vmkit.errors import EffectError, NotFoundError, RefusedError, SpecError, VmkitError
from vmkit.progress import Advanced, Finished, Note, Reporter, Started, silent
from vmkit.system import openssh
from vmkit.system.clock import stopwatch
from vmkit.values import Bytes, quoted
from vmkit.vm.access import archive
from vmkit.vm.access.ways import Way

_GUEST: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*):(.*)\Z", re.DOTALL)
_LOOK: Final = """
p=$(readlink -f -- "$1" 2>/dev/null) || p=$1
if [ -d "$p" ]; then kind=folder; elif [ -f "$p" ]; then kind=file; elif [ -e "$p" ]; then kind=other
elif [ -d "$(dirname -- "$p")" ]; then kind=new; else kind=none; fi
size=0; mode=600
if [ $kind = file ]; then size=$(wc -c <"$p") || exit 1; mode=$(stat -c %a "$p") || mode=644; fi
printf '%s %s %s %s' $kind $size $mode "$p"
"""
_SETTLE: Final = """
[ "$(wc -c <"$1")" -eq "$3" ] || { rm -f -- "$1"; echo "it did not arrive whole" >&2; exit 1; }
chmod "$4" "$1" && mv -f -- "$1" "$2" || { rm -f -- "$1"; exit 1; }
"""


@dataclass(frozen=True, slots=True)
class Place:
    """One end of a copy: a path in the guest of `vm`, or on this machine if that is None."""

    vm: str | None
    path: str


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied: where it came from, where it went, how many files and bytes, in how many seconds."""

    source: str
    target: str
    files: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What is at a path in a guest: 'folder', 'file', 'other', 'new' (could be made) or 'none'; and where it leads."""

    kind: str
    size: int
    mode: int
    path: str


def place(text: str) -> Place:
    """Read `web1:/etc/motd`, `web1:` or a path of this machine; `./a:b` is one of this machine. Pure.

    Raises:
        SpecError: it is empty.
    """
    if not text or "\0" in text:
        raise SpecError(f"{quoted(text)} is no path", hint="write it like web1:/etc/motd, or ./file")
    match = _GUEST.match(text)
    return Place(match[1], match[2] or ".") if match else Place(None, text)


def ends(sources: Sequence[str], target: str) -> tuple[str, tuple[str, ...], str, bool]:
    """The VM, the paths copied from, the path copied to, and whether it goes to the guest. Pure.

    Raises:
        SpecError: not exactly one side is one VM.
    """
    there, froms = place(target), [place(s) for s in sources]
    vms = {p.vm for p in froms}
    hint = "one side is a guest: vmkit copy file web1:/tmp/, or vmkit copy web1:/etc/motd ."
    if len(vms) > 1:
        raise SpecError("the sources are not all in the same place", hint=hint)
    source = next(iter(vms), None)
    if (source is None) == (there.vm is None):
        what = "neither side is a guest" if source is None else "both sides are guests"
        raise SpecError(what, hint=hint)
    return str(source or there.vm), tuple(p.path for p in froms), there.path, source is None


def to_guest(way: Way, sources: Sequence[Path], target: str, reporter: Reporter = silent) -> list[Copied]:
    """Copy files and folders into a guest. A file is there whole or not at all.

    Args:
        way: into the guest.
        sources: files and folders of this machine; links are followed.
        target: path in the guest; a folder takes the sources under their names, another path is the one source's name.
        reporter: told of the progress.

    Raises:
        NotFoundError: a source or the target's folder is not there.
        RefusedError: the target is a file, and a folder or several sources should go there.
        EffectError: it failed in the guest.
    """
    for source in sources:
        if not source.exists():
            raise NotFoundError(
                f"no file {quoted(str(source))} on this machine",
                hint=f"see what there is: ls {quoted(str(source.parent))}",
            )
    at = look(way, target)
    if (len(sources) > 1 or target.endswith("/")) and at.kind != "folder":
        raise NotFoundError(
            f"no folder {quoted(target)} in the guest",
            hint=f"make it first: vmkit exec {way.vm} -- mkdir -p {quoted(target)}",
        )
    if at.kind == "none":
        raise NotFoundError(
            f"no folder for {quoted(target)} in the guest",
            hint=f"make it first: vmkit exec {way.vm} -- mkdir -p {quoted(str(PurePosixPath(target).parent))}",
        )
    done = []
    for source in sources:
        there = str(PurePosixPath(at.path) / source.resolve().name) if at.kind == "folder" else at.path
        clock = stopwatch()
        with _progress(reporter, f"copy {source.name}") as advance:
            if source.is_dir():
                if at.kind not in ("folder", "new"):
                    raise RefusedError(
                        f"{quoted(target)} in the guest is a file, and {quoted(str(source))} a folder",
                        hint="give a folder of the guest, or a name that is free",
                    )
                files, size = _send_folder(way, source, there, advance)
            else:
                files, size = 1, _send_file(way, source, there, advance)
        done.append(Copied(str(source), there, files, size, round(clock(), 3)))
    return done


def from_guest(way: Way, sources: Sequence[str], target: Path, reporter: Reporter = silent) -> list[Copied]:
    """Copy files and folders out of a guest. A file is there whole or not at all.

    Args:
        way: into the guest.
        sources: paths in the guest; links are followed.
        target: of this machine; a folder takes the sources under their names, another path is the one source's name.
        reporter: told of the progress, and of what is no file.

    Raises:
        NotFoundError: a source or the target's folder is not there.
        RefusedError: the target is a file, and a folder or several sources should go there.
        EffectError: it failed.
    """
    into = target.is_dir()
    if not into and (len(sources) > 1 or str(target).endswith(os.sep)):
        raise NotFoundError(
            f"no folder {quoted(str(target))} on this machine", hint=f"make it first: mkdir -p {quoted(str(target))}"
        )
    if not target.absolute().parent.is_dir():
        raise NotFoundError(
            f"no folder for {quoted(str(target))} on this machine",
            hint=f"make it first: mkdir -p {quoted(str(target.parent))}",
        )
    done = []
    for source in sources:
        at = look(way, source)
        if at.kind in ("new", "none"):
            raise NotFoundError(
                f"no file {quoted(source)} in the guest",
                hint=f"see what there is: vmkit exec {way.vm} -- ls {quoted(str(PurePosixPath(source).parent))}",
            )
        if at.kind == "other":
            raise RefusedError(
                f"{quoted(source)} in the guest is neither a file nor a folder",
                hint=f"see what it is: vmkit exec {way.vm} -- ls -l {quoted(source)}",
            )
        here = target / (PurePosixPath(at.path).name or "root") if into else target
        clock = stopwatch()
        with _progress(reporter, f"copy {PurePosixPath(at.path).name}", at.size or None) as advance:
            if at.kind == "folder":
                if here.exists() and not here.is_dir():
                    raise RefusedError(
                        f"{quoted(str(here))} is a file, and {quoted(source)} in the guest a folder",
                        hint="give another folder, or move that file away",
                    )
                files, size = _fetch_folder(way, at.path, here, advance, reporter)
            else:
                files, size = 1, _fetch_file(way, at, here, advance)
        done.append(Copied(source, str(here), files, size, round(clock(), 3)))
    return done


def look(way: Way, path: str) -> Seen:
    """What is at a path in a guest.

    Raises:
        EffectError: the guest cannot tell.
    """
    if not path.startswith("/") and way.name == "agent":
        raise SpecError(
            f"{quoted(path)} is relative, and the guest agent has no home", hint="an absolute path, or --by ssh"
        )
    done = openssh.check(way.run(["sh", "-c", _LOOK, "sh", path.rstrip("/") or "/"]), f"cannot look at {path}")
    kind, size, mode, where = done.stdout.split(" ", 3)
    return Seen(kind, int(size), int(mode, 8), where)


def _send_file(way: Way, source: Path, there: str, advance: _Advance) -> int:
    try:
        with source.open("rb") as f:
            info = os.fstat(f.fileno())
            advance.total = info.st_size
            half = _beside(there)
            try:
                way.put(f, half, advance)
            except BaseException as e:
                with contextlib.suppress(Exception):
                    way.run(["rm", "-f", "--", half])
                if isinstance(e, VmkitError):
                    e.message = e.message.replace(half, there)  # the name that was asked for
                raise
    except OSError as e:
        raise RefusedError(
            f"cannot read {quoted(str(source))}: {e.strerror}", hint=f"see who may read it: ls -l {quoted(str(source))}"
        ) from e
    mode = f"{info.st_mode & 0o777:o}"
    openssh.check(way.run(["sh", "-c", _SETTLE, "sh", half, there, str(info.st_size), mode]), f"cannot write {there}")
    return info.st_size


def _beside(path: str) -> str:
    at = PurePosixPath(path)
    return str(at.with_name(f".{at.name[:200]}.{secrets.token_hex(4)}"))


def _send_folder(way: Way, source: Path, there: str, advance: _Advance) -> tuple[int, int]:
    at = PurePosixPath(there)
    with tempfile.TemporaryFile() as f:
        files = archive.pack(source, at.name, f)
        size = advance.total = f.tell()
        f.seek(0)
        done = way.feed(["tar", "-xf", "-", "-C", str(at.parent)], f, advance)
        openssh.check(done, f"cannot unpack {there} in the guest")
    return files, size


def _fetch_file(way: Way, at: Seen, here: Path, advance: _Advance) -> int:
    half = here.absolute().with_name(f".{here.name[:200]}.{secrets.token_hex(4)}")
    try:
        with half.open("xb") as f:
            os.fchmod(f.fileno(), 0o600)
            way.get(at.path, f, advance)
            size = f.seek(0, os.SEEK_END)
            # What grows while it is read (a log) may be longer, what the kernel makes up (/proc) says nothing of it.
            if size < at.size:
                raise EffectError(
                    f"only {size} of {at.size} bytes of {at.path} arrived",
                    left="nothing was written",
                    hint="it was shortened meanwhile, or the guest is at its end; try again",
                )
            os.fchmod(f.fileno(), at.mode & 0o777)
        half.replace(here)
    except OSError as e:
        raise EffectError(
            f"cannot write {quoted(str(here))}: {e.strerror}",
            hint=f"see the folder: ls -ld {here.parent}; df -h {here.parent}",
        ) from e
    finally:
        half.unlink(missing_ok=True)
    return size


def _fetch_folder(way: Way, path: str, here: Path, advance: _Advance, reporter: Reporter) -> tuple[int, int]:
    with tempfile.TemporaryFile() as f:
        openssh.check(way.drain(["tar", "-cf", "-", "-C", path, "."], f, advance), f"cannot pack {path} in the guest")
        size = f.seek(0, os.SEEK_END)
        f.seek(0)
        files, left_out = archive.unpack(f, here)
    for name in left_out:
        reporter(Note(f"{name} was left out: it is neither a file nor a folder", warning=True))
    return files, size


class _Advance:
    """Passes on how many bytes were moved. `total` is what there is to move, once that is known."""

    def __init__(self, reporter: Reporter, step: str, total: int | None) -> None:
        self.reporter, self.step, self.total, self.done = reporter, step, total, 0

    def __call__(self, done: int) -> None:
        self.done = done
        self.reporter(Advanced(self.step, float(done), float(self.total) if self.total else None))


@contextlib.contextmanager
def _progress(reporter: Reporter, step: str, total: int | None = None) -> Iterator[_Advance]:
    clock = stopwatch()
    reporter(Started(step))
    advance = _Advance(reporter, step, total)
    yield advance
    reporter(Finished(step, clock(), str(Bytes(advance.done)) if advance.done else ""))
