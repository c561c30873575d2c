"""Archives for initramfs: the 'newc' cpio format.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel. Written here rather than by the
cpio program so that a device node needs no root, and so that the same input always gives the same bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """One entry.

    Attributes:
        path: without a leading slash.
        mode: type and permission bits as in stat(2).
        data: content of a file, target of a symbolic link.
        device: major and minor number of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def folder(cls, path: str, mode: int = 0o755) -> Node:
        """A folder."""
        return cls(path, stat.S_IFDIR | mode)

    @classmethod
    def file(cls, path: str, data: bytes, mode: int = 0o644) -> Node:
        """A regular file."""
        return cls(path, stat.S_IFREG | mode, data)

    @classmethod
    def link(cls, path: str, target: str) -> Node:
        """A symbolic link."""
        return cls(path, stat.S_IFLNK | 0o777, target.encode())

    @classmethod
    def character_device(cls, path: str, major: int, minor: int, mode: int = 0o600) -> Node:
        """A character device."""
        return cls(path, stat.S_IFCHR | mode, b"", (major, minor))


def with_parents(nodes: Iterable[Node]) -> list[Node]:
    """The nodes by path, with every folder above them that they do not name. A folder comes before what is in it."""
    found = {n.path: n for n in nodes}
    for path in list(found):
        parts = path.split("/")[:-1]
        for i in range(1, len(parts) + 1):
            parent = "/".join(parts[:i])
            found.setdefault(parent, Node.folder(parent))
    return [found[p] for p in sorted(found)]


def archive(nodes: Iterable[Node]) -> bytes:
    """The archive of `nodes`, in their order. Owner is root, times are 0."""
    out = bytearray()
    inode = 0
    for inode, node in enumerate(nodes, 1):
        _append(out, node, inode)
    _append(out, Node("TRAILER!!!", 0), inode + 1)
    out += bytes(-len(out) % 512)
    return bytes(out)


def _append(out: bytearray, node: Node, inode: int) -> None:
    name = node.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    fields = (inode, node.mode, 0, 0, links, 0, len(node.data), 0, 0, *node.device, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % f for f in fields) + name
    out += bytes(-len(out) % 4)
    out += node.data
    out += bytes(-len(out) % 4)
