"""The command line of a nested KVM host's QEMU. Pure.

Everything in it that a running machine can see is the same for every host of a lab and for every lab with the same
options: so a machine that was saved once, right after its boot, can be loaded as any of them. What differs is what the
machine cannot see: paths, ports, and who is at the other end of a wire. Beside what every nested host has
(vmkit.lab.nested.hardware):

    pf0    igb     SR-IOV card behind a root port, at 0000:01:00.0  -.
    wire0  virtio  sees all that pf0 and its functions send           +- on one hub
    -              user-mode network 10.9.0.0/24, 10.9.0.2 answers pings  -'
"""

from __future__ import annotations

from typing import Final

from vmkit.lab.kvm.options import KvmOptions
from vmkit.lab.nested import hardware
from vmkit.lab.nested.hardware import Engine, Files

MAC_PF: Final = "52:54:00:6c:61:10"
MAC_WIRE: Final = "52:54:00:6c:61:11"
"""Of the cards that only a KVM host has; templates/lab-kvm/recipe.yaml gives the interfaces their names by them."""

CMDLINE: Final = (
    "quiet mitigations=off tsc=reliable no_timer_check cryptomgr.notests random.trust_cpu=on audit=0 panic=5"
)
"""The self-tests of the ciphers and the calibration of the timers take seconds under TCG."""
SOUND_SMP: Final = (8, 1)
"""Before this version of QEMU, TCG with a thread for each vCPU now and then runs guest code that another vCPU has
just patched, and Linux, which patches itself each time KVM gets its first guest, ends with 'Oops: int3' (Red Hat's
bug 2216496; seen here with 7.2 after 25 minutes). One thread for all vCPUs is sound, but starves emulated guests."""


def command(name: str, engine: Engine, options: KvmOptions, files: Files, base: str) -> list[str]:
    """Program and arguments.

    Args:
        name: of the host, for those who look at processes.
        engine: what runs it.
        options: its hardware.
        files: what is its own.
        base: kernel command line of the image.
    """
    argv = hardware.head(name, engine)
    argv += ["-machine", _machine(engine, options), *_cpu(engine), "-smp", f"{vcpus(engine, options)}"]
    argv += ["-m", f"{options.memory // 2**20}M", "-rtc", "base=utc,clock=host"]
    argv += ["-kernel", str(files.kernel), "-initrd", str(files.initrd)]
    argv += ["-append", " ".join([base, CMDLINE, *(["intel_iommu=on"] if options.iommu else [])])]
    if options.iommu:
        argv += ["-device", "intel-iommu,intremap=on"]  # comes before the devices that it is to govern
    argv += [*hardware.disks(files, ("0x5", "0x6")), *hardware.wires(files)]
    if options.sriov:
        argv += _sriov()
    return [*argv, *hardware.ports(files)]


def sound_smp(engine: Engine) -> bool:
    """Whether a host may have several vCPUs; see SOUND_SMP."""
    return engine.accel == "kvm" or engine.version >= SOUND_SMP


def vcpus(engine: Engine, options: KvmOptions) -> int:
    """How many virtual CPUs a host gets."""
    return options.vcpus or (2 if sound_smp(engine) else 1)


def _machine(engine: Engine, options: KvmOptions) -> str:
    # Interrupt remapping under KVM wants the interrupt controllers split (docs of QEMU's intel-iommu).
    return "q35,kernel-irqchip=split" if options.iommu and engine.accel == "kvm" else "q35"


def _cpu(engine: Engine) -> list[str]:
    if engine.accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    # TCG emulates SVM with nested paging; it has no VMX.
    return ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "EPYC,+svm,+npt"]


def _sriov() -> list[str]:
    return [
        *("-device", "pcie-root-port,id=rp0,chassis=1,slot=1,addr=0x10"),
        *("-netdev", "hubport,id=pf,hubid=1"),
        *("-device", f"igb,bus=rp0,netdev=pf,mac={MAC_PF},romfile="),
        *("-netdev", "hubport,id=wire,hubid=1"),
        *("-device", f"virtio-net-pci,netdev=wire,mac={MAC_WIRE},addr=0x11,romfile="),
        *("-netdev", "user,id=outside,net=10.9.0.0/24,ipv6=off", "-netdev", "hubport,id=out,hubid=1,netdev=outside"),
    ]
