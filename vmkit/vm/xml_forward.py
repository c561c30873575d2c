"""NICs with port forwards, as arguments for QEMU. Pure.

libvirt forwards ports of user networks only through passt(1), which many hosts lack and which takes its addresses from
the host's; QEMU's own user network can do it, but libvirt has no element for that (https://libvirt.org/formatdomain.html,
'Userspace connection with SLIRP'). So such a NIC is given to QEMU itself, and vmkit.vm.describe reads it back.
"""

from __future__ import annotations

from typing import Final

from vmkit.vm.describe import FORWARDING
from vmkit.vm.design import Design, NicDesign

_FIRST_SLOT: Final = 0x14
"""Slot of the first one on the root bus: libvirt fills it from below, and QEMU's own devices sit at 0x1b and above."""


def arguments(design: Design) -> list[str]:
    """-netdev and -device of each NIC that forwards ports."""
    bus = "pci.0" if (design.machine or "").removeprefix("pc-").startswith(("pc", "i440fx")) else "pcie.0"
    found: list[str] = []
    for i, nic in enumerate(n for n in design.nics if n.forward):
        name = f"{FORWARDING}{i}"
        rules = "".join(f",hostfwd={f.qemu}" for f in nic.forward)
        device = f"{_model(nic)},netdev={name},mac={nic.mac},bus={bus},addr={_FIRST_SLOT + i:#x}"
        found += ["-netdev", f"user,id={name}{rules}", "-device", device]
    return found


def _model(nic: NicDesign) -> str:
    return "virtio-net-pci" if nic.model == "virtio" else nic.model
