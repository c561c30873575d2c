"""What `vmkit.lab.kinds.Kind` asks of a kind, for nested Xen hosts."""

from __future__ import annotations

from vmkit.lab.nested.flavour import Flavour
from vmkit.lab.nested.kind import NestedKind
from vmkit.lab.xen.options import XenOptions


def _flavour() -> Flavour:
    from vmkit.lab.xen.flavour import FLAVOUR

    return FLAVOUR


KIND = NestedKind(XenOptions, _flavour)
