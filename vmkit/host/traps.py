"""Versions of QEMU and libvirt that are known to go wrong. One row each, with where that is known from.

A feature is probed where that is possible; what is here cannot be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmkit.host.facts.libvirt import Version


@dataclass(frozen=True, slots=True)
class VersionTrap:
    """Versions of one program to beware of.

    Attributes:
        id: short name.
        program: 'qemu' or 'libvirt'.
        since: the first version that has it.
        before: the first version that does not have it any more.
        harm: what goes wrong.
        fix: the way out.
        source: where this is known from.
    """

    id: str
    program: str
    since: Version
    before: Version
    harm: str
    fix: str
    source: str

    def catches(self, version: Version) -> bool:
        """Whether this version has it."""
        return self.since <= version < self.before


TCG_MIGRATION: Final = VersionTrap(
    "tcg-qemu-7",
    "qemu",
    (0, 0, 0),
    (8, 0, 0),
    harm="QEMU older than 8.0 corrupts the memory of an emulated (TCG) guest that is migrated",
    fix="use QEMU 8.0 or newer on both hosts, or stop the VM and start it at the target",
    source="measured on a pair of hosts: QEMU 7.2, 2 of 12 migrations under load ended in a guest kernel panic; "
    "QEMU 10.0, none of 16",
)
VMX_MIGRATION: Final = VersionTrap(
    "vmx-libvirt-9.10",
    "libvirt",
    (9, 10, 0),
    (10, 2, 0),
    harm="libvirt 9.10 to 10.1 refuses, after the start, a guest with vmx that comes from libvirt 9.9 or older",
    fix="bring the target to libvirt 10.2 or newer",
    source="libvirt NEWS, v10.2.0 (2024-04-02): migration with disabled vmx-* CPU features",
)
POSTCOPY_RESUME: Final = VersionTrap(
    "postcopy-resume-libvirt-11.2",
    "libvirt",
    (11, 2, 0),
    (11, 4, 0),
    harm="libvirt 11.2 and 11.3 crash when a broken post-copy migration is resumed",
    fix="bring libvirt to 11.4 or newer, or do not use post-copy",
    source="reported upstream; fixed in libvirt 11.4.0",
)
POSTCOPY_MULTIFD: Final = VersionTrap(
    "postcopy-multifd",
    "qemu",
    (0, 0, 0),
    (10, 1, 0),
    harm="QEMU older than 10.1 loses a guest that is migrated with post-copy and parallel connections together",
    fix="use one of the two, not both; QEMU 10.1 can do both",
    source="QEMU 10.1 is the first release that supports both at once; below it the VM ended shut off",
)
VERSION_TRAPS: Final = (TCG_MIGRATION, VMX_MIGRATION, POSTCOPY_RESUME, POSTCOPY_MULTIFD)
