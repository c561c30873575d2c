"""Putting an image onto a host, once for each host and image.

Files get names made of their digest, in the host's storage pool `vmkit`. So one that is there is the right one, two
images that share a kernel share the file, and a VM keeps its files when the image is built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.errors import ConflictError, EffectError, NotFoundError, RefusedError, VmkitError
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.volume import Pool
from vmkit.image.manifest import Image, ImageFile
from vmkit.progress import Advanced, Finished, Reporter, Started, silent
from vmkit.system.clock import Deadline, stopwatch
from vmkit.system.files import free_space, home, locked, sync_dir, sync_file

POOL: Final = "vmkit"
DEFAULT_FOLDER: Final = Path("/var/lib/vmkit/pool")
UPLOAD_DEADLINE: Final = 3600.0
"""Seconds that one process waits for another that uploads the same file."""

SUFFIXES: Final = {"kernel": ".kernel", "initrd": ".initrd", "disk": ".qcow2", "memory": ".memory"}
COMPLETE: Final = ".complete"


@dataclass(frozen=True, slots=True)
class Placed:
    """Paths of an image's files on a host; None for those that the image does not have."""

    kernel: str | None
    initrd: str | None
    disk: str | None
    memory: str | None = None


def file_name(field: str, file: ImageFile) -> str:
    """Name of an image's file in a pool: `3ac74a8774f7cca5.initrd`. `field` is as in `Placed`."""
    return file.sha256[:16] + SUFFIXES[field]


def ensure_pool(host: Host) -> Pool:
    """The storage pool `vmkit` of a host; defined, with its folder, if the host has none.

    The folder is /var/lib/vmkit/pool, or pool/ in $VMKIT_HOME for this machine where that is set. A pool of that name
    which is there already is used as it is.

    Raises:
        UnsupportedError, RefusedError, EffectError: the host cannot have it.
    """
    try:
        return host.pool(POOL)
    except NotFoundError:
        pass
    own = host.local and "VMKIT_HOME" in os.environ
    folder = home() / "pool" if own else DEFAULT_FOLDER
    root = ET.Element("pool", type="dir")
    ET.SubElement(root, "name").text = POOL
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "path").text = str(folder)
    # Guests of qemu:///system run as a user of their own, who has to pass through.
    ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = "0711"
    try:
        return host.define_pool(ET.tostring(root, encoding="unicode"))
    except VmkitError as first:
        # Another process may have been faster; between its definition and its start the pool is not yet active.
        for pause in (0.0, 0.3, 1.0):
            time.sleep(pause)
            with contextlib.suppress(VmkitError):
                return host.pool(POOL)
        raise first


def place(host: Host, image: Image, reporter: Reporter = silent) -> Placed:
    """Put the files of an image into the pool of a host, as far as they are not there. Many may do so at once.

    Raises:
        RefusedError: no space; nothing was added.
        EffectError: the transfer failed; what was sent of that file is removed.
    """
    pool = ensure_pool(host)
    folder = pool.folder
    paths: dict[str, str | None] = dict.fromkeys(SUFFIXES)
    linked = False
    for field in paths:
        file: ImageFile | None = getattr(image, field)
        if file is None:
            continue
        name = file_name(field, file)
        if host.driver == "TEST":  # libvirt's test driver has pools without bytes: the name is all there is
            paths[field] = str(folder / name)
        elif _reachable(host, folder):
            linked = _link(file, folder / name) or linked
            paths[field] = str(folder / name)
        else:
            paths[field] = upload(pool, name, file, reporter)
    if linked:
        pool.refresh()
    return Placed(**paths)


