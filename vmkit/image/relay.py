"""Putting a file of an image onto a host that has it not, when another host has it: for VMs that move."""

from __future__ import annotations

from collections.abc import Callable

from vmkit.errors import ConflictError, EffectError, VmkitError
from vmkit.hypervisor.storage import relay
from vmkit.hypervisor.volume import Pool
from vmkit.image import store
from vmkit.image.manifest import ImageFile
from vmkit.image.place import COMPLETE, SUFFIXES, mark, sending, upload
from vmkit.progress import Reporter


def put(
    source: Pool,
    target: Pool,
    name: str,
    length: int,
    *,
    advance: Callable[[int], None],
    reporter: Reporter,
) -> None:
    """Put the file `name`, made of its digest, into the pool of a host, as `place` would when a VM is created.

    It is taken from this machine's images where one has it, and otherwise from the source, and compared with its name.
    It stays there also if the VM does not: it is what any other VM of that image would find.

    Args:
        source: the pool that has it.
        target: the pool that is to have it.
        name: of the volume.
        length: bytes of it at the source.
        advance: called with the bytes sent so far.
        reporter: told of an upload.

    Raises:
        RefusedError: no space.
        EffectError: the transfer failed, or what came is not what its name says; it is removed again.
    """
    if (file := _stored(name)) is not None:
        upload(target, name, file, reporter)
        return
    with sending(target, name):
        if target.path(name) is not None:
            if target.path(name + COMPLETE) is not None:
                return
            raise ConflictError(
                f"{name} has come to {target.folder} on {target.host.uri} meanwhile, and may not be complete",
                hint="try again in a moment, or delete it there",
            )
        digest = relay(source, target, name, length, mode="0644", advance=advance)
        if not digest.startswith(name.partition(".")[0]):
            target.delete(name)
            raise EffectError(
                f"{name} on {source.host.uri} is damaged: its content is not what its name says",
                left="nothing is left of it at the target",
                hint="put the image there again: vmkit image verify IMAGE",
            )
        mark(target, name)


def discard_half(pool: Pool, name: str) -> bool:
    """Remove a file that was not completely sent, and that nobody on this machine sends now. False if there is none."""
    try:
        with sending(pool, name, wait=0.0):
            if pool.path(name) is None or pool.path(name + COMPLETE) is not None:
                return False
            return pool.delete(name)
    except ConflictError:
        return False


def _stored(name: str) -> ImageFile | None:
    """The file of one of this machine's images that has this name on hosts."""
    digest, dot, suffix = name.partition(".")
    try:
        images = store.readable()
    except VmkitError:
        return None
    for image in images:
        for field, file in image.by_field.items():
            if file.sha256.startswith(digest) and SUFFIXES.get(field) == dot + suffix and file.path.exists():
                return file
    return None
