"""The source of a live copy: its memory and disks at one moment, and back to its own files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.hypervisor.capture import capture, merge
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.hotplug import set_metadata
from vmkit.hypervisor.volume import Pool
from vmkit.system.clock import Deadline
from vmkit.vm.metadata import NAMESPACE, remembered_in, to_text

PATIENCE: Final = 600.0
"""Seconds that the saving of a memory may go on after its client died."""


@contextlib.contextmanager
def frozen(host: Host, pool: Pool, domain: Domain, memory: str, overlays: Mapping[str, str]) -> Iterator[None]:
    """Save the memory of a running VM; while the block runs, the files of its disks stay as they were then.

    Afterwards what it wrote meanwhile is in them too.

    Args:
        host: where it runs.
        pool: of that host.
        domain: the VM.
        memory: volume that is made.
        overlays: volume that takes what it writes meanwhile, by target of the disk.
    """
    folder = pool.folder
    try:
        capture(domain, str(folder / memory), {t: str(folder / v) for t, v in overlays.items()})
        pool.refresh()
        yield
    finally:
        settle(host, pool, domain.uuid, overlays)


def settle(host: Host, pool: Pool, uuid: str, overlays: Mapping[str, str]) -> list[str]:
    """Have a VM use its own files again, wherever the work was cut off; returns what was done.

    A VM that was shut off meanwhile keeps its overlay: only the QEMU that runs it can merge it. `delete` removes it
    with the VM then.
    """
    domain = next((d for d in host.domains() if d.uuid == uuid), None)
    active = domain is not None and domain.state().active
    if domain is not None and active:
        # libvirt carries on with what a client began that has died since; only then is it known what the disks are on.
        Deadline(PATIENCE).wait_for(f"libvirt still saves the memory of {domain.name}", lambda: domain.job() is None)
    folder = pool.folder
    said: list[str] = []
    pool.refresh()
    for target, volume in overlays.items():
        used = domain is not None and _source(domain, target) == str(folder / volume)
        if domain is not None and used and active:
            merge(domain, target)
            said.append(f"merged the disk {target} of {domain.name}")
        elif domain is not None and used:
            _adopt(domain, volume)
            said.append(f"{domain.name} was shut off meanwhile and keeps {volume}")
            continue
        pool.delete(volume)
    return said


def _source(domain: Domain, target: str) -> str | None:
    root = ET.fromstring(domain.xml())  # noqa: S314 - libvirt's own answer
    for disk in root.iterfind("devices/disk"):
        name, source = disk.find("target"), disk.find("source")
        if name is not None and source is not None and name.get("dev") == target:
            return source.get("file")
    return None


def _adopt(domain: Domain, volume: str) -> None:
    element = domain.metadata(NAMESPACE)
    remembered = remembered_in(element) if element else None
    if remembered is None or volume in remembered.volumes:
        return
    changed = ET.Element("vm")
    changed.text = to_text(replace(remembered, volumes=(*remembered.volumes, volume)))
    set_metadata(domain, ET.tostring(changed, encoding="unicode"), prefix="vmkit", namespace=NAMESPACE)
