"""Combinations of versions that are known to go wrong. One row each, with where that is known from.

A feature is probed where that is possible (machine types, CPU features: preflight.py). What is here cannot be probed:
the migration would begin, and end badly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmkit.host.traps import POSTCOPY_MULTIFD, POSTCOPY_RESUME, TCG_MIGRATION, VMX_MIGRATION, VersionTrap
from vmkit.migrate.facts import GuestFacts, HostFacts, Version
from vmkit.migrate.wish import PLAIN, Wish

Applies = Callable[[GuestFacts, HostFacts, HostFacts, Wish], bool]


@dataclass(frozen=True, slots=True)
class Trap:
    """One known-bad combination.

    Attributes:
        id: short name, for messages and tests.
        applies: whether these two hosts, this guest and what is wished for are in it.
        fatal: refuse; otherwise warn.
        harm: what goes wrong.
        fix: the smallest way out.
        source: where this is known from.
        post_copy: it is one of post-copy alone.
    """

    id: str
    applies: Applies
    fatal: bool
    harm: str
    fix: str
    source: str
    post_copy: bool = False


def _emulated_on_old_qemu(guest: GuestFacts, source: HostFacts, target: HostFacts, _wish: Wish) -> bool:
    old = any(_qemu(h) and TCG_MIGRATION.catches(h.hypervisor) for h in (source, target))
    return guest.virt_type == "qemu" and old


def _vmx_across_9_10(guest: GuestFacts, source: HostFacts, target: HostFacts, _wish: Wish) -> bool:
    vmx = any(f == "vmx" or f.startswith("vmx-") for f in guest.features)
    return vmx and source.libvirt < VMX_MIGRATION.since and VMX_MIGRATION.catches(target.libvirt)


def _older_qemu(_guest: GuestFacts, source: HostFacts, target: HostFacts, _wish: Wish) -> bool:
    return _qemu(source) and _qemu(target) and target.hypervisor[:2] < source.hypervisor[:2]


def _older_xen(_guest: GuestFacts, source: HostFacts, target: HostFacts, _wish: Wish) -> bool:
    return source.driver == target.driver == "Xen" and target.hypervisor[:2] < source.hypervisor[:2]


def _passthrough_args(guest: GuestFacts, source: HostFacts, target: HostFacts, _wish: Wish) -> bool:
    return guest.passthrough_args and source.hypervisor != target.hypervisor


def _qemu(host: HostFacts) -> bool:
    return host.driver == "QEMU"


def _unresumable(_guest: GuestFacts, source: HostFacts, target: HostFacts, wish: Wish) -> bool:
    return wish.post_copy and any(POSTCOPY_RESUME.catches(h.libvirt) for h in (source, target))


def _postcopy_multifd(_guest: GuestFacts, source: HostFacts, target: HostFacts, wish: Wish) -> bool:
    both = wish.post_copy and wish.parallel > 0
    return both and any(_qemu(h) and POSTCOPY_MULTIFD.catches(h.hypervisor) for h in (source, target))


def _too_old(host: HostFacts, qemu: Version, libvirt: Version) -> bool:
    return _qemu(host) and (host.hypervisor < qemu or host.libvirt < libvirt)


def _old_parallel(_guest: GuestFacts, source: HostFacts, target: HostFacts, wish: Wish) -> bool:
    return wish.parallel > 0 and any(_too_old(h, (4, 0, 0), (5, 2, 0)) for h in (source, target))


def _old_packing(_guest: GuestFacts, source: HostFacts, target: HostFacts, wish: Wish) -> bool:
    packed = wish.compression in ("zstd", "zlib")
    return packed and any(_too_old(h, (5, 0, 0), (9, 4, 0)) for h in (source, target))


def _old_zero_copy(_guest: GuestFacts, source: HostFacts, target: HostFacts, wish: Wish) -> bool:
    # only the source's QEMU sends, and the target's libvirt has to know the flag
    return wish.zero_copy and (_too_old(source, (7, 1, 0), (8, 5, 0)) or _too_old(target, (4, 0, 0), (8, 5, 0)))


def _unlocked_zero_copy(_guest: GuestFacts, source: HostFacts, _target: HostFacts, wish: Wish) -> bool:
    return wish.zero_copy and source.uri.partition("?")[0].endswith("/session")


def _limited_zero_copy(_guest: GuestFacts, source: HostFacts, _target: HostFacts, wish: Wish) -> bool:
    return wish.zero_copy and source.locks is False


def _huge_postcopy(guest: GuestFacts, _source: HostFacts, _target: HostFacts, wish: Wish) -> bool:
    return wish.post_copy and guest.hugepage_size >= 2**30


def _assigned_postcopy(guest: GuestFacts, _source: HostFacts, _target: HostFacts, wish: Wish) -> bool:
    return wish.post_copy and bool(guest.devices)


def _sealed_uffd(_guest: GuestFacts, _source: HostFacts, target: HostFacts, wish: Wish) -> bool:
    return wish.post_copy and target.userfaultfd is False


def _unknown_uffd(_guest: GuestFacts, _source: HostFacts, target: HostFacts, wish: Wish) -> bool:
    return wish.post_copy and target.userfaultfd is None


def _known(trap: VersionTrap, applies: Applies, *, fatal: bool, post_copy: bool = False) -> Trap:
    """A trap of versions that are known beside migration too."""
    return Trap(trap.id, applies, fatal, trap.harm, trap.fix, trap.source, post_copy)


TRAPS: Final = (
    _known(TCG_MIGRATION, _emulated_on_old_qemu, fatal=True),
    _known(VMX_MIGRATION, _vmx_across_9_10, fatal=True),
    # a warning: post-copy itself works there, and only a broken one (network, host) cannot be taken up
    _known(POSTCOPY_RESUME, _unresumable, fatal=False, post_copy=True),
    _known(POSTCOPY_MULTIFD, _postcopy_multifd, fatal=True, post_copy=True),
    Trap(
        "parallel-old",
        _old_parallel,
        fatal=True,
        harm="parallel connections need QEMU 4.0 and libvirt 5.2 on both hosts",
        fix="leave --parallel out",
        source="QEMU 4.0 change log, 'multifd'; libvirt, VIR_MIGRATE_PARALLEL",
    ),
    Trap(
        "parallel-compression-old",
        _old_packing,
        fatal=True,
        harm="zstd and zlib need QEMU 5.0 and libvirt 9.4 on both hosts",
        fix="leave --compress out, or use --compress xbzrle without --parallel",
        source="QEMU 5.0 change log, multifd-compression; libvirt NEWS, v9.4.0",
    ),
    Trap(
        "zero-copy-old",
        _old_zero_copy,
        fatal=True,
        harm="sending without a copy needs QEMU 7.1 at the source and libvirt 8.5 on both hosts",
        fix="leave --zero-copy out",
        source="QEMU 7.1 change log, zero-copy-send; libvirt, VIR_MIGRATE_ZEROCOPY",
    ),
    Trap(
        "zero-copy-session",
        _unlocked_zero_copy,
        fatal=True,
        harm="sending without a copy locks the guest's memory, and the libvirt of a user may not raise that limit",
        fix="leave --zero-copy out, or use qemu:///system",
        source="libvirt, VIR_MIGRATE_ZEROCOPY: QEMU is temporarily allowed to lock all guest pages",
    ),
    Trap(
        "zero-copy-limit",
        _limited_zero_copy,
        fatal=True,
        harm="sending without a copy locks the guest's memory, and the source does not let its root raise that limit",
        fix="leave --zero-copy out, or give the container of the source CAP_SYS_RESOURCE or a limit of that size",
        source="getrlimit(2), RLIMIT_MEMLOCK; libvirt, VIR_MIGRATE_ZEROCOPY",
    ),
    Trap(
        "postcopy-1g-pages",
        _huge_postcopy,
        fatal=True,
        harm="the VM's memory is pages of 1 GiB, and with post-copy the guest waits about a second for each",
        fix="use --mode pre-copy",
        source="QEMU documentation, Postcopy, 'Postcopy with hugepages'",
        post_copy=True,
    ),
    Trap(
        "postcopy-assigned-device",
        _assigned_postcopy,
        fatal=True,
        harm="the VM holds a device of its host, and such a device cannot wait for memory, as post-copy makes it",
        fix="use --mode pre-copy, or detach the device first",
        source="QEMU documentation, VFIO device migration: post-copy is not supported",
        post_copy=True,
    ),
    Trap(
        "postcopy-no-userfaultfd",
        _sealed_uffd,
        fatal=True,
        harm="the target's kernel has no userfaultfd, which post-copy needs",
        fix="use --mode pre-copy, or a kernel with CONFIG_USERFAULTFD=y there",
        source="QEMU documentation, Postcopy; userfaultfd(2)",
        post_copy=True,
    ),
    Trap(
        "postcopy-userfaultfd-unknown",
        _unknown_uffd,
        fatal=False,
        harm="it could not be seen whether the target has userfaultfd, which post-copy needs",
        fix="look there: cat /proc/sys/vm/unprivileged_userfaultfd",
        source="QEMU documentation, Postcopy; userfaultfd(2)",
        post_copy=True,
    ),
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


def sprung(guest: GuestFacts, source: HostFacts, target: HostFacts, wish: Wish = PLAIN) -> list[Trap]:
    """The traps that this migration would run into."""
    return [t for t in TRAPS if t.applies(guest, source, target, wish)]


def show_version(version: Version) -> str:
    """(10, 0, 2) as '10.0.2'."""
    return ".".join(map(str, version))
