"""What is known of a VM before its snapshots are touched: observed here, judged in decide.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from vmkit.errors import VmkitError
from vmkit.hypervisor import backup
from vmkit.hypervisor import snapshot as calls
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.vm.describe import Disk, describe
from vmkit.vm.snapshot.model import Snapshot, SnapshotFiles, files_of, in_order, parse

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """A VM and its snapshots at one moment.

    Attributes:
        name, driver: of the VM and of libvirt's driver: 'QEMU', 'TEST', ...
        libvirt: version of libvirt.
        state: of the VM now; `reason` as in DomainInfo.
        persistent: whether its definition outlives it.
        saved: whether libvirt keeps its memory for the next start.
        busy: whether a job runs on it.
        disks: every disk and drive.
        nvram: format of the file behind its UEFI variables, 'raw' or 'qcow2'; None where the firmware has none.
        assigned: devices of the host that it has.
        snapshots: those that there are, each after its parent.
        files: the files of each snapshot, by its name.
        checkpoints: names of the marks that incremental backups start from.
        volumes: disks that vmkit made, by name; None for a VM that another tool made.
        pool: folder of vmkit's storage pool; None where there is none.
    """

    name: str
    driver: str
    libvirt: tuple[int, int, int]
    state: DomainState
    reason: str
    persistent: bool
    saved: bool
    busy: bool
    disks: tuple[Disk, ...]
    nvram: str | None
    assigned: int
    snapshots: tuple[Snapshot, ...]
    files: Mapping[str, SnapshotFiles]
    checkpoints: tuple[str, ...]
    volumes: tuple[str, ...] | None = None
    pool: str | None = None

    def find(self, name: str) -> Snapshot | None:
        """The snapshot of this name."""
        return next((s for s in self.snapshots if s.name == name), None)


def listing(domain: Domain) -> tuple[Snapshot, ...]:
    """The snapshots of a VM, each after its parent."""
    return in_order([parse(s.xml, current=s.current) for s in calls.snapshots(domain)])


def gather(domain: Domain, *, deep: bool = False) -> SnapshotFacts:
    """Look at a VM. Nothing is changed.

    Args:
        domain: the VM.
        deep: look into the disks too, for marks that no checkpoint tells of.
    """
    from vmkit.image.place import POOL
    from vmkit.vm.backup import marks
    from vmkit.vm.metadata import NAMESPACE, remembered_in

    info = domain.info()
    xml = domain.xml()
    found = calls.snapshots(domain)
    parsed = [parse(s.xml, current=s.current) for s in found]
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    element = domain.metadata(NAMESPACE)
    memory = remembered_in(element) if element else None
    try:
        pool = str(domain.host.pool(POOL).folder)
    except VmkitError:
        pool = None
    return SnapshotFacts(
        name=domain.name,
        driver=domain.host.driver,
        libvirt=domain.host.libvirt_version(),
        state=info.state,
        reason=info.reason,
        persistent=domain.persistent,
        saved=calls.saved(domain) if domain.persistent else False,
        busy=busy(domain, info.state),
        disks=describe(xml).disks,
        nvram=_nvram(root),
        assigned=len(root.findall("devices/hostdev")) + len(root.findall("devices/interface[@type='hostdev']")),
        snapshots=in_order(parsed),
        files={p.name: files_of(s.xml) for p, s in zip(parsed, found, strict=True)},
        checkpoints=marks.found(domain) if deep else tuple(backup.checkpoints(domain)),
        volumes=memory.volumes if memory else None,
        pool=pool,
    )


def busy(domain: Domain, state: DomainState) -> bool:
    """Whether a job runs on it, as far as the driver says."""
    if not state.active:
        return False
    try:
        return domain.job() is not None
    except VmkitError:
        return False


def _nvram(root: ET.Element) -> str | None:
    nvram = root.find("os/nvram")
    if nvram is not None:
        return nvram.get("format", "raw")
    loader = root.find("os/loader")
    pflash = loader is not None and loader.get("type") == "pflash" and loader.get("stateless") != "yes"
    return "raw" if pflash else None
