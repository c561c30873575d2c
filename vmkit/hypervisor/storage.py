"""Volumes of two hosts: what one has, and what the other is to get."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

import libvirt

from vmkit.errors import EffectError, NotFoundError, VmkitError
from vmkit.hypervisor.errors import translated
from vmkit.hypervisor.volume import Pool

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host

_PIECE: Final = 256 * 1024
_AT_HOLE: Final = -3
"""What virStreamRecvFlags answers where the stream is at a hole."""


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """A file in a storage pool of a host, as libvirt sees it.

    Attributes:
        pool: name of the pool.
        name: of the volume.
        format: 'qcow2', 'raw', 'iso' ...
        capacity: bytes that a guest sees.
        allocation: bytes in use.
        length: bytes from the first to the last of the file.
        backing, backing_format: the file that it stands on; '' for none.
        encrypted: its content is encrypted in a way that libvirt knows.
    """

    pool: str
    name: str
    format: str
    capacity: int
    allocation: int
    length: int
    backing: str = ""
    backing_format: str = ""
    encrypted: bool = False


def pool_of(host: Host, folder: str) -> Pool | None:
    """The active pool whose files are in a folder; None if there is none."""
    with translated(f"look-up of {folder}"):
        for handle in host.handle.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            root = ET.fromstring(handle.XMLDesc(0))  # noqa: S314 - libvirt's own answer
            path = root.findtext("target/path", "")
            files = root.get("type") in ("dir", "fs", "netfs")  # the kinds whose volumes are files of a folder
            if files and path.rstrip("/") == (folder.rstrip("/") or "/"):
                return Pool(host, handle)
    return None


def volume_of(host: Host, path: str) -> VolumeFacts | None:
    """The file at a path; None if no pool of the host covers its folder, or the pool has no such file."""
    folder, _, name = path.rpartition("/")
    pool = pool_of(host, folder)
    if pool is None or pool.path(name) is None:
        return None
    pool.refresh()
    with translated(f"volume {name}"):
        root = ET.fromstring(pool.handle.storageVolLookupByName(name).XMLDesc(0))  # noqa: S314 - libvirt's own answer
    allocation = int(root.findtext("allocation", "0"))
    return VolumeFacts(
        pool=pool.name,
        name=name,
        format=_format(root, "target/format"),
        capacity=int(root.findtext("capacity", "0")),
        allocation=allocation,
        length=int(root.findtext("physical", str(allocation))),
        backing=root.findtext("backingStore/path", ""),
        backing_format=_format(root, "backingStore/format"),
        encrypted=root.find("target/encryption") is not None,
    )


def relay(
    source: Pool,
    target: Pool,
    name: str,
    length: int,
    *,
    mode: str,
    sparse: bool = False,
    advance: Callable[[int], None] | None = None,
) -> str:
    """Copy a file of one host's pool into a new one of the other's, through this process, byte for byte.

    Args:
        source: where it is.
        target: where it is to be.
        name: of the volume, in both.
        length: bytes of the file.
        mode: permissions of the new file, octal.
        sparse: what is a hole in the file stays one, and is neither sent nor part of the digest.
        advance: called with the bytes sent so far; what it raises ends the copying.

    Returns:
        SHA-256 of what was copied, hexadecimal.

    Raises:
        ConflictError: there is one of that name.
        EffectError, NotFoundError: it cannot be read or written. What was made is gone again, as after any error.
    """
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity", unit="bytes").text = str(length)
    if sparse:
        ET.SubElement(root, "allocation", unit="bytes").text = "0"
    inner = ET.SubElement(root, "target")
    ET.SubElement(inner, "format", type="raw")
    ET.SubElement(ET.SubElement(inner, "permissions"), "mode").text = mode
    target.create(ET.tostring(root, encoding="unicode"))
    digest = hashlib.sha256()
    try:
        if length:
            with translated(f"copy of {name}"):
                _pump(source, target, name, length, digest, advance, sparse=sparse)
    except BaseException:
        target.delete(name)
        raise
    target.refresh()
    return digest.hexdigest()


def _pump(
    source: Pool,
    target: Pool,
    name: str,
    length: int,
    digest: Any,
    advance: Callable[[int], None] | None,
    *,
    sparse: bool,
) -> None:
    reading, writing = source.host.handle.newStream(0), target.host.handle.newStream(0)
    down, up = (
        (libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
        if sparse
        else (0, 0)
    )
    source.handle.storageVolLookupByName(name).download(reading, 0, length, down)
    target.handle.storageVolLookupByName(name).upload(writing, 0, length, up)
    sent = holes = 0
    try:
        while piece := reading.recvFlags(_PIECE, libvirt.VIR_STREAM_RECV_STOP_AT_HOLE if sparse else 0):
            if piece == _AT_HOLE:
                hole = reading.recvHole()
                writing.sendHole(hole)
                holes += hole
                continue
            view = memoryview(piece)
            while view:
                view = view[writing.send(bytes(view)) :]
            digest.update(piece)
            sent += len(piece)
            if advance:
                advance(sent)
        reading.finish()
        writing.finish()
    except BaseException:
        for stream in (reading, writing):
            try:
                stream.abort()
            except libvirt.libvirtError:
                continue
        raise
    if sent + holes != length:
        raise EffectError(f"copy of {name}: {sent + holes} of {length} bytes came, so it changed meanwhile")


def users_of(host: Host, path: str) -> list[str]:
    """Domains of a host, running or defined, whose XML names a file, and volumes that stand on it."""
    found: list[str] = []
    for domain in host.domains():
        for inactive in (False, True):
            try:
                if _names(domain.xml(inactive=inactive), path):
                    found.append(domain.name)
                    break
            except NotFoundError:  # it has just gone
                break
    pool = pool_of(host, path.rpartition("/")[0])
    if pool is not None:
        for name in pool.names():
            try:
                if pool.backing(name) == path:
                    found.append(name)
            except VmkitError:  # it has just gone
                continue
    return found


def _names(xml: str, path: str) -> bool:
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    return any(path in (e.get("file"), e.get("dev"), (e.text or "").strip()) for e in root.iter())


def _format(root: ET.Element, path: str) -> str:
    element = root.find(path)
    return "" if element is None else element.get("type", "")
