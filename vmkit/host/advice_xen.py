"""Judging Xen, from its dom0."""

from __future__ import annotations

from collections.abc import Iterator

from vmkit.host import figures
from vmkit.host.advice_kvm import firmware_setting
from vmkit.host.facts.host import HostFacts
from vmkit.host.facts.virt import Environment
from vmkit.host.finding import Finding, Level

_KCONFIG = "Xen 4.17, xen/arch/x86/Kconfig: SHADOW_PAGING"


def judge(facts: HostFacts) -> Iterator[Finding]:
    """Findings about Xen; none where this is no dom0."""
    if facts.virt.environment is not Environment.XEN_DOM0:
        return
    version = facts.virt.xen_version or "of unknown version"
    yield Finding("xen", "cpu", Level.OK, f"this is the dom0 of Xen {version}")
    yield from _hardware(facts)
    yield from _paging(facts)
    yield from _livepatch(facts)
    yield from _iommu(facts)


def _hardware(facts: HostFacts) -> Iterator[Finding]:
    able = facts.virt.xen_hvm if facts.xen.hvm is None else facts.xen.hvm
    if able is False:
        yield Finding(
            "xen-no-hvm",
            "cpu",
            Level.GAP,
            "Xen has no hardware virtualisation here: para-virtual guests only",
            "neither HVM nor PVH guests run; guests that know nothing of Xen cannot be run",
            (f"firmware: enable {firmware_setting(facts)}",),
        )
    elif able is None:
        yield Finding(
            "xen-hvm-unknown", "cpu", Level.NOTE, "whether Xen runs HVM guests is not known", "", ("xl info",)
        )
    else:
        modes = "PVH, HVM and PV guests" if facts.xen.pv else "PVH and HVM guests"
        yield Finding(
            "xen-modes", "cpu", Level.OK, f"Xen runs {modes}; `machine: auto` is PVH for an image with a kernel"
        )


def _paging(facts: HostFacts) -> Iterator[Finding]:
    xen = facts.xen
    if xen.hap:
        yield Finding("xen-hap", "memory", Level.OK, "memory of HVM and PVH guests is mapped by nested paging (HAP)")
    elif xen.hap is False and xen.hvm and xen.shadow:
        yield Finding(
            "xen-no-hap",
            "memory",
            Level.GAP,
            "Xen maps HVM and PVH guests by shadow page tables: there is no HAP",
            figures.SHADOW.text,
            ("xl info | grep xen_commandline    (hap=0 there switches it off)",),
            figures.SHADOW.source,
        )
    if xen.shadow is False:
        yield Finding(
            "xen-no-shadow",
            "memory",
            Level.NOTE,
            "this Xen was built without shadow paging",
            "a guest with hap=0 is refused, and PV guests cannot be migrated live",
            (),
            _KCONFIG,
        )


def _livepatch(facts: HostFacts) -> Iterator[Finding]:
    xen = facts.xen
    if xen.livepatch:
        loaded = f"; loaded: {', '.join(xen.livepatches)}" if xen.livepatches else ""
        yield Finding("xen-livepatch", "system", Level.OK, f"Xen takes live patches{loaded}")
    elif xen.livepatch is False:
        yield Finding(
            "xen-no-livepatch",
            "system",
            Level.NOTE,
            "Xen takes no live patches",
            "its security fixes need a reboot of the host with all its guests",
        )


def _iommu(facts: HostFacts) -> Iterator[Finding]:
    if facts.xen.iommu:
        yield Finding("xen-iommu", "iommu", Level.OK, "Xen uses an IOMMU: devices can be given to guests")
    elif facts.xen.iommu is False:
        yield Finding(
            "xen-no-iommu",
            "iommu",
            Level.NOTE,
            "Xen uses no IOMMU",
            "no device can be given to an HVM or PVH guest, and devices of dom0 reach all memory, Xen's own too",
            ("firmware: enable the IOMMU (VT-d, AMD-Vi)",),
        )
