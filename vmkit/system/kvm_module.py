"""KVM's kernel module for this machine's CPU: its parameters, and loading it again with others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vmkit.errors import ConflictError, EffectError, VmkitError
from vmkit.system.process import find_program, run

PAGING: Final = {"kvm_amd": "npt", "kvm_intel": "ept"}
"""Module -> parameter that says whether the hardware walks nested page tables (Documentation/admin-guide/
kernel-parameters.txt, kvm-amd.npt and kvm-intel.ept). It is read when the module is loaded."""

_BASE: Final = Path("/sys/module")


def loaded() -> str | None:
    """'kvm_amd' or 'kvm_intel'; None if neither is a loaded module."""
    return next((m for m in PAGING if (_BASE / m / "initstate").exists()), None)


def parameters(module: str) -> dict[str, str]:
    """Its parameters now, as text; those that this user may not read are left out."""
    found = {}
    for file in sorted((_BASE / module / "parameters").glob("*")):
        try:
            found[file.name] = file.read_text().strip()
        except OSError:
            continue
    return found


def nested_paging(module: str) -> bool | None:
    """Whether it uses EPT or NPT; None if it does not say."""
    value = parameters(module).get(PAGING[module])
    return None if value is None else value in ("Y", "1")


def reload(module: str, values: Mapping[str, str]) -> None:
    """Load it again with these parameters. Where the kernel refuses some of them, with that of its paging alone.

    Raises:
        ConflictError: a VM uses it; it is as it was.
        EffectError: it cannot be loaded again.
    """
    modprobe = find_program("modprobe", package="kmod")
    if loaded():
        try:
            run([modprobe, "-r", module], timeout=60)
        except EffectError as e:
            raise ConflictError(f"the module {module} is in use", hint="stop the VMs of this host first") from e
    words = [f"{name}={value}" for name, value in values.items() if value and "(null)" not in value]
    paging = [w for w in words if w.startswith(f"{PAGING[module]}=")]
    try:
        run([modprobe, module, *words], timeout=60)
    except VmkitError:
        run([modprobe, module, *paging], timeout=60)
