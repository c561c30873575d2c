"""What has to be known about a VM before it is copied. Only observed here."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from vmkit.errors import NotFoundError, UnsupportedError
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.volume import Pool
from vmkit.image.manifest import Image, ImageKind
from vmkit.image.place import ensure_pool
from vmkit.vm import guest
from vmkit.vm.clone.identity import memory_of
from vmkit.vm.clone.plan import SourceDisk, SourceFacts


def gather(host: Host, domain: Domain) -> SourceFacts:
    """Look at a VM and its host.

    Raises:
        UnsupportedError: the host is not QEMU's.
    """
    if host.driver != "QEMU":
        raise UnsupportedError(f"{host.uri} is driven by {host.driver}; only QEMU's VMs are copied")
    state = domain.state()
    xml = domain.xml(inactive=True, secure=True)
    remembered = memory_of(xml)
    image = image_of(remembered.image if remembered else None)
    pool = ensure_pool(host)
    pool.refresh()
    return SourceFacts(
        name=domain.name,
        uuid=domain.uuid,
        state=state.value,
        xml=xml,
        disks=_disks(domain.xml(secure=True) if state.active else xml, pool),
        remembered=remembered,
        agent=image.agent if image else _has_channel(xml),
        stateless=image is not None and image.kind is ImageKind.MICRO and image.kernel is not None,
        domains=frozenset(d.name for d in host.domains()),
        qemu=host.hypervisor_version(),
        free=pool.free(),
        answers=guest.answers(domain) if state is DomainState.RUNNING else False,
    )


def image_of(name: str | None) -> Image | None:
    """The image of this name, if this machine still has it."""
    from vmkit.image.api import Images

    if name is None:
        return None
    try:
        return Images().get(name)
    except NotFoundError:
        return None


def _has_channel(xml: str) -> bool:
    """Whether a guest agent could be reached; whether there is one, only asking tells."""
    return "org.qemu.guest_agent.0" in xml


def _disks(xml: str, pool: Pool) -> tuple[SourceDisk, ...]:
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    folder = str(pool.folder)
    found = []
    for disk in root.iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        path = None if source is None else source.get("file") or source.get("dev") or source.get("volume")
        if path is None or target is None:
            continue
        parent, _, name = path.rpartition("/")
        volume = name if parent == folder and pool.path(name) else None
        found.append(
            SourceDisk(
                target=target.get("dev", ""),
                path=path,
                volume=volume,
                backing=pool.backing(volume) if volume else None,
                writable=disk.find("readonly") is None and disk.get("device", "disk") == "disk",
                size=pool.size(volume)[1] if volume else 0,
            )
        )
    return tuple(found)
