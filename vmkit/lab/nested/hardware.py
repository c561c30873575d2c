"""The parts of a nested host's command line that every kind has: wires, ports, and what runs them. Pure.

mgmt   virtio  user-mode network; the machine's loopback leads to port 22 of it
lab0,  virtio  wires to the host before and the host after, both in the bridge br0; a chain, so there is no loop
lab1
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAC_MGMT: Final = "52:54:00:6c:61:01"
MAC_LAB: Final = ("52:54:00:6c:61:02", "52:54:00:6c:61:03")
"""Of every host's cards; the recipe of the image gives the interfaces their names by them."""
CHANNEL: Final = "org.vmkit.lab"
PAYLOAD_SIZE: Final = 2**30
"""Size of the second disk, on which a host gets its identity. Sparse."""


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
        hypervisor: to boot before the kernel, where it is a program of its own.
    """

    folder: Path
    disk: Path
    kernel: Path
    initrd: Path
    payload: Path
    share: Path
    port: int
    left: Path | None = None
    hypervisor: Path | None = None

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
        """What the host's hypervisor, kernel and init say."""
        return self.folder / "console.log"


_NO = Path("/")
ANYWHERE: Final = Files(_NO, _NO, _NO, _NO, _NO, _NO, 0, hypervisor=_NO)
"""Files for a command line that is only compared."""


def head(name: str, engine: Engine) -> list[str]:
    """Program and first arguments. `name` is the host's, for those who look at processes."""
    return [*(str(engine.binary), "-name", f"guest={name}"), *("-nodefaults", "-no-user-config", "-display", "none")]


def disk(name: str, bus: str) -> list[str]:
    """The device of a drive: on a port of the machine's own AHCI controller ('ide.0'), or virtio at a PCI address."""
    device = f"ide-hd,drive={name},bus={bus}" if bus.startswith("ide.") else f"virtio-blk-pci,drive={name},addr={bus}"
    return ["-device", device]


def disks(files: Files, buses: tuple[str, str]) -> list[str]:
    """The root disk and the payload, on the given buses, and the folder that the hosts share."""
    return [
        *("-drive", f"if=none,id=root,file={files.disk},format=qcow2,cache=unsafe,discard=unmap"),
        *disk("root", buses[0]),
        *("-drive", f"if=none,id=payload,file={files.payload},format=raw,cache=writeback,read-only=on"),
        *disk("payload", buses[1]),
        # Mounted by the labs of several hosts only: QEMU refuses to save a machine that has it mounted.
        *("-fsdev", f"local,id=pool,path={files.share},security_model=none,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=pool,mount_tag=pool,addr=0x7"),
    ]


def wires(files: Files) -> list[str]:
    """The management network and the wires to the neighbours."""
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


def ports(files: Files) -> list[str]:
    """Random numbers, the machine's identity, the channel to its init, its console, and QEMU's monitor."""
    return [
        *("-device", "virtio-rng-pci,addr=0x8", "-device", "vmgenid,guid=auto"),
        *("-device", "virtio-serial-pci,id=ports,addr=0x9"),
        *("-chardev", f"socket,id=channel,path={files.channel},server=on,wait=off"),
        *("-device", f"virtserialport,bus=ports.0,nr=1,chardev=channel,name={CHANNEL}"),
        *("-chardev", f"file,id=console,path={files.console},append=on", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=monitor,path={files.monitor},server=on,wait=off", "-mon", "monitor,mode=control"),
    ]
