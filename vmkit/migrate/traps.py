"""Combinations of versions that are known to go wrong. One row each, with where that is known from.

A feature is probed where that is possible (machine types, CPU features: preflight.py). What is here cannot be probed:
the migration would begin, and end badly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmkit.host.traps import TCG_MIGRATION, VMX_MIGRATION, VersionTrap
from vmkit.migrate.facts import GuestFacts, HostFacts, Version


@dataclass(frozen=True, slots=True)
class Trap:
    """One known-bad combination.

    Attributes:
        id: short name, for messages and tests.
        applies: whether these two hosts and this guest are in it.
        fatal: refuse; otherwise warn.
        harm: what goes wrong.
        fix: the smallest way out.
        source: where this is known from.
    """

    id: str
    applies: Callable[[GuestFacts, HostFacts, HostFacts], bool]
    fatal: bool
    harm: str
    fix: str
    source: str


def _emulated_on_old_qemu(guest: GuestFacts, source: HostFacts, target: HostFacts) -> bool:
    old = any(_qemu(h) and TCG_MIGRATION.catches(h.hypervisor) for h in (source, target))
    return guest.virt_type == "qemu" and old


def _vmx_across_9_10(guest: GuestFacts, source: HostFacts, target: HostFacts) -> bool:
    vmx = any(f == "vmx" or f.startswith("vmx-") for f in guest.features)
    return vmx and source.libvirt < VMX_MIGRATION.since and VMX_MIGRATION.catches(target.libvirt)


def _older_qemu(_guest: GuestFacts, source: HostFacts, target: HostFacts) -> bool:
    return _qemu(source) and _qemu(target) and target.hypervisor[:2] < source.hypervisor[:2]


def _older_xen(_guest: GuestFacts, source: HostFacts, target: HostFacts) -> bool:
    return source.driver == target.driver == "Xen" and target.hypervisor[:2] < source.hypervisor[:2]


def _passthrough_args(guest: GuestFacts, source: HostFacts, target: HostFacts) -> bool:
    return guest.passthrough_args and source.hypervisor != target.hypervisor


def _qemu(host: HostFacts) -> bool:
    return host.driver == "QEMU"


def _known(trap: VersionTrap, applies: Callable[[GuestFacts, HostFacts, HostFacts], bool], *, fatal: bool) -> Trap:
    """A trap of versions that are known beside migration too."""
    return Trap(trap.id, applies, fatal, trap.harm, trap.fix, trap.source)


TRAPS: Final = (
    _known(TCG_MIGRATION, _emulated_on_old_qemu, fatal=True),
    _known(VMX_MIGRATION, _vmx_across_9_10, fatal=True),
    Trap(
        "qemu-older",
        _older_qemu,
        fatal=False,
        harm="the target's QEMU is older than the source's, a direction that upstream QEMU does not test",
        fix="bring the target to the same version first",
        source="QEMU documentation, Migration framework, 'Backward compatibility'",
    ),
    Trap(
        "xen-older",
        _older_xen,
        fatal=True,
        harm="the target's Xen is older than the source's, and Xen migrates from older to newer only",
        fix="bring the target to the same version first",
        source="Xen documentation, xl(1) and docs/features/migration.pandoc: N to N+1",
    ),
    Trap(
        "qemu-arguments",
        _passthrough_args,
        fatal=False,
        harm="the VM has QEMU arguments that libvirt does not look into, and the two QEMU versions differ",
        fix="try the arguments at the target with a throw-away VM first",
        source="libvirt documentation, QEMU driver, 'Pass-through of arbitrary QEMU commands': unsupported",
    ),
)


def sprung(guest: GuestFacts, source: HostFacts, target: HostFacts) -> list[Trap]:
    """The traps that this migration would run into."""
    return [t for t in TRAPS if t.applies(guest, source, target)]


def show_version(version: Version) -> str:
    """(10, 0, 2) as '10.0.2'."""
    return ".".join(map(str, version))
