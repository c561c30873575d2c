"""The command line of a nested host's QEMU. Pure.

Everything in it that a running machine can see is the same for every host of a lab and for every lab with the same
options: so a machine that was saved once, right after its boot, can be loaded as any of them. What differs is what the
machine cannot see: paths, ports, and who is at the other end of a wire.

    mgmt   virtio  user-mode network; the machine's loopback leads to port 22 of it
    lab0,  virtio  wires to the host before and the host after, both in the bridge br0; a chain, so there is no loop
    lab1
    pf0    igb     SR-IOV card behind a root port, at 0000:01:00.0  -.
    wire0  virtio  sees all that pf0 and its functions send           +- on one hub
    -              user-mode network 10.9.0.0/24, 10.9.0.2 answers pings  -'
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkit.lab.kvm.options import KvmOptions

MAC_MGMT: Final = "52:54:00:6c:61:01"
MAC_LAB: Final = ("52:54:00:6c:61:02", "52:54:00:6c:61:03")
MAC_PF: Final = "52:54:00:6c:61:10"
MAC_WIRE: Final = "52:54:00:6c:61:11"
"""Of every host's cards; templates/lab-kvm/recipe.yaml gives the interfaces their names by them."""

CHANNEL: Final = "org.vmkit.lab"
PAYLOAD_SIZE: Final = 2**30
"""Size of the second disk, on which a host gets its identity. Sparse."""
CMDLINE: Final = (
    "quiet mitigations=off tsc=reliable no_timer_check cryptomgr.notests random.trust_cpu=on audit=0 panic=5"
)
"""The self-tests of the ciphers and the calibration of the timers take seconds under TCG."""
SOUND_SMP: Final = (8, 1)
"""Before this version of QEMU, TCG with a thread for each vCPU now and then runs guest code that another vCPU has
just patched, and Linux, which patches itself each time KVM gets its first guest, ends with 'Oops: int3' (Red Hat's
bug 2216496; seen here with 7.2 after 25 minutes). One thread for all vCPUs is sound, but starves emulated guests."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs the host.

    Attributes:
        binary: QEMU.
        version: as QEMU gives it: (10, 0, 2).
        accel: 'kvm' or 'tcg'.
        libraries: folder with libraries of its own, or None.
    """

    binary: Path
    version: tuple[int, ...]
    accel: str
    libraries: Path | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """What differs from host to host.

    Attributes:
        folder: of the host: its sockets, its log.
        disk: its overlay.
        kernel, initrd: to boot.
        payload: its second disk.
        share: folder that the hosts of a lab have in common.
        port: of this machine's loopback, for ssh.
        left: socket to which the host before this one listens; None for the first.
    """

    folder: Path
    disk: Path
    kernel: Path
    initrd: Path
    payload: Path
    share: Path
    port: int
    left: Path | None = None

    @property
    def right(self) -> Path:
        """Socket on which the host after this one finds it."""
        return self.folder / "right"

    @property
    def monitor(self) -> Path:
        """Socket of QEMU's monitor."""
        return self.folder / "qmp"

    @property
    def channel(self) -> Path:
        """Socket that leads to /dev/virtio-ports/org.vmkit.lab in the host."""
        return self.folder / "channel"

    @property
    def console(self) -> Path:
        """What the host's kernel and init say."""
        return self.folder / "console.log"


_NO = Path("/")
ANYWHERE: Final = Files(_NO, _NO, _NO, _NO, _NO, _NO, 0)
"""Files for a command line that is only compared."""


