"""The command line of a nested Xen host's QEMU. Pure.

As with every nested host, what a running machine can see of it is the same for all hosts of the same options, so that
one saved machine can be loaded as any of them. QEMU boots Xen by multiboot, with dom0's kernel and initramfs as modules
(docs of QEMU, `-initrd "file1 arg=foo,file2"`).
"""

from __future__ import annotations

from typing import Final

from vmkit.lab.nested import hardware
from vmkit.lab.nested.hardware import Engine, Files
from vmkit.lab.xen.options import XenOptions
from vmkit.values import Bytes

DOM0_MEMORY: Final = Bytes.parse("1280M")
XEN: Final = (
    f"dom0_mem={DOM0_MEMORY // 2**20}M,max:{DOM0_MEMORY // 2**20}M com1=115200,8n1 console=com1 loglvl=warning "
    "noreboot "  # after a panic: the console then keeps what it said
    # Without it, processes of dom0 crash now and then under TCG: 3 of about 900 in a fork stress, with it 0 of 1,440.
    "spec-ctrl=eager-fpu"
)
"""Xen's command line (https://xenbits.xen.org/docs/4.17-testing/misc/xen-command-line.html)."""
DOM0: Final = "quiet mitigations=off tsc=reliable cryptomgr.notests random.trust_cpu=on audit=0 panic=5"
VCPUS: Final = 1
"""Xen makes its CPUs wait for each other, as for a flush of the TLB. Where the machine is busy and lets one of QEMU's
threads wait, the others only burn what time there is: dom0 then speaks of CPUs that were stuck for minutes (seen)."""
CPU: Final = "EPYC,-smap,-monitor,-rdtscp"
"""With SMAP dom0 faults early, and with MONITOR Xen panics in mwait_idle: neither is what TCG emulates well enough."""


def command(name: str, engine: Engine, options: XenOptions, files: Files, base: str) -> list[str]:
    """Program and arguments.

    Args:
        name: of the host, for those who look at processes.
        engine: what runs it.
        options: its hardware.
        files: what is its own.
        base: kernel command line of the image.
    """
    argv = hardware.head(name, engine)
    argv += ["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU]
    argv += ["-smp", f"{options.vcpus or VCPUS}"]
    argv += ["-m", f"{options.memory // 2**20}M", "-rtc", "base=utc,clock=host"]
    argv += ["-kernel", str(files.hypervisor), "-append", XEN]
    words = f"{base} {DOM0}".replace(",", ",,")
    argv += ["-initrd", f"{files.kernel} {words},{files.initrd}"]
    # The root disk is on AHCI, an ordinary controller that dom0 drives by DMA; virtio would be the lab's alone.
    argv += [*hardware.disks(files, ("ide.0", "0x6")), *hardware.wires(files), *hardware.ports(files)]
    return argv
