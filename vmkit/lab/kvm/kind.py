"""What `vmkit.lab.kinds.Kind` asks of a kind, for nested KVM hosts."""

from __future__ import annotations

from vmkit.lab.kvm.options import KvmOptions
from vmkit.lab.nested.flavour import Flavour
from vmkit.lab.nested.kind import NestedKind


def _flavour() -> Flavour:
    from vmkit.lab.kvm.flavour import FLAVOUR

    return FLAVOUR


KIND = NestedKind(KvmOptions, _flavour)
