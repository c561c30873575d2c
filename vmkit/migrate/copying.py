"""Copying a VM's files to the target, and removing what is not wanted any more: the acting half of storage.py.

What is made at the target is in the journal before it is made. It is removed again, at once or by the next command,
once it is certain that the VM is at its source. What the source had is removed once the VM is seen at the target.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

from vmkit.errors import CancelledError, ConflictError, RefusedError, VmkitError
from vmkit.hypervisor.storage import pool_of, relay, users_of
from vmkit.image import relay as blobs
from vmkit.migrate.outcome import Place, Seen
from vmkit.migrate.storage import Copy, Kind, pool_fix
from vmkit.progress import Advanced, Finished, Reporter, Started
from vmkit.system.clock import stopwatch
from vmkit.values import Bytes

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host
    from vmkit.hypervisor.volume import Pool
    from vmkit.migrate.session import Stop
    from vmkit.migrate.settle import Reach, Settled
    from vmkit.system.journal import Entry

STEP: Final = "files"
PHASE: Final = "storage"
_MODE: Final = "0600"


@dataclass(frozen=True, slots=True)
class Tidied:
    """What was not removed, and why; `again` if another try may do it."""

    left: tuple[str, ...] = ()
    again: bool = False


def bring(
    copies: tuple[Copy, ...],
    source: Host,
    target: Host,
    entry: Entry,
    wish: Callable[[], Stop | None],
    reporter: Reporter,
) -> None:
    """As `prepare`; after an error what it made is removed again, and the entry is kept where that cannot be done."""
    try:
        prepare(copies, source, target, entry, wish, reporter)
    except BaseException as e:
        try:
            trouble = _remove_made(target, entry.record.data)
        except VmkitError as failed:
            trouble = (failed.message,)
        entry.keep = bool(trouble)
        if isinstance(e, VmkitError):
            e.details = (*e.details, *trouble)
        raise


def begin(copies: tuple[Copy, ...]) -> dict[str, Any]:
    """What the journal says of the files before anything is made."""
    return {"made": [], "images": [], "old": [c.path for c in copies if c.own]}


def prepare(
    copies: tuple[Copy, ...],
    source: Host,
    target: Host,
    entry: Entry,
    wish: Callable[[], Stop | None],
    reporter: Reporter,
) -> None:
    """Copy what nobody writes to, and make an empty file for each disk.

    Raises:
        RefusedError: the two hosts share the folder after all, or have no pool for it.
        ConflictError: the target has a file of that name by now.
        EffectError: a transfer failed.
        CancelledError: somebody wished for the end.
    """
    if not copies:
        return
    elapsed = stopwatch()
    for folder in dict.fromkeys(c.folder for c in copies):
        _check_apart(folder, source, target, entry)
    before = [c for c in copies if c.kind is not Kind.DISK]
    stays = "stays" if entry.record.data.get("cold") else "runs on"
    total, done = sum(c.size for c in before), 0
    if before:
        reporter(Started(STEP, f"{len(before)} files, {Bytes(total)}"))
    for c in copies:
        here, there = _pools(c.folder, source, target)

        def advance(sent: int, so_far: int = done, name: str = c.volume.name) -> None:
            if (stop := wish()) is not None:
                raise CancelledError(f"the migration was cancelled by {stop.by}; the VM {stays} at {source.uri}")
            reporter(Advanced(STEP, so_far + sent, total, name))

        advance(0)
        match c.kind:
            case Kind.IMAGE:
                entry.advance(PHASE, images=[*entry.record.data["images"], c.path])
                blobs.put(here, there, c.volume.name, c.volume.length, advance=advance, reporter=reporter)
            case Kind.FILE:
                with _claimed(there, c.path, entry):
                    relay(here, there, c.volume.name, c.volume.length, mode=_MODE, advance=advance)
            case Kind.IDLE:
                with _claimed(there, c.path, entry):
                    relay(here, there, c.volume.name, c.volume.length, mode=_MODE, sparse=True, advance=advance)
            case Kind.DISK:
                with _claimed(there, c.path, entry):
                    there.create(volume_xml(c))
        done += c.size if c.kind is not Kind.DISK else 0
    if before:
        reporter(Finished(STEP, elapsed(), f"{len(before)} files, {Bytes(total)}"))


def volume_xml(c: Copy) -> str:
    """An empty volume that a disk can be copied into: same format, same size, on the same image. Pure."""
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = c.volume.name
    ET.SubElement(root, "capacity", unit="bytes").text = str(int(c.volume.capacity))
    ET.SubElement(root, "allocation", unit="bytes").text = "0"
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", type=c.volume.format)
    ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = _MODE
    if c.backing:
        store = ET.SubElement(root, "backingStore")
        ET.SubElement(store, "path").text = c.backing
        ET.SubElement(store, "format", type=c.backing_format)
    return ET.tostring(root, encoding="unicode")


def tidy(settled: Settled, source: Reach, target: Reach, data: dict[str, Any]) -> Tidied:
    """Remove what is not wanted now that it is known where the VM is.

    Nothing is removed where the verdict leaves a doubt: both hosts then keep what they have.
    """
    place = settled.verdict.place
    if place is Place.NOWHERE and settled.source is Seen.DEFINED:
        place = Place.SOURCE  # it ended there, and so its disks are there
    arrived = settled.running == 1 or (data.get("cold") and settled.target is Seen.DEFINED)
    try:
        match place:
            case Place.SOURCE if not settled.target.active:
                wanted = data.get("made") or data.get("images")
                return Tidied(_remove_made(target.host(), data) if wanted else ())
            case Place.TARGET if arrived and settled.source is Seen.ABSENT and data.get("old"):
                return Tidied(_remove(source.host(), data["old"]))
    except VmkitError as e:
        return Tidied((f"files of the VM that are not needed any more: {e.message}",), again=True)
    return Tidied()


def _remove_made(host: Host, data: dict[str, Any]) -> tuple[str, ...]:
    for path in data.get("images", ()):
        folder, _, name = path.rpartition("/")
        if (pool := pool_of(host, folder)) is not None:
            blobs.discard_half(pool, name)
    return _remove(host, data.get("made", ()))


def _remove(host: Host, paths: list[str]) -> tuple[str, ...]:
    """Delete files that no domain and no other file of the host uses; last made, first gone."""
    trouble = []
    for path in reversed(paths):
        folder, _, name = path.rpartition("/")
        pool = pool_of(host, folder)
        if pool is None:
            trouble.append(f"{path} on {host.uri} is left: no storage pool covers its folder any more")
        elif pool.path(name) is None:
            continue
        elif users := users_of(host, path):
            trouble.append(f"{path} on {host.uri} is left: it is used by {', '.join(users)}")
        else:
            pool.delete(name)
    return tuple(trouble)


@contextlib.contextmanager
def _claimed(pool: Pool, path: str, entry: Entry) -> Iterator[None]:
    """Journal that the block makes a file.

    Raises:
        ConflictError: there is one by now, which is left alone.
    """
    before = entry.record.data["made"]
    if pool.path(path.rpartition("/")[2]) is not None:
        raise ConflictError(f"{path} has come to {pool.host.uri} meanwhile", hint="look at it, then try again")
    entry.advance(PHASE, made=[*before, path])
    try:
        yield
    except ConflictError:  # somebody else was faster, and it is theirs
        entry.advance(PHASE, made=before)
        raise


def _check_apart(folder: str, source: Host, target: Host, entry: Entry) -> None:
    """See by a file made at the target that the folder is not one and the same: then the VM's file would be lost.

    The target did not see the VM's file, so they are two folders, or a network file system is late.
    """
    here, there = _pools(folder, source, target)
    name = f"vmkit-marker-{secrets.token_hex(6)}"
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity").text = "0"
    ET.SubElement(ET.SubElement(root, "target"), "format", type="raw")
    with _claimed(there, f"{folder}/{name}", entry):
        there.create(ET.tostring(root, encoding="unicode"))
    shared = here.path(name) is not None
    there.delete(name)
    if shared:
        raise RefusedError(
            f"both hosts have the same {folder}, and the target does not see all that is in it yet",
            hint="try again in a minute",
        )


def _pools(folder: str, source: Host, target: Host) -> tuple[Pool, Pool]:
    pools = []
    for host in (source, target):
        if (pool := pool_of(host, folder)) is None:
            raise RefusedError(f"no active storage pool of {host.uri} covers {folder}", hint=pool_fix(host.uri, folder))
        pools.append(pool)
    return pools[0], pools[1]
