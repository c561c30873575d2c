"""Changing how KVM pages for the time of a measurement. The journal knows what to give back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmkit.errors import EffectError
from vmkit.host.measured import Mode
from vmkit.system import kvm_module
from vmkit.system.journal import Entry


def switch(entry: Entry, mode: Mode) -> None:
    """Have KVM page as `mode` (NESTED or SHADOW) says. What it was at first is journalled before the change.

    Raises:
        ConflictError: the module is in use; nothing has changed.
        EffectError: the module could not be loaded again, or does not do what was asked.
    """
    module = kvm_module.loaded()
    if module is None:
        raise EffectError("KVM's module is gone", hint="modprobe kvm_amd or kvm_intel")
    wanted = mode is Mode.NESTED
    if kvm_module.nested_paging(module) is wanted:
        return
    before = kvm_module.parameters(module)
    if "module" not in entry.record.data:
        entry.advance("paging", module=module, parameters=before)
    kvm_module.reload(module, {**before, kvm_module.PAGING[module]: "1" if wanted else "0"})
    if kvm_module.nested_paging(module) is not wanted:
        raise EffectError(f"{module} cannot page as asked here", hint=f"dmesg may say why: dmesg | grep {module}")


def restore(data: Mapping[str, Any]) -> str | None:
    """Give KVM back the parameters that a journal entry holds; says what was done, None if nothing had to be.

    Raises:
        ConflictError: the module is in use.
        EffectError: it cannot be loaded.
    """
    module = data.get("module")
    if module is None:
        return None
    name = kvm_module.PAGING[module]
    value = data["parameters"][name]
    if kvm_module.loaded() == module and kvm_module.parameters(module).get(name) == value:
        return None
    kvm_module.reload(module, data["parameters"])
    return f"{module} has {name}={value} again"
