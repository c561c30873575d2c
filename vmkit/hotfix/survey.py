"""Looking at a host's QEMU processes with a patch in hand. Reads only."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from vmkit.hotfix.manifest import Patch
from vmkit.hotfix.targets.qemu import Lost, QemuImage, find_images
from vmkit.hotfix.verify import Site, Span, State, judge, resolve
from vmkit.hypervisor.host import Host


@dataclass(frozen=True, slots=True)
class Finding:
    """How one process stands to the patch.

    Attributes:
        image: the process.
        state: how its memory is; None if it is of another build, and then `sites` is ().
        detail: for State.OTHER what was found where.
        sites: where the edits are in it.
    """

    image: QemuImage
    state: State | None
    detail: str
    sites: tuple[Site, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """All processes of a host's running domains, and those domains whose process could not be told."""

    uri: str
    findings: tuple[Finding, ...]
    lost: tuple[Lost, ...]


def survey(host: Host, patch: Patch, stack: ExitStack) -> Survey:
    """Look at every process; their memory stays open on `stack`.

    Raises:
        UnsupportedError: no QEMU host.
        SpecError, RefusedError: the patch does not fit the build that it is for.
    """
    images, lost = find_images(host, stack)
    return Survey(host.uri, tuple(look(patch, image) for image in images), tuple(lost))


def look(patch: Patch, image: QemuImage) -> Finding:
    """How one process stands to the patch, by its memory."""
    if image.binary.build_id not in patch.build_ids:
        return Finding(image, None, f"build {image.binary.build_id[:12]}", ())
    image.room = Span(patch.room.address + image.bias, patch.room.length) if patch.room else None
    sites = resolve(patch, image.binary, image.bias, image.label)
    state, detail = judge(sites, image.read)
    return Finding(image, state, detail, sites)
