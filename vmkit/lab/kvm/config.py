"""What only hosts of KVM guests are told when they take on their identity. Pure."""

from __future__ import annotations

from vmkit.lab.kvm.options import KvmOptions
from vmkit.lab.nested.blueprint import Blueprint, HostPlan
from vmkit.lab.nested.config import POOL, shared


def files(plan: Blueprint, host: HostPlan) -> dict[str, str]:
    """Configuration of libvirt's QEMU driver."""
    return {"etc/libvirt/qemu.conf": qemu_conf(plan, host)}


def settings(plan: Blueprint, _host: HostPlan) -> dict[str, object]:
    """What templates/lab-kvm/own reads."""
    assert isinstance(plan.options, KvmOptions)  # noqa: S101 - a lab of this kind has no other
    return {"HUGEPAGES": plan.options.hugepages, "PAGING": "shadow" if plan.options.shadow else "nested"}


def qemu_conf(plan: Blueprint, host: HostPlan) -> str:
    """qemu.conf: Debian's defaults but for what migration between the hosts needs.

    A pool in common lies on a file system that libvirt does not know as shared, and that keeps no extended attributes.
    """
    lines = [f'migration_address = "{host.address}"', f'migration_host = "{host.address}"']
    if shared(plan):
        lines += ["remember_owner = 0", f'shared_filesystems = [ "{POOL}" ]']
    return "".join(f"{line}\n" for line in lines)
