"""What the host itself is - bare metal, a guest, Xen's dom0, a container - and which hypervisor it offers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from vmkit.host.facts.cpu import flags
from vmkit.host.tree import Tree

_BY_DMI: Final = {
    "VMware": "VMware",
    "innotek": "VirtualBox",
    "Microsoft": "Hyper-V",
    "Amazon EC2": "KVM",
    "Google": "KVM",
    "OpenStack": "KVM",
    "Alibaba": "KVM",
    "DigitalOcean": "KVM",
    "Hetzner": "KVM",
    "Xen": "Xen",
    "KVM": "KVM",
    "QEMU": "QEMU",
}
"""Begin or end of DMI's sys_vendor or product_name -> hypervisor; as systemd-detect-virt(1) does it."""
_BY_CLOCK: Final = {"kvm-clock": "KVM", "hyperv_clocksource_tsc_page": "Hyper-V", "xen": "Xen"}
_CONTAINERS: Final = ("docker", "lxc", "kubepods", "libpod", "machine.slice/machine-", "containerd")


class Environment(Enum):
    """Where the host's kernel runs."""

    BARE_METAL = "bare-metal"
    GUEST = "guest"
    XEN_DOM0 = "xen-dom0"
    XEN_DOMU = "xen-domU"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class VirtFacts:
    """What the host is, and whose guests it can run.

    Attributes:
        environment: bare metal, a guest, dom0 or domU.
        under: the hypervisor below, if this is a guest: 'KVM', 'QEMU', 'Xen', 'VMware', 'Hyper-V', 'VirtualBox';
            'unknown' if it does not say.
        container: the kind of container that this runs in; None if in none, or if it does not show.
        offers: 'KVM' or 'Xen'; None where neither is there.
        xen_version: Xen's version, in a dom0 or domU.
        xen_hvm: whether Xen can run guests with hardware virtualisation; None if it does not say.
        vendor: of the machine, from DMI.
        product: of the machine, from DMI.
        laptop: by DMI's chassis type (SMBIOS 7.4.1).
    """

    environment: Environment
    under: str | None
    container: str | None
    offers: str | None
    xen_version: str | None
    xen_hvm: bool | None
    vendor: str
    product: str
    laptop: bool


def read(tree: Tree) -> VirtFacts:
    """What kind of host the captured one is."""
    xen = tree.line("/sys/hypervisor/type") == "xen" or bool(tree.line("/proc/xen/capabilities"))
    dom0 = "control_d" in tree.text("/proc/xen/capabilities")
    environment, under = (Environment.XEN_DOM0 if dom0 else Environment.XEN_DOMU, "Xen") if xen else _environment(tree)
    version = [tree.line(f"/sys/hypervisor/version/{part}") or "" for part in ("major", "minor", "extra")]
    capabilities = tree.line("/sys/hypervisor/properties/capabilities")
    kvm = "/dev/kvm" in tree.nodes or any(n.startswith("kvm") and n != "kvm" for n in tree.names("/sys/module"))
    return VirtFacts(
        environment=environment,
        under=None if dom0 else under,
        container=_container(tree),
        offers="Xen" if dom0 else "KVM" if kvm else None,
        xen_version=f"{version[0]}.{version[1]}{version[2]}" if xen and version[0] and version[1] else None,
        xen_hvm="hvm-" in capabilities if xen and capabilities else None,
        vendor=tree.line("/sys/class/dmi/id/sys_vendor") or "",
        product=tree.line("/sys/class/dmi/id/product_name") or "",
        laptop=tree.line("/sys/class/dmi/id/chassis_type") in ("8", "9", "10", "14", "31", "32"),
    )


def _environment(tree: Tree) -> tuple[Environment, str | None]:
    dmi = _by_dmi(tree)
    if "hypervisor" in flags(tree):
        return Environment.GUEST, dmi or _by_clock(tree) or "unknown"
    compatible = tree.line("/proc/device-tree/hypervisor/compatible")
    if compatible:
        return Environment.GUEST, "KVM" if "kvm" in compatible else "Xen" if "xen" in compatible else "unknown"
    if not tree.text("/proc/cpuinfo"):
        return Environment.UNKNOWN, None
    # Arm has no flag for it. A cloud's name in DMI does not tell: the same stands on its bare-metal machines.
    if tree.line("@machine") != "x86_64" and dmi in ("KVM", "QEMU") and _is_virtual(tree):
        return Environment.GUEST, dmi
    return Environment.BARE_METAL, None


def _is_virtual(tree: Tree) -> bool:
    return any(
        (tree.line(f"/sys/class/dmi/id/{name}") or "").startswith(("QEMU", "KVM", "Google Compute"))
        for name in ("sys_vendor", "product_name")
    )


def _by_dmi(tree: Tree) -> str | None:
    for name in ("product_name", "sys_vendor", "bios_vendor"):
        text = tree.line(f"/sys/class/dmi/id/{name}") or ""
        for key, value in _BY_DMI.items():
            if text.startswith(key):
                return value
    return None


def _by_clock(tree: Tree) -> str | None:
    words = tree.text("/sys/devices/system/clocksource/clocksource0/available_clocksource").split()
    return next((_BY_CLOCK[w] for w in words if w in _BY_CLOCK), None)


def _container(tree: Tree) -> str | None:
    if named := tree.line("/run/systemd/container"):
        return named
    if "/.dockerenv" in tree.nodes:
        return "docker"
    if "/run/.containerenv" in tree.files:
        return "podman"
    groups = tree.text("/proc/1/cgroup")
    return next((c.partition("/")[0].removesuffix(".slice") for c in _CONTAINERS if c in groups), None)
