"""Disks and NICs of a VM by the names that people give them. Pure."""

from __future__ import annotations

from typing import Any

from vmkit.errors import NotFoundError
from vmkit.vm.change.shape import Have, disks_of, effective_disks, nics_of


def find_disk(have: Have, device: str) -> int:
    """The number in the spec of a disk that was named as the VM has it ('vdb').

    Raises:
        NotFoundError: there is none.
    """
    disks = effective_disks(have.spec, image_disk=have.image_disk)
    shapes = disks_of(have.spec, disks, have.config)
    names = [s.device if s else None for s in shapes]
    if device not in names:
        there = ", ".join(n for n in names if n) or "none"
        raise NotFoundError(f"{have.name} has no disk '{device}'", hint=f"there is: {there}")
    return names.index(device)


def find_nic(have: Have, which: str) -> int:
    """The number in the spec of a NIC that was named by its number or its MAC address.

    Raises:
        NotFoundError: there is none.
    """
    macs = [s.mac if s else None for s in nics_of(have.spec.nics, have.config)]
    if which.lower() in macs:
        return macs.index(which.lower())
    if which.isascii() and which.isdecimal() and int(which) < len(macs):
        return int(which)
    there = ", ".join(f"{i} ({m or 'no card'})" for i, m in enumerate(macs)) or "none"
    raise NotFoundError(f"{have.name} has no NIC '{which}'", hint=f"there is: {there}")


def disks_in(plain: dict[str, Any], have: Have) -> list[dict[str, Any]]:
    """The disks of a spec as plain data, with the one that it need not name."""
    return list(plain.get("disks") or [{} for _ in effective_disks(have.spec, image_disk=have.image_disk)])


def nics_in(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """The NICs of a spec as plain data, with the one that it need not name."""
    return list(plain["nics"]) if "nics" in plain else [{}]
