"""Which files of a VM have to be copied to the target, and how: pure.

A file that the target has at the same path is left as it is. One that it does not have is copied into the target's pool
of the same folder: a disk that the guest writes to while it runs, an image and what is only read beforehand. Nobody
writes to the disks of a VM that is shut off.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkit.migrate.facts import GuestFacts, Presence, TargetFacts, Version
from vmkit.migrate.files import GuestFile
from vmkit.values import Bytes

if TYPE_CHECKING:
    from vmkit.hypervisor.storage import VolumeFacts

FORMATS: Final = ("qcow2", "raw")
SYNCHRONOUS_SINCE: Final = (8, 0, 0)
"""VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES."""
_BLOB = re.compile(r"[0-9a-f]{16}\.(kernel|initrd|qcow2|memory)\Z")


class Kind(enum.Enum):
    """How a file is copied."""

    DISK = "disk"
    IDLE = "idle disk"
    IMAGE = "image"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Copy:
    """A file that the target is to get at the same path.

    Attributes:
        path: of the file, on both hosts.
        kind: DISK goes across while the guest writes to it; IDLE, a disk of a VM that is shut off, IMAGE, named by its
            content, and FILE, which nobody writes to, go before that.
        role: as in GuestFile.
        device: of a DISK: its target, 'vda'.
        volume: what the source says of it.
        backing, backing_format: of a DISK: what the new one stands on; '' for nothing.
        own: it belongs to this VM alone, so that it goes from the source when the VM has.
    """

    path: str
    kind: Kind
    role: str
    device: str
    volume: VolumeFacts
    backing: str = ""
    backing_format: str = ""
    own: bool = False

    @property
    def folder(self) -> str:
        """Where it is, on both hosts."""
        return self.path.rpartition("/")[0] or "/"

    @property
    def idle(self) -> bool:
        """Whether it is a disk of a VM that is shut off."""
        return self.kind is Kind.IDLE

    @property
    def disk(self) -> bool:
        """Whether a guest writes to it, now or when it runs."""
        return self.kind in (Kind.DISK, Kind.IDLE)

    @property
    def size(self) -> int:
        """Bytes to send, about: of a disk only what is allocated."""
        return self.volume.allocation if self.disk else self.volume.length

    def __str__(self) -> str:
        if self.disk:
            return f"{Bytes(self.size)} of {Bytes(self.volume.capacity)} in use"
        return str(Bytes(self.size))


def named_by_content(path: str) -> bool:
    """Whether it is a file of an image: its name is made of its digest, so that one of that name is the right one."""
    return _BLOB.match(path.rpartition("/")[2]) is not None


def copies(guest: GuestFacts, meeting: TargetFacts) -> tuple[Copy, ...]:
    """What is to be copied, in order: what others stand on comes first."""
    found = [c for f in guest.files if (c := _copy(f, guest, meeting))]
    order = {Kind.IMAGE: 0, Kind.FILE: 1, Kind.IDLE: 2, Kind.DISK: 3}
    found.reverse()  # of a chain, the bottom first
    return tuple(sorted(found, key=lambda c: (order[c.kind], c.role != "image")))


def mirrored(guest: GuestFacts, meeting: TargetFacts) -> tuple[str, ...]:
    """Targets of the disks that are copied while the guest writes to them."""
    return tuple(c.device for c in copies(guest, meeting) if c.kind is Kind.DISK)


def both_write(libvirt: Version) -> bool:
    """Whether the source's libvirt can have a guest's writes wait until the target has them too."""
    return libvirt >= SYNCHRONOUS_SINCE


def unfit(file: GuestFile, guest: GuestFacts, meeting: TargetFacts) -> str | None:
    """Why a file that the target does not have cannot be copied; None if it can."""
    volume = meeting.volumes.get(file.path)
    if file.role == "nvram":
        return "libvirt carries the variables of UEFI over only while the VM runs"
    if file.role == "firmware":
        return "it belongs to the host"
    if volume is None:
        return "no storage pool of the source covers its folder"
    if volume.encrypted:
        return "it is encrypted"
    if not file.written:
        return None
    if file.shareable:
        return "other VMs may be writing to it"
    if volume.format not in FORMATS and not guest.off:  # the target would make it anew
        return f"its format is {volume.format or 'unknown'}"
    for below in _chain(file, guest):
        where = meeting.files.get(below.path, Presence.UNKNOWN)
        if where in (Presence.PRESENT, Presence.OTHER) and not named_by_content(below.path):
            return f"{below.path}, which it stands on, is on both hosts and may differ"
        if where is Presence.ABSENT and (why := unfit(below, guest, meeting)):
            return f"{below.path}, which it stands on, cannot be copied: {why}"
        if where is Presence.UNKNOWN:
            return f"{below.path}, which it stands on, could not be checked"
    return None


def pool_fix(uri: str, folder: str) -> str:
    """How a folder of a host gets a storage pool."""
    return f"virsh -c '{uri}' pool-create-as NAME dir --target {folder} --build"


def room(found: tuple[Copy, ...]) -> dict[str, tuple[int, int]]:
    """Bytes that go into each folder of the target: at once, and if the guest fills its disks."""
    need: dict[str, tuple[int, int]] = {}
    for c in found:
        now, most = need.get(c.folder, (0, 0))
        need[c.folder] = (now + c.size, most + (c.volume.capacity if c.disk else c.size))
    return need


def _copy(file: GuestFile, guest: GuestFacts, meeting: TargetFacts) -> Copy | None:
    if file.network or meeting.files.get(file.path) is not Presence.ABSENT or unfit(file, guest, meeting):
        return None
    if file.role == "log" and not file.own:
        return None
    written = Kind.IDLE if guest.off else Kind.DISK
    kind = written if file.written else Kind.IMAGE if named_by_content(file.path) else Kind.FILE
    below = next(iter(_chain(file, guest)), None)
    return Copy(
        path=file.path,
        kind=kind,
        role=file.role,
        device=file.device,
        volume=meeting.volumes[file.path],
        backing=below.path if below and kind is Kind.DISK else "",
        backing_format=below.format if below and kind is Kind.DISK else "",
        own=file.own,
    )


def _chain(file: GuestFile, guest: GuestFacts) -> list[GuestFile]:
    """The images that a disk stands on, from the one right below it."""
    by_path = {f.path: f for f in guest.files if f.role == "image"}
    chain: list[GuestFile] = []
    while (below := by_path.get(file.backing)) is not None and below not in chain:
        chain.append(below)
        file = below
    return chain
