"""The parts of a domain's XML that tie it to its host: CPU, pinning, memory, helpers, clock. Pure.

Format: https://libvirt.org/formatdomain.html, 'CPU Allocation', 'CPU Tuning', 'Memory Backing', 'NUMA Node Tuning',
'CPU model and topology', 'Hypervisor features', 'Time keeping'.
"""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree as ET

from vmkit.vm.choices.placement import ranges
from vmkit.vm.design import CpuDesign, Design, Helpers

SPIN_RETRIES: Final = 8191
"""Attempts at a lock before a Windows guest tells the host: 0x1fff, what QEMU and libvirt advise."""


def host_elements(design: Design) -> list[ET.Element]:
    """Elements that go into <domain> beside its devices."""
    found = [_cputune(design), _iothreads(design), _numatune(design), _memory_backing(design), _cpu(design)]
    return [e for e in found if e is not None]


def add_helpers(root: ET.Element, helpers: Helpers) -> None:
    """Extend <features> and <clock> of the template."""
    features, clock = root.find("features"), root.find("clock")
    if features is not None:
        if helpers.hyperv:
            features.append(_hyperv(helpers.hyperv))
        if helpers.kvm:
            kvm = ET.SubElement(features, "kvm")
            for name in helpers.kvm:
                ET.SubElement(kvm, name, state="on")
        if helpers.pvspinlock is not None:
            ET.SubElement(features, "pvspinlock", state="on" if helpers.pvspinlock else "off")
    if clock is not None:
        if helpers.localtime:
            clock.set("offset", "localtime")
        for name in helpers.timers:
            ET.SubElement(clock, "timer", name=name, present="yes")


def _hyperv(names: tuple[str, ...]) -> ET.Element:
    hyperv = ET.Element("hyperv", mode="custom")
    for name in names:
        element = ET.SubElement(hyperv, name, state="on")
        if name == "spinlocks":
            element.set("retries", str(SPIN_RETRIES))
        if name == "stimer":
            ET.SubElement(element, "direct", state="on")
    return hyperv


def _cpu(design: Design) -> ET.Element | None:
    chosen = design.cpu
    if chosen is None:
        return None
    cpu = ET.Element("cpu", mode=chosen.mode)
    if chosen.migratable is not None:
        cpu.set("migratable", "on" if chosen.migratable else "off")
    if chosen.model:
        ET.SubElement(cpu, "model", fallback="forbid").text = chosen.model
    _cpu_shape(cpu, chosen)
    return cpu


def _cpu_shape(cpu: ET.Element, chosen: CpuDesign) -> None:
    if chosen.topology:
        sockets, cores, threads = map(str, chosen.topology)
        ET.SubElement(cpu, "topology", sockets=sockets, cores=cores, threads=threads)
    if chosen.cache_passthrough:
        ET.SubElement(cpu, "cache", mode="passthrough")


def _cputune(design: Design) -> ET.Element | None:
    pinning = design.pinning
    if pinning is None:
        return None
    tune = ET.Element("cputune")
    for i, cpus in enumerate(pinning.vcpus):
        ET.SubElement(tune, "vcpupin", vcpu=str(i), cpuset=ranges(frozenset(cpus)))
    if pinning.rest:
        rest = ranges(frozenset(pinning.rest))
        ET.SubElement(tune, "emulatorpin", cpuset=rest)
        for i in range(1, design.iothreads + 1):
            ET.SubElement(tune, "iothreadpin", iothread=str(i), cpuset=rest)
    return tune


def _iothreads(design: Design) -> ET.Element | None:
    if not design.iothreads:
        return None
    element = ET.Element("iothreads")
    element.text = str(design.iothreads)
    return element


def _numatune(design: Design) -> ET.Element | None:
    if design.backing.node is None:
        return None
    tune = ET.Element("numatune")
    ET.SubElement(tune, "memory", mode="strict", nodeset=str(design.backing.node))
    return tune


def _memory_backing(design: Design) -> ET.Element | None:
    backing = design.backing
    if not (backing.page or backing.locked):
        return None
    element = ET.Element("memoryBacking")
    if backing.page:
        pages = ET.SubElement(element, "hugepages")
        ET.SubElement(pages, "page", size=str(backing.page >> 10), unit="KiB")
    if backing.locked:
        ET.SubElement(element, "locked")
    return element