def _reachable(host: Host, folder: Path) -> bool:
    """Whether the pool's folder is one that this process can write into."""
    return host.local and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _link(file: ImageFile, target: Path) -> bool:
    """Make `target` a hard link to an image's file, or a copy where they are on different file systems.

    False if it was there. It appears complete or not at all, so it does not matter who is first.
    """
    if target.exists():
        return False
    try:
        os.link(file.path, target)
        return True
    except FileExistsError:
        return False
    except FileNotFoundError as e:
        raise _lost(file) from e
    except OSError:
        pass  # another file system, or one without hard links
    if free_space(target.parent) < file.size:
        raise RefusedError(f"no space for {target.name} in {target.parent}", hint=f"free some: df -h {target.parent}")
    half = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        shutil.copyfile(file.path, half)
        half.chmod(file.path.stat().st_mode & 0o777)
        sync_file(half)
        half.rename(target)
        sync_dir(target.parent)
    except OSError as e:
        raise EffectError(
            f"copy of {file.path} to {target.parent}: {e.strerror}",
            left="nothing is left of it",
            hint=f"see the folder: ls -ld {target.parent}; df -h {target.parent}",
        ) from e
    finally:
        half.unlink(missing_ok=True)
    return True


def _lost(file: ImageFile) -> EffectError:
    return EffectError(f"{file.path} is missing from its image", hint=f"vmkit image delete {file.path.parent.name}")


def sending(pool: Pool, name: str, *, wait: float = UPLOAD_DEADLINE) -> contextlib.AbstractContextManager[None]:
    """Hold a file of a host's pool while it is sent there: one process of this machine at a time.

    Raises:
        ConflictError: another process still sends it after `wait` seconds.
    """
    # A URI may be longer than a file name can be.
    key = hashlib.sha256(pool.host.uri.encode()).hexdigest()[:12]
    return locked(
        home() / "cache" / f"upload-{key}-{name}.lock",
        busy=f"another process is still sending {name} to {pool.host.uri}",
        wait=wait,
    )


def upload(pool: Pool, name: str, file: ImageFile, reporter: Reporter) -> str:
    """Send a file through libvirt, unless it is there; returns its path on the host.

    A volume can be seen while it is being filled, and may stay half full if the sender dies. So a second, empty volume
    NAME.complete is made when the content is there; without it, the content is compared before it is used.

    Raises:
        RefusedError: no space.
        EffectError: the transfer failed; what was sent of it is removed.
    """
    with sending(pool, name):
        if path := _present(pool, name, file):
            return path
        if not file.path.exists():
            raise _lost(file)
        if pool.free() < file.size:
            raise RefusedError(
                f"no space for {name} ({file.size}) in {pool.folder} on {pool.host.uri}", hint="free some on that host"
            )
        try:
            path = _send(pool, name, file, reporter)
        except VmkitError:
            # Another machine, or another host with the same shared folder, may have begun at the same moment.
            if path := _present(pool, name, file):
                return path
            raise
        mark(pool, name)
        return path


def _present(pool: Pool, name: str, file: ImageFile) -> str | None:
    """Path of the volume if it holds the file; one that does not, and that nobody is filling, is removed."""
    path = pool.path(name)
    if path is None or pool.path(name + COMPLETE) is not None:
        return path
    if _same_content(pool, name, file):
        mark(pool, name)
        return path
    pool.delete(name)
    return None


def _send(pool: Pool, name: str, file: ImageFile, reporter: Reporter) -> str:
    seconds = stopwatch()
    step = f"upload {name}"
    reporter(Started(step, f"{file.size} to {pool.host.uri}"))
    total = float(file.size)
    path = pool.upload(name, file.path, advance=lambda done: reporter(Advanced(step, done, total)))
    reporter(Finished(step, seconds(), f"{file.size} to {pool.host.uri}"))
    return path


def _same_content(pool: Pool, name: str, file: ImageFile) -> bool:
    """Whether the volume holds the file. Someone on another machine may be sending it: wait while it changes."""
    deadline = Deadline(UPLOAD_DEADLINE)
    before = b""
    while not deadline.passed:
        digest = hashlib.sha256(pool.read(name)).digest()
        if digest.hex() == file.sha256 or digest == before:
            break
        before = digest
        time.sleep(min(3.0, deadline.left))
    return digest.hex() == file.sha256


def mark(pool: Pool, name: str) -> None:
    """Note on the host that the content of a file is there."""
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name + COMPLETE
    ET.SubElement(root, "capacity").text = "0"
    ET.SubElement(ET.SubElement(root, "target"), "format", type="raw")
    with contextlib.suppress(ConflictError):
        pool.create(ET.tostring(root, encoding="unicode"))
