"""One migration of a VM at a time, by whatever process of this machine."""

from __future__ import annotations

from contextlib import AbstractContextManager

from vmkit.system.files import home, locked


def vm_lock(name: str, uuid: str) -> AbstractContextManager[None]:
    """Hold the VM while it is migrated, or while a migration that was cut off is settled.

    Raises:
        ConflictError: another vmkit holds it.
    """
    return locked(
        home() / "locks" / f"migrate-{uuid}.lock", busy=f"{name} is being migrated by another vmkit: vmkit jobs"
    )