def command(name: str, engine: Engine, options: KvmOptions, files: Files, base: str) -> list[str]:
    """Program and arguments.

    Args:
        name: of the host, for those who look at processes.
        engine: what runs it.
        options: its hardware.
        files: what is its own.
        base: kernel command line of the image.
    """
    argv = [str(engine.binary), "-name", f"guest={name}"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-machine", _machine(engine, options), *_cpu(engine), "-smp", f"{vcpus(engine, options)}"]
    argv += ["-m", f"{options.memory // 2**20}M", "-rtc", "base=utc,clock=host"]
    argv += ["-kernel", str(files.kernel), "-initrd", str(files.initrd)]
    argv += ["-append", " ".join([base, CMDLINE, *(["intel_iommu=on"] if options.iommu else [])])]
    if options.iommu:
        argv += ["-device", "intel-iommu,intremap=on"]  # comes before the devices that it is to govern
    argv += [*_disks(files), *_wires(files)]
    if options.sriov:
        argv += _sriov()
    argv += ["-device", "virtio-rng-pci,addr=0x8", "-device", "vmgenid,guid=auto"]
    argv += ["-device", "virtio-serial-pci,id=ports,addr=0x9"]
    argv += ["-chardev", f"socket,id=channel,path={files.channel},server=on,wait=off"]
    argv += ["-device", f"virtserialport,bus=ports.0,nr=1,chardev=channel,name={CHANNEL}"]
    argv += ["-chardev", f"file,id=console,path={files.console},append=on", "-serial", "chardev:console"]
    argv += ["-chardev", f"socket,id=monitor,path={files.monitor},server=on,wait=off", "-mon", "monitor,mode=control"]
    return argv


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


def _disks(files: Files) -> list[str]:
    return [
        *("-drive", f"if=none,id=root,file={files.disk},format=qcow2,cache=unsafe,discard=unmap"),
        *("-device", "virtio-blk-pci,drive=root,addr=0x5"),
        *("-drive", f"if=none,id=payload,file={files.payload},format=raw,cache=writeback,read-only=on"),
        *("-device", "virtio-blk-pci,drive=payload,addr=0x6"),
        # Mounted by the labs of several hosts only: QEMU refuses to save a machine that has it mounted.
        *("-fsdev", f"local,id=pool,path={files.share},security_model=none,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=pool,mount_tag=pool,addr=0x7"),
    ]


def _wires(files: Files) -> list[str]:
    argv = ["-netdev", f"user,id=mgmt,ipv6=off,hostfwd=tcp:127.0.0.1:{files.port}-:22"]
    argv += ["-device", f"virtio-net-pci,netdev=mgmt,mac={MAC_MGMT},addr=0x2,romfile="]
    # The end of the chain listens too, for nobody: what is sent there is dropped. (In a hub without a second port it
    # would be kept, and the queue would stall.)
    left = f"server=off,addr.type=unix,addr.path={files.left}" if files.left else _listening(files.folder / "left")
    right = _listening(files.right)
    for name, end, mac, slot in (("left", left, MAC_LAB[0], "0x3"), ("right", right, MAC_LAB[1], "0x4")):
        argv += ["-netdev", f"stream,id={name},{end}"]
        argv += ["-device", f"virtio-net-pci,netdev={name},mac={mac},addr={slot},romfile="]
    return argv


def _listening(path: Path) -> str:
    return f"server=on,addr.type=unix,addr.path={path}"


def _sriov() -> list[str]:
    return [
        *("-device", "pcie-root-port,id=rp0,chassis=1,slot=1,addr=0x10"),
        *("-netdev", "hubport,id=pf,hubid=1"),
        *("-device", f"igb,bus=rp0,netdev=pf,mac={MAC_PF},romfile="),
        *("-netdev", "hubport,id=wire,hubid=1"),
        *("-device", f"virtio-net-pci,netdev=wire,mac={MAC_WIRE},addr=0x11,romfile="),
        *("-netdev", "user,id=outside,net=10.9.0.0/24,ipv6=off", "-netdev", "hubport,id=out,hubid=1,netdev=outside"),
    ]


def key_text(engine: Engine, options: KvmOptions, image: str, cpu: str) -> str:
    """All that a saved machine depends on, as text.

    Args:
        engine: what ran it; its path does not matter, its version does.
        options: its hardware; huge pages and the paging mode are set after it is loaded.
        image: key of the host image.
        cpu: this machine's CPU and QEMU build, where they can be seen by the machine.
    """
    words = command("", engine, options, ANYWHERE, "")[1:]
    return "\n".join([*words, *map(str, engine.version), image, cpu])
