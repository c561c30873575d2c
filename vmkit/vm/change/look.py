"""Looking at a VM that shall change. Nothing is changed here."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from vmkit.errors import ConflictError, NotFoundError, SpecError, VmkitError
from vmkit.hypervisor import alter
from vmkit.values import Bytes
from vmkit.vm.change.shape import Have, Shape, read
from vmkit.vm.metadata import NAMESPACE, Remembered, remembered_in
from vmkit.vm.spec import VmSpec, parse

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain
    from vmkit.image.manifest import Image


def look(domain: Domain) -> Have:
    """The VM as it is.

    Raises:
        ConflictError: another tool made it, or it has no definition.
    """
    if not domain.persistent:
        raise ConflictError(
            f"{domain.name} has no definition: what is changed would be gone when it is shut down",
            hint=f"give it one: virsh dumpxml {domain.name} >{domain.name}.xml; virsh define {domain.name}.xml",
        )
    memory = remembered(domain, inactive=True)
    active = domain.state().active
    config = read(domain.xml(inactive=True))
    live = read(domain.xml()) if active else None
    then = remembered(domain, inactive=False) if active else None
    spec = _parsed(memory, domain.name)
    image = _image(spec.image)
    return Have(
        name=domain.name,
        uri=domain.host.uri,
        spec=spec,
        running=_parsed(then, domain.name) if then else None,
        config=config,
        live=live,
        sizes=_sizes(domain, config),
        volumes=memory.volumes,
        autostart=domain.autostart,
        image_disk=image.disk is not None if image else _first_is_volume(memory, config),
        auto_memory=_auto_memory(spec, image),
        min_memory=image.min_memory if image else Bytes(0),
    )


def remembered(domain: Domain, *, inactive: bool) -> Remembered:
    """What vmkit keeps about a VM: in its definition, or of what runs.

    Raises:
        ConflictError: another tool made it.
    """
    element = alter.metadata(domain, NAMESPACE, inactive=inactive)
    found = remembered_in(element) if element else None
    if found is None:
        raise ConflictError(
            f"'{domain.name}' exists on {domain.host.uri}, and another tool made it",
            hint="vmkit changes the VMs that it made; for this one: virsh edit, virsh attach-device",
        )
    return found


def element_of(text: str) -> str:
    """Vmkit's own element of the metadata with this content."""
    made = ET.Element("vm")
    made.text = text
    return ET.tostring(made, encoding="unicode")


def _parsed(memory: Remembered, name: str) -> VmSpec:
    try:
        return parse({**memory.spec, "name": name})
    except SpecError as e:
        raise ConflictError(
            f"{name} was made by another version of vmkit: {e.message}", hint="update vmkit on this machine"
        ) from e


def _image(name: str | None) -> Image | None:
    from vmkit.image.api import Images

    try:
        return Images().get(name) if name else None
    except NotFoundError:
        return None


def _first_is_volume(memory: Remembered, config: Shape) -> bool:
    """Where the image is not in the store any more: whether the first disk is one that vmkit made."""
    first = config.disks[0].source if config.disks else None
    return bool(first) and str(first).rpartition("/")[2] in memory.volumes


def _auto_memory(spec: VmSpec, image: Image | None) -> Bytes:
    import msgspec

    from vmkit.vm.choices.memory import size
    from vmkit.vm.choices.reasons import Reasons
    from vmkit.vm.families import FAMILIES

    return size(msgspec.structs.replace(spec, memory=None), FAMILIES[spec.family], image, Reasons())


def _sizes(domain: Domain, config: Shape) -> dict[str, int]:
    """What the guest sees of each disk; without those that cannot be asked for."""
    found: dict[str, int] = {}
    for disk in config.disks:
        try:
            if domain.host.driver == "TEST":  # whose disks are all of 1 TiB
                from vmkit.image.place import POOL

                found[disk.device] = domain.host.pool(POOL).size((disk.source or "").rpartition("/")[2])[0]
            else:
                found[disk.device] = alter.capacity(domain, disk.device)
        except VmkitError:
            continue
    return found
