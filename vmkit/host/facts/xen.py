"""What Xen says of itself in its dom0: the modes that it runs guests in, and how its own code can be changed.

Read from `xl info` (xl(1)), `xen-livepatch list` and the configuration that Debian installs beside the hypervisor. The
words of virt_caps are those of Xen's xen_sysctl_physinfo (public/sysctl.h).
"""

from __future__ import annotations

from dataclasses import dataclass

from vmkit.host.tree import Tree, integer, pairs

MIB = 2**20


@dataclass(frozen=True, slots=True)
class XenFacts:
    """Xen, seen from its dom0. None for what is not known, as everywhere; on other hosts all of it is.

    Attributes:
        pv: para-virtual guests run.
        hvm: guests with hardware virtualisation run: HVM and PVH.
        hap: their memory can be mapped by the hardware's nested page tables (EPT, NPT).
        shadow: it can be mapped by shadow page tables instead.
        livepatch: Xen takes live patches, and answered when asked for those that it has.
        livepatches: names of the patches that are loaded.
        iommu: an IOMMU is in use: devices can be given to guests, and dom0's devices do not reach Xen's own memory.
        changeset: of the build's source.
        cmdline: Xen's own command line.
        free: bytes that no domain has.
    """

    pv: bool | None
    hvm: bool | None
    hap: bool | None
    shadow: bool | None
    livepatch: bool | None
    livepatches: tuple[str, ...]
    iommu: bool | None
    changeset: str | None
    cmdline: str | None
    free: int | None


def read(tree: Tree) -> XenFacts:
    """What the captured dom0 says."""
    info = pairs(tree.text("@xl"))
    words = set(info.get("virt_caps", "").split())
    told = bool(words)

    def mode(*names: str) -> bool | None:
        return any(n in words for n in names) if told else None

    free = integer(info.get("free_memory"))
    patches, supported = _livepatches(tree)
    return XenFacts(
        pv=mode("pv"),
        hvm=mode("hvm"),
        hap=mode("hap"),
        shadow=mode("shadow"),
        livepatch=supported,
        livepatches=patches,
        iommu=mode("pv_directio", "hvm_directio"),
        changeset=info.get("xen_changeset") or None,
        cmdline=info.get("xen_commandline") or None,
        free=free * MIB if free is not None else None,
    )


def _livepatches(tree: Tree) -> tuple[tuple[str, ...], bool | None]:
    """Names of loaded patches, and whether Xen takes any. The table has a head of two lines; an empty one has none."""
    text = tree.text("@livepatch")
    if not text.strip():
        return (), None
    if text.strip() == "Nothing to list":
        return (), True
    if "ID" not in text.splitlines()[0]:
        return (), False
    rows = [line.split("|")[0].strip() for line in text.splitlines()[2:]]
    return tuple(r for r in rows if r), True
