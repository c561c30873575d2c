"""Limits in the spec that a VM's metadata keeps, so that `vmkit apply` knows what was asked for since. Pure."""

from __future__ import annotations

from typing import Any

from vmkit.values import to_plain
from vmkit.vm.limits import Limits


def in_spec(spec: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """The spec, as plain data without defaults, with these limits in place of its own.

    Disks and NICs are told by their number. Where the VM has others than its spec says (a hot-plugged one, a failover
    pair, disks on several buses), theirs are left as they are.
    """
    new = {k: v for k, v in spec.items() if k != "limits"}
    if whole := _given(limits.vm):
        new["limits"] = whole
    prefixes = {d.device[:2] for d in limits.disks}
    if len(prefixes) <= 1:
        _place(new, "disks", [_given(d.limits) for d in limits.disks])
    if not any(n.get("failover") or n.get("network") == "none" for n in spec.get("nics", ())):
        _place(new, "nics", [_given(n.limits) for n in limits.nics])
    return new


def _place(spec: dict[str, Any], field: str, limits: list[dict[str, int]]) -> None:
    """A spec that names none of them means one with all defaults."""
    parts = [dict(p) for p in spec.get(field, ())] or [{}]
    if len(parts) != len(limits):
        return
    for part, given in zip(parts, limits, strict=True):
        part.pop("limits", None)
        if given:
            part["limits"] = given
    if field in spec or any(parts):
        spec[field] = parts
    if parts == [{}]:
        spec.pop(field, None)


def _given(limits: object) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(limits)
    return {k: v for k, v in plain.items() if v is not None}
