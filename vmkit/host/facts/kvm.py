"""KVM: its device, its modules and their parameters; the kernel's helpers for I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vmkit.host.tree import Tree, hexadecimal

MODULES: Final[tuple[str, ...]] = ("kvm_intel", "kvm_amd")
_VTD_POSTED: Final = 1 << 59
"""Posted-interrupt support in the capability register (Intel VT-d specification, 11.4.2, CAP_REG bit 59)."""
_AMD_GA: Final = 1 << 7
"""Guest virtual APIC support (AMD I/O Virtualization Technology specification, MMIO offset 30h, bit 7 GASup)."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device node or kernel helper.

    Attributes:
        present: it is there; None if unknown.
        usable: this user may read and write it; None where it is not there.
        loadable: the module is not loaded, and the running kernel has it; None if that cannot be seen.
    """

    present: bool | None
    usable: bool | None
    loadable: bool | None


@dataclass(frozen=True, slots=True)
class KvmFacts:
    """KVM as the kernel has it.

    Attributes:
        device: /dev/kvm.
        module: 'kvm_intel', 'kvm_amd', another kvm_* module, or 'kvm' where it is built for the architecture alone;
            None if no such module is loaded.
        paging: 'nested' (EPT, NPT, or Arm's stage 2) or 'shadow'; None if KVM is not there or does not say.
        nested: whether guests may run KVM themselves; None if it does not say.
        virtual_interrupts: whether APICv or AVIC is on; None if it does not say.
        posted_interrupts: whether interrupts of assigned devices reach a running guest without an exit: virtual
            interrupts are on and the IOMMU can post them; None if unknown.
        parameters: the modules' parameters, as `module.name`.
        vhost_net: kernel back end of virtio-net.
        vhost_vsock: sockets between host and guest.
        tun: tap devices.
        vfio: assigned devices.
    """

    device: Device
    module: str | None
    paging: str | None
    nested: bool | None
    virtual_interrupts: bool | None
    posted_interrupts: bool | None
    parameters: Mapping[str, str]
    vhost_net: Device
    vhost_vsock: Device
    tun: Device
    vfio: Device


def read(tree: Tree) -> KvmFacts:
    """The KVM facts of a captured host."""
    module = _module(tree)
    base = f"/sys/module/{module}/parameters/"
    virtual = _either(tree.switch(base + "enable_apicv"), tree.switch(base + "avic"))
    vfio = _device(tree, "/dev/vfio/vfio", "vfio_pci", module="vfio_pci")
    return KvmFacts(
        device=_device(tree, "/dev/kvm", "kvm"),
        module=module,
        paging=_paging(tree, module),
        nested=tree.switch(base + "nested"),
        virtual_interrupts=virtual,
        posted_interrupts=_posted(tree, virtual),
        parameters=_parameters(tree),
        vhost_net=_device(tree, "/dev/vhost-net", "vhost_net"),
        vhost_vsock=_device(tree, "/dev/vhost-vsock", "vhost_vsock"),
        tun=_device(tree, "/dev/net/tun", "tun"),
        vfio=vfio,
    )


def _module(tree: Tree) -> str | None:
    loaded = [n for n in tree.names("/sys/module") if n.startswith("kvm")]
    first = [n for n in MODULES if n in loaded] or [n for n in loaded if n != "kvm"] or loaded
    return first[0] if first else None


def _paging(tree: Tree, module: str | None) -> str | None:
    if module is None:
        return None
    if module == "kvm" and (tree.line("@machine") or "").startswith(("aarch64", "arm")):
        return "nested"  # stage 2 translation is the only way there
    base = f"/sys/module/{module}/parameters/"
    on = _either(tree.switch(base + "ept"), tree.switch(base + "npt"))
    return None if on is None else "nested" if on else "shadow"


def _posted(tree: Tree, virtual: bool | None) -> bool | None:
    if virtual is False:
        return False
    words = [
        (_VTD_POSTED, tree.below("/sys/class/iommu/", "/intel-iommu/cap")),
        (_AMD_GA, tree.below("/sys/class/iommu/", "/amd-iommu/features")),
    ]
    for bit, paths in words:
        values = [hexadecimal(tree.line(p)) for p in paths]
        if any(v is not None for v in values):
            capable = all(v is not None and v & bit for v in values)
            return capable if virtual or not capable else None
    # Without an IOMMU nothing can be posted.
    return False if tree.folders.get("/sys/class/iommu") == () else None


def _parameters(tree: Tree) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in tree.below("/sys/module/", ""):
        module, _, name = path.removeprefix("/sys/module/").partition("/parameters/")
        if module.startswith(("kvm", "vfio")) and name:
            found[f"{module}.{name}"] = tree.line(path) or ""
    return found


def _device(tree: Tree, path: str, name: str, module: str | None = None) -> Device:
    access = tree.nodes.get(path)
    present = tree.has(path)
    if module and present:
        # The node is made at boot by udev's static nodes; it counts when the driver is there.
        present = tree.listed("/sys/module", module)
    spelt = {s.replace("-", "_") for s in tree.text("@modules").split()}
    loadable = None if present is not False or "@modules" not in tree.files else name in spelt
    if present is False and tree.has("/proc/modules") is False:
        loadable = False  # a kernel that takes no modules
    return Device(present, access == "rw" if access else None, loadable)


def _either(first: bool | None, second: bool | None) -> bool | None:
    return second if first is None else first
