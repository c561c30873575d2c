"""The display: a screen of the VM's own, for what does not show on a serial console. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmkit.errors import UnsupportedError
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.spec_parts import DisplayKind

if TYPE_CHECKING:
    from vmkit.vm.facts import HostFacts
    from vmkit.vm.spec import VmSpec


def display(spec: VmSpec, facts: HostFacts, why: Reasons) -> str | None:
    """'vnc', 'spice', or None for a VM without a screen.

    Raises:
        UnsupportedError: the host's QEMU was built without that.
    """
    wanted = spec.display.value
    if spec.display is DisplayKind.NONE:
        return None
    if facts.graphics is not None and wanted not in facts.graphics:
        others = sorted(facts.graphics & {"vnc", "spice"})
        raise UnsupportedError(
            f"display: QEMU on {facts.uri} has no {wanted.upper()}",
            hint=f"ask for {' or '.join(others)}, or install its module (Debian: qemu-system-modules-spice)"
            if others
            else "take display: none, and vmkit console",
        )
    why.chose("display", wanted, f"{ASKED}: it listens on 127.0.0.1 of the host, and no password is set")
    return wanted
