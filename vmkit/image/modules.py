"""Which kernel modules an initramfs needs, and in which order they load. Pure."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Final

from vmkit.errors import UnsupportedError

_SIGNED: Final = b"~Module signature appended~\n"
_SIGNATURE_INFO: Final = 12


def parse_dependencies(modules_dep: str) -> dict[str, tuple[str, ...]]:
    """modules.dep as depmod(8) writes it: path of a module -> paths of all that it needs."""
    found = {}
    for line in modules_dep.splitlines():
        path, _, needs = line.partition(":")
        if path:
            found[path] = tuple(needs.split())
    return found


def module_name(path: str) -> str:
    """'virtio_net' from 'kernel/drivers/net/virtio_net.ko.xz': what modprobe calls it."""
    return PurePosixPath(path).name.partition(".")[0].replace("-", "_")


def load_order(
    wanted: Iterable[str],
    dependencies: Mapping[str, tuple[str, ...]],
    builtin: Iterable[str],
    optional: Iterable[str] = (),
) -> list[str]:
    """Paths of the wanted modules and of what they need, each after what it needs itself.

    Args:
        wanted: names; one that is built into the kernel needs no loading.
        dependencies: from `parse_dependencies`.
        builtin: lines of modules.builtin.
        optional: names that may be missing altogether.

    Raises:
        UnsupportedError: the kernel has no such module.
    """
    by_name = {module_name(p): p for p in dependencies}
    inside = {module_name(line) for line in builtin}
    order: dict[str, None] = {}

    def add(path: str) -> None:
        if path not in order:
            for need in dependencies[path]:
                add(need)
            order[path] = None

    skippable = {module_name(o) for o in optional}
    for name in [*map(module_name, wanted), *skippable]:
        if name in by_name:
            add(by_name[name])
        elif name not in inside and name not in skippable:
            raise UnsupportedError(
                f"the kernel has no module '{name}'",
                hint="apt-get update, and build again with the kernel that apt has then",
            )
    return list(order)


def drivers(wanted: Iterable[str], aliases: str, dependencies: Mapping[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Which modules a device of the PCI bus asks for: (pattern of its modalias, module), for the wanted modules.

    Args:
        wanted: names; what the kernel lacks is left out.
        aliases: modules.alias as depmod(8) writes it.
        dependencies: from `parse_dependencies`.
    """
    here = {module_name(p) for p in dependencies}
    names = {module_name(w) for w in wanted} & here
    found = []
    for line in aliases.splitlines():
        match line.split():
            case ["alias", pattern, module] if pattern.startswith("pci:") and module_name(module) in names:
                found.append((pattern, module_name(module)))
    return found


def unsigned(data: bytes) -> bytes:
    """A module without the signature that is appended to it (kernel: include/linux/module_signature.h).

    Checking eleven signatures takes a guest under TCG about 0.2 s (measured); the price is the taint flag E.
    """
    if not data.endswith(_SIGNED):
        return data
    end = len(data) - len(_SIGNED)
    length: int = struct.unpack(">I", data[end - 4 : end])[0]
    return data[: end - _SIGNATURE_INFO - length]


def unpacked(path: str, data: bytes) -> bytes:
    """A module as the kernel loads it without help; Debian 13 compresses its modules with xz.

    Raises:
        UnsupportedError: another compression.
    """
    match PurePosixPath(path).suffix:
        case ".ko":
            return data
        case ".xz":
            return lzma.decompress(data)
    raise UnsupportedError(
        f"the module {path} is compressed in a way that is not known here",
        hint="take the other kernel: --kernel cloud, or --kernel generic",
    )
