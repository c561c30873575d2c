"""Which VMs of a host use which image, and which files in its pool nobody uses. `survey` looks; the rest is pure.

A file of an image is recognised by its name, which is made of its digest (vmkit.image.place). A VM uses it where its
definition names the file, or a volume of the pool that stands on it, in however many steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from vmkit.errors import NotFoundError
from vmkit.image.place import COMPLETE, POOL, SUFFIXES, file_name

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host
    from vmkit.image.manifest import Image

_PLACED = re.compile(rf"[0-9a-f]{{16}}({'|'.join(re.escape(s) for s in SUFFIXES.values())})")
_LOG = "-console.log"


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of the pool: its bytes on the disk, and the name of the volume that it stands on, if any."""

    size: int
    backing: str | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """What a host has: the XML of its VMs by name (of what runs, and of the definition), and its pool's volumes."""

    uri: str
    domains: Mapping[str, str]
    volumes: Mapping[str, Volume]


@dataclass(frozen=True, slots=True)
class Use:
    """A VM that uses an image: `files` are those of the image that it uses, by their names in the pool."""

    image: str
    vm: str
    host: str
    files: tuple[str, ...]


def survey(host: Host) -> Survey:
    """Look at a host.

    Raises:
        UnreachableError: it does not answer.
    """
    domains = {}
    for domain in host.domains():
        text = domain.xml()
        domains[domain.name] = text + (domain.xml(inactive=True) if domain.persistent else "")
    volumes: dict[str, Volume] = {}
    try:
        pool = host.pool(POOL)
    except NotFoundError:
        return Survey(host.uri, domains, {})
    pool.refresh()
    for name in pool.names():
        backing = pool.backing(name)
        volumes[name] = Volume(pool.size(name)[1], backing and PurePosixPath(backing).name)
    return Survey(host.uri, domains, volumes)


def uses(found: Survey, images: Iterable[Image]) -> list[Use]:
    """Each pair of an image and a VM that uses it, by image."""
    by_vm = {vm: _files(text, found) for vm, text in found.domains.items()}
    result = []
    for image in images:
        own = {file_name(field, file) for field, file in image.by_field.items() if field in SUFFIXES}
        for vm, files in sorted(by_vm.items()):
            if mine := sorted(own & files):
                result.append(Use(image.name, vm, found.uri, tuple(mine)))
    return result


def unused(found: Survey, keep: Iterable[str] = ()) -> dict[str, str]:
    """Files of images in the pool that nobody uses: name -> why it may go.

    A pool's folder may be shared with other hosts, whose VMs are not seen from here. What their disks stand on is seen;
    which kernel they boot is not. So kernels, initramfs files and memory are kept while there is a volume or a console
    log of a VM that this host does not have.

    Args:
        found: the host.
        keep: names that are kept anyway.
    """
    used = set(keep)
    for text in found.domains.values():
        used |= _files(text, found)
    for name, volume in found.volumes.items():
        if not _PLACED.fullmatch(name):
            used |= _chain(volume.backing, found)
    others = strangers(found)
    result = {}
    for name in found.volumes:
        match = _PLACED.fullmatch(name.removesuffix(COMPLETE))
        if not match or name.removesuffix(COMPLETE) in used:
            continue
        if others and match[1] != SUFFIXES["disk"]:
            continue
        result[name] = "no VM uses it"
    return result


def strangers(found: Survey) -> list[str]:
    """Names of VMs that left a console log in the pool and are none of this host's."""
    names = {n.removesuffix(_LOG) for n in found.volumes if n.endswith(_LOG)}
    return sorted(names - set(found.domains))


def _files(text: str, found: Survey) -> set[str]:
    """Files of images that a definition names, and those that the volumes stand on which it names."""
    words = {PurePosixPath(w).name for w in re.findall(r"[^'\"<>]+", text) if "." in w}
    files = {w for w in words if _PLACED.fullmatch(w)}
    for name in words & set(found.volumes):
        files |= _chain(name, found)
    return files


def _chain(name: str | None, found: Survey) -> set[str]:
    """A volume and everything that it stands on."""
    chain: set[str] = set()
    while name and name not in chain:
        chain.add(name)
        name = found.volumes[name].backing if name in found.volumes else None
    return {n for n in chain if _PLACED.fullmatch(n)}
