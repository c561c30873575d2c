"""Storage pools and volumes of a host, and moving bytes to and from them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import libvirt

from vmkit.errors import NotFoundError, VmkitError
from vmkit.hypervisor.errors import translated

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host

BUSY: Final = 60.0
"""Seconds that a look at a pool waits for libvirt to finish what it makes there."""


class Pool:
    """An active storage pool."""

    def __init__(self, host: Host, handle: libvirt.virStoragePool) -> None:
        self.host = host
        self.handle = handle
        self.name: str = handle.name()

    @property
    def folder(self) -> Path:
        """Where its volumes lie, on the pool's host."""
        with translated(f"storage pool {self.name}"):
            root = ET.fromstring(self.handle.XMLDesc(0))  # noqa: S314 - libvirt's own answer
        return Path(root.findtext("target/path", "/"))

    def refresh(self) -> None:
        """Have libvirt look at the folder again."""
        deadline = time.monotonic() + BUSY
        while True:
            try:
                with translated(f"refresh of storage pool {self.name}"):
                    self.handle.refresh(0)
                return
            except VmkitError as e:
                # libvirt does not look while it makes a volume, for this process or for another.
                if "asynchronous jobs running" not in e.message or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def free(self) -> int:
        """Bytes that can still be written."""
        with translated(f"storage pool {self.name}"):
            return int(self.handle.info()[3])

    def names(self) -> list[str]:
        """Names of the volumes that libvirt knows of, sorted."""
        with translated(f"list of volumes in {self.name}"):
            return sorted(v.name() for v in self.handle.listAllVolumes(0))

    def path(self, name: str) -> str | None:
        """Path of a volume on the host; None if there is no such volume (also after a refresh)."""
        volume = self._find(name)
        return None if volume is None else str(volume.path())

    def size(self, name: str) -> tuple[int, int]:
        """Capacity and allocation of a volume, bytes.

        Raises:
            NotFoundError: there is none of that name.
        """
        volume = self._need(name)
        with translated(f"size of {name}"):
            _, capacity, allocation = volume.info()
        return int(capacity), int(allocation)

    def backing(self, name: str) -> str | None:
        """Path of the file that a volume stands on, as libvirt saw it at the last refresh; None for none.

        Raises:
            NotFoundError: there is none of that name.
        """
        volume = self._need(name)
        with translated(f"volume {name}"):
            root = ET.fromstring(volume.XMLDesc(0))  # noqa: S314 - libvirt's own answer
        return root.findtext("backingStore/path")

    def create(self, xml: str) -> str:
        """Make a volume from its XML (https://libvirt.org/formatstorage.html) and return its path.

        Raises:
            ConflictError: there is one of that name.
        """
        with translated("creation of a volume"):
            return str(self.handle.createXML(xml, 0).path())

    def delete(self, name: str) -> bool:
        """Delete a volume. False if there is none."""
        volume = self._find(name)
        if volume is None:
            return False
        with translated(f"deletion of the volume {name}"):
            volume.delete(0)
        return True

    def upload(self, name: str, source: Path, *, advance: Callable[[int], None] | None = None) -> str:
        """Copy a local file into a new raw volume of its size and return the path.

        `advance` is called with the bytes sent so far. After a failure the volume is gone again.
        """
        size = source.stat().st_size
        root = ET.Element("volume")
        ET.SubElement(root, "name").text = name
        ET.SubElement(root, "capacity", unit="bytes").text = str(size)
        target = ET.SubElement(root, "target")
        ET.SubElement(target, "format", type="raw")
        path = self.create(ET.tostring(root, encoding="unicode"))
        try:
            with translated(f"upload of {name}"), source.open("rb") as f:
                stream = self.host.handle.newStream(0)
                self.handle.storageVolLookupByName(name).upload(stream, 0, size, 0)
                sent = 0
                while chunk := f.read(256 * 1024):
                    view = memoryview(chunk)
                    while view:
                        view = view[stream.send(bytes(view)) :]
                    sent += len(chunk)
                    if advance:
                        advance(sent)
                stream.finish()
        except BaseException:
            self.delete(name)
            raise
        self.refresh()
        return path

    def write(self, name: str, data: bytes, *, mode: str = "0600") -> str:
        """Make a raw volume of these bytes and return its path. After a failure the volume is gone again.

        Args:
            name: of the volume.
            data: its content.
            mode: permissions of its file, octal; it has them before it has content.

        Raises:
            ConflictError: there is one of that name.
        """
        root = ET.Element("volume")
        ET.SubElement(root, "name").text = name
        ET.SubElement(root, "capacity", unit="bytes").text = str(len(data))
        target = ET.SubElement(root, "target")
        ET.SubElement(target, "format", type="raw")
        ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = mode
        path = self.create(ET.tostring(root, encoding="unicode"))
        if self.host.driver == "TEST":  # its volumes have no bytes
            return path
        try:
            with translated(f"upload of {name}"):
                stream = self.host.handle.newStream(0)
                self.handle.storageVolLookupByName(name).upload(stream, 0, len(data), 0)
                view = memoryview(data)
                while view:
                    view = view[stream.send(bytes(view[: 256 * 1024])) :]
                stream.finish()
        except BaseException:
            self.delete(name)
            raise
        return path

    def read(self, name: str, *, last: int | None = None) -> bytes:
        """The bytes of a volume, or its last `last` bytes.

        Raises:
            NotFoundError: there is none of that name.
        """
        volume = self._need(name)
        self.refresh()  # its size is what libvirt saw last
        with translated(f"reading {name}"):
            size = int(volume.info()[1])
            stream = self.host.handle.newStream(0)
            volume.download(stream, 0 if last is None else max(0, size - last), 0, 0)
            parts: list[bytes] = []
            while part := stream.recv(256 * 1024):
                parts.append(part)
            stream.finish()
        data = b"".join(parts)
        return data if last is None else data[-last:]

    def copy(self, source: str, xml: str) -> str:
        """Make a volume from its XML with the content of the volume `source`, on the host; returns its path.

        Of a qcow2 file that stands on another one the content of both is copied.

        Raises:
            NotFoundError: there is no `source`.
            ConflictError: there is a volume of the new name.
        """
        volume = self._need(source)
        with translated(f"copy of {source}"):
            return str(self.handle.createXMLFrom(xml, volume, 0).path())

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Part of the bytes of a volume; fewer where it ends before.

        Raises:
            NotFoundError: there is none of that name.
        """
        volume = self._need(name)
        parts: list[bytes] = []
        with translated(f"reading {name}"):
            stream = self.host.handle.newStream(0)
            volume.download(stream, offset, length, 0)
            while part := stream.recv(256 * 1024):
                parts.append(part)
            stream.finish()
        return b"".join(parts)

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        """Overwrite part of a volume; the rest stays.

        Raises:
            NotFoundError: there is none of that name.
        """
        volume = self._need(name)
        with translated(f"writing to {name}"):
            stream = self.host.handle.newStream(0)
            volume.upload(stream, offset, len(data), 0)
            view = memoryview(data)
            while view:
                view = view[stream.send(bytes(view[: 256 * 1024])) :]
            stream.finish()

    def download(self, name: str, target: Path) -> None:
        """Copy a volume into a new local file.

        Raises:
            NotFoundError: there is none of that name.
        """
        volume = self._need(name)
        with translated(f"reading {name}"), target.open("wb") as f:
            stream = self.host.handle.newStream(0)
            volume.download(stream, 0, 0, 0)
            while part := stream.recv(256 * 1024):
                f.write(part)
            stream.finish()

    def _find(self, name: str) -> libvirt.virStorageVol | None:
        for again in (False, True):
            if again:
                self.refresh()
            try:
                with translated("look-up"):
                    return self.handle.storageVolLookupByName(name)
            except NotFoundError:
                continue
        return None

    def _need(self, name: str) -> libvirt.virStorageVol:
        volume = self._find(name)
        if volume is None:
            raise NotFoundError(
                f"no volume named {name} in the storage pool {self.name} on {self.host.uri}",
                hint=f"see what there is: virsh -c '{self.host.uri}' vol-list {self.name}",
            )
        return volume
