"""Copies that go on from a saved memory: each is started with its cables pulled, renamed inside, and plugged in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkit.errors import VmkitError
from vmkit.hypervisor import newcomers
from vmkit.hypervisor.capture import restore_paused, set_links
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.volume import Pool
from vmkit.system.files import copy_with_head, write_atomic
from vmkit.vm import reservations
from vmkit.vm.clone.identity import rewritten
from vmkit.vm.clone.inside import take_identity
from vmkit.vm.clone.plan import Copy, kept
from vmkit.vm.clone.save_file import HEADER, SaveHead, head_length
from vmkit.vm.console_log import log_name
from vmkit.vm.metadata import Remembered
from vmkit.vm.xml_volumes import raw_xml

CONSOLE_LIMIT: Final = 1 << 20
"""Bytes of the source's console that a copy's console begins with."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A VM at one moment, on a host.

    Attributes:
        memory: volume that holds its memory.
        head: of that file; its XML is the domain as it ran.
        xml: the domain as it was defined.
        remembered: what was kept about it.
        console: what it had written to its console.
    """

    memory: str
    head: SaveHead
    xml: str
    remembered: Remembered
    console: bytes


def read_head(host: Host, pool: Pool, volume: str) -> SaveHead:
    """The head of a file of saved memory in a pool. Raises as `SaveHead.parse`."""
    if local(host, pool):
        with (pool.folder / volume).open("rb") as f:
            start = f.read(HEADER.size)
            return SaveHead.parse(start + f.read(head_length(start) - HEADER.size))
    length = head_length(pool.read_at(volume, 0, HEADER.size))
    return SaveHead.parse(pool.read_at(volume, 0, length))


def memory_file(copy: Copy) -> str:
    """Name of the volume from which a copy is started; it is removed when it runs."""
    return f"{copy.name}-{copy.identity.uuid[:8]}.memory"


def define(host: Host, pool: Pool, moment: Moment, copy: Copy, *, moved: Mapping[str, str] | None = None) -> Domain:
    """Define a copy. From here on the name on the host is its own. `moved` is as for `start`.

    Raises:
        ConflictError: somebody else was faster.
    """
    return host.define(_rewritten(pool, moment, copy, moment.xml, moved))


def start(
    host: Host,
    pool: Pool,
    domain: Domain,
    moment: Moment,
    copy: Copy,
    checkpoint: Callable[[], None],
    *,
    consume: bool = False,
    moved: Mapping[str, str] | None = None,
) -> None:
    """Let a copy that is defined, and whose disks are there, go on from the moment.

    It is on the network only when it has an identity of its own.

    Args:
        host: where.
        pool: of that host.
        domain: the copy.
        moment: what it goes on from.
        copy: who it is.
        checkpoint: raises if somebody wants to stop.
        consume: the memory of the moment is needed by nobody else, and is used up.
        moved: where files of the source are for the copy, by where they were: kernel and initrd.
    """
    reservations.sync(domain)
    if moment.console:
        put(host, pool, log_name(copy.name), moment.console)
    head = moment.head.packed(_rewritten(pool, moment, copy, moment.head.xml, moved))
    name = moment.memory if consume else memory_file(copy)
    if consume:
        pool.write_at(name, 0, head)
    else:
        _copy_memory(host, pool, moment.memory, name, head)
    checkpoint()
    try:
        restore_paused(host, str(pool.folder / name))
    finally:
        _remove(host, pool, name)
    newcomers.patch(domain)
    set_links(domain, up=False)
    domain.resume()
    checkpoint()
    take_identity(domain, copy.identity)
    checkpoint()
    set_links(domain, up=True)


def put(host: Host, pool: Pool, name: str, data: bytes) -> None:
    """Make a raw volume with this content."""
    if local(host, pool):
        write_atomic(pool.folder / name, data, mode=0o600)
        return
    if pool.path(name) is not None:
        pool.delete(name)
    pool.create(raw_xml(name, len(data)))
    pool.write_at(name, 0, data)


def _rewritten(pool: Pool, moment: Moment, copy: Copy, xml: str, moved: Mapping[str, str] | None) -> str:
    folder = pool.folder
    log = log_name(copy.name)
    return rewritten(
        xml,
        copy.identity,
        paths={**(moved or {}), **{d.path: str(folder / d.volume) for d in copy.disks}},
        remembered=kept(moment.remembered, copy, log),
        log=str(folder / log),
        down=False,
    )


def local(host: Host, pool: Pool) -> bool:
    """Whether the files of the pool are within this process's reach."""
    return host.local and os.access(pool.folder, os.W_OK | os.X_OK)


def _copy_memory(host: Host, pool: Pool, source: str, target: str, head: bytes) -> None:
    """A copy of the memory with a head of its own: by hand where that is possible, for libvirt waits for the disk."""
    if local(host, pool):
        copy_with_head(pool.folder / source, pool.folder / target, head)
        return
    pool.copy(source, raw_xml(target, pool.size(source)[0]))
    pool.write_at(target, 0, head)


def _remove(host: Host, pool: Pool, name: str) -> None:
    if local(host, pool):
        Path(pool.folder / name).unlink(missing_ok=True)
    else:
        pool.delete(name)


def undo(host: Host, pool: Pool, uuid: str, volumes: list[str]) -> list[str]:
    """Remove a copy that was not finished, with its volumes; nothing happens if it was never defined.

    The definition goes last: while it is there, the volumes of that name are the copy's.
    """
    domain = next((d for d in host.domains() if d.uuid == uuid), None)
    if domain is None:
        return []
    held = reservations.Holdings(domain)
    if domain.state().active:
        domain.destroy()
    pool.refresh()
    removed = [f"volume {v}" for v in volumes if pool.delete(v)]
    domain.undefine()
    return [f"domain {domain.name}", *removed, *held.release()]


def volumes_of(copy: Copy) -> list[str]:
    """Every volume that may be there of a copy."""
    return [*(d.volume for d in copy.disks), log_name(copy.name), memory_file(copy)]


def forget(pool: Pool, names: list[str]) -> None:
    """Delete volumes, as far as they are there and can be deleted."""
    for name in names:
        try:
            pool.delete(name)
        except VmkitError:
            continue
