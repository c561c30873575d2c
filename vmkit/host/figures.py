"""What rival techniques of virtualisation cost: published and measured figures, each with its source."""

from __future__ import annotations

from typing import Final

from vmkit.host.finding import Figure

_CLASSIC: Final = "classic textbook figure"

EMULATION: Final = Figure(
    "guests run on the emulator (TCG): one took 90 s where KVM took 8 to 11 s; binary translation loses 50-60 %",
    f"measured on a nested host, 192 MB guest from start to power-off; the loss is a {_CLASSIC}",
)
NESTED: Final = Figure(
    "EPT and NPT reach 95-98 % of native speed; shadow page tables 65 % (64-bit), binary translation 40-50 %",
    _CLASSIC,
)
SHADOW: Final = Figure(
    "shadow page tables reach 65 % of native speed (64-bit; 84 % with 32-bit), EPT and NPT 95-98 %; "
    "work that is heavy on the MMU gains up to 48 % with EPT",
    f"{_CLASSIC}; VMware, 'Performance Evaluation of Intel EPT Hardware Assist', 2009",
)
VHOST: Final = Figure("virtio-net moved 175 MB/s without vhost and 580 MB/s with it", _CLASSIC)
HUGE_PAGES: Final = Figure(
    "large pages gain 3-22 % under nested paging",
    "Bhargava et al., 'Accelerating Two-Dimensional Page Walks for Virtualized Systems', ASPLOS 2008",
)
EXITLESS: Final = Figure(
    "interrupts without exits lift assigned devices to 97-100 % of native",
    "Gordon et al., 'ELI: Bare-Metal Performance for I/O Virtualization', ASPLOS 2012",
)
SRIOV: Final = Figure(
    "virtual functions carried 9.48 Gb/s of a 10 Gb/s port over 60 VMs",
    "Dong et al., 'High Performance Network Virtualization with SR-IOV', HPCA 2010",
)
DEVICES: Final = Figure(
    "emulated devices are slow, as each register access leaves the guest; virtio is fast, assigned devices fastest",
    _CLASSIC,
)
PV_LOCKS: Final = Figure(
    "where vCPUs share CPUs, preemptable ticket locks gained 5.3x, and with para-virtual ones 7.9x",
    "Ouyang and Lange, 'Preemptable Ticket Spinlocks', VEE 2013",
)
