"""The builder of the micro guest: a kernel of Debian's, and an initramfs made for trying things on it.

What the guest does is in templates/micro: `init` is its first process, `guest.c` its resident program. Debian's cloud
kernel has drivers for virtio alone, and boots quickest; the generic one has those for emulated and for real devices.
"""

from __future__ import annotations

import enum
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from vmkit.errors import UnsupportedError
from vmkit.image import cpio, packages, store
from vmkit.image.bzimage import uncompressed
from vmkit.image.manifest import Image, ImageKind
from vmkit.image.modules import drivers, load_order, module_name, parse_dependencies, unpacked, unsigned
from vmkit.progress import Finished, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.process import find_program, run
from vmkit.system.templates import template
from vmkit.values import Bytes


class Kernel(enum.Enum):
    """Which of Debian's kernels; the value is the name on the command line."""

    CLOUD = "cloud"
    GENERIC = "generic"

    @property
    def package(self) -> str:
        """The package that depends on the newest one of its kind."""
        return "linux-image-cloud-amd64" if self is Kernel.CLOUD else "linux-image-amd64"

    @property
    def image(self) -> str:
        """What the micro image with it is called unless asked otherwise."""
        return "micro" if self is Kernel.CLOUD else "micro-generic"

    @property
    def min_memory(self) -> Bytes:
        """Memory below which the guest does not boot, rounded up (measured with QEMU 10.0 and kernel 6.1)."""
        return Bytes.parse("96M" if self is Kernel.CLOUD else "128M")


MODULES: Final = ("virtio_pci", "virtio_net", "virtio_blk", "virtio_console", "virtio_rng", "button", "evdev")
NETWORK_DRIVERS: Final = ("e1000", "e1000e", "igb", "igbvf", "ixgbevf", "iavf", "8139cp")
DISK_DRIVERS: Final = ("ahci", "ata_piix", "nvme")
"""Loaded before the network is set up if the guest has such a device, and afterwards if it has none, since one may be
plugged in. As far as the kernel has them: Debian's cloud kernel has no e1000 and no ahci."""
LATE_MODULES: Final = ("virtio_balloon", "virtio_scsi", "sd_mod", "crc32c_generic", "ext4", "8021q", "net_failover")
"""Loaded after the guest is ready, as far as they are not built into the kernel."""

XEN_MODULES: Final = ("xen_netfront", "xen_blkfront")
"""Loaded where Xen runs the guest, before the network is set up, as far as the kernel has them."""

COMMANDS: Final = ("counter", "dirty", "edu-id", "load-drivers", "load-modules", "renew")
AGENT: Final = "usr/sbin/qemu-ga"
MARKER: Final = "vmkit-micro: ready"
CMDLINE: Final = (
    "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 random.trust_cpu=on tsc=reliable no_timer_check "
    "cryptomgr.notests"
)
"""quiet: every line on the serial port costs milliseconds. panic=-1: reboot at once, which QEMU and libvirt see.
tsc and timer: their calibration and checks cost time, and fail now and then on a loaded machine under TCG.
cryptomgr.notests: the self-tests of the ciphers take 0.25 s under TCG (measured)."""

DISK_SIZE: Final = Bytes.parse("64M")


@dataclass(frozen=True, slots=True)
class Content:
    """What an image holds beside the guest: a tree for its disk, the disk's size, an archive in the image's folder."""

    tree: Path
    size: Bytes
    archive: Path


Fill = Callable[[Path, Path], Content]
"""Makes the content, in the image's folder (first argument) and in a scratch folder (second)."""


def build(
    name: str | None = None,
    *,
    kernel: Kernel = Kernel.CLOUD,
    fill: Fill | None = None,
    more_drivers: tuple[str, ...] = (),
    min_memory: Bytes | None = None,
    force: bool = False,
    reporter: Reporter = silent,
) -> Image:
    """Build the image; see `vmkit.image.api.Images.build_micro`.

    `fill` puts something onto its disk. `more_drivers` are of cards that the guest has when it boots, too large to be
    loaded by one that has none of them.
    """
    if platform.machine() != "x86_64":
        raise UnsupportedError(
            f"the micro image is built on x86-64 only, not on {platform.machine()}",
            hint="build it there, and bring it here: vmkit image export, vmkit image import",
        )
    compiler = find_program("gcc", package="gcc libc6-dev")
    for program, package in (("depmod", "kmod"), ("mke2fs", "e2fsprogs"), ("qemu-img", "qemu-utils")):
        find_program(program, package=package)
    name = name or kernel.image
    with store.making(name, force=force) as (folder, commit):
        scratch = folder / "scratch"
        scratch.mkdir()
        with step(reporter, "packages", "Debian kernel, busybox and guest agent"):
            kernel_package = _kernel_package(kernel)
            version = packages.field(kernel_package, "Version")
            tree = packages.unpack([kernel_package, "busybox-static", "qemu-guest-agent"], scratch)
            libraries = packages.libraries(tree / AGENT, "qemu-guest-agent", scratch)
        with step(reporter, "initramfs", "modules, agent and guest program"):
            guest = _compile(compiler, scratch)
            nodes = [*_programs(tree, guest, libraries), *_modules(tree, more_drivers), *_templates()]
            # Not compressed: under TCG unpacking zstd or gzip takes 0.2 s (measured), loading 10 MB takes none.
            (folder / "initrd").write_bytes(cpio.archive(cpio.with_parents(nodes)))
            packed = next((tree / "boot").glob("vmlinuz-*")).read_bytes()
            # Debian packs the generic kernel with xz: unpacked here, it boots 4 s sooner under TCG (measured).
            (folder / "kernel").write_bytes(uncompressed(packed) or packed)
        content = fill(folder, scratch) if fill else None
        size = content.size if content else DISK_SIZE
        with step(reporter, "disk", f"{size}, ext4"):
            _make_disk(scratch / "disk.raw", size, content.tree if content else None, folder / "disk.qcow2")
        return commit(
            Image(
                name=name,
                kind=ImageKind.MICRO,
                arch="x86_64",
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                source=f"Debian {kernel_package} {version}",
                kernel=store.describe(folder / "kernel"),
                initrd=store.describe(folder / "initrd"),
                disk=store.describe(folder / "disk.qcow2"),
                cmdline=CMDLINE,
                agent=True,
                console_marker=MARKER,
                min_memory=min_memory or kernel.min_memory,
                programs=store.describe(content.archive) if content else None,
            )
        )


@contextmanager
def step(reporter: Reporter, name: str, text: str) -> Iterator[None]:
    """Tell of the block as one step of the work."""
    reporter(Started(name, text))
    seconds = stopwatch()
    yield
    reporter(Finished(name, seconds(), text))


def _kernel_package(kernel: Kernel) -> str:
    """The package with the files, on which the one with the stable name depends."""
    depends = packages.dependencies(packages.field(kernel.package, "Depends"))
    for name in depends:
        if name.startswith("linux-image-"):
            return name
    raise UnsupportedError(f"apt's {kernel.package} names no kernel", hint="apt-get update")


def _compile(compiler: Path, scratch: Path) -> bytes:
    program = scratch / "vmkit-guest"
    flags = ["-O2", "-Wall", "-static", "-pthread", "-s"]
    run([compiler, *flags, "-o", program, template("micro/guest.c")], timeout=300)
    return program.read_bytes()


def _programs(tree: Path, guest: bytes, libraries: list[Path]) -> Iterator[cpio.Node]:
    busybox = next(p for p in (tree / "bin/busybox", tree / "usr/bin/busybox") if p.exists())
    yield cpio.Node.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in run([busybox, "--list"]).stdout.split():
        if applet != "busybox" and "/" not in applet:
            yield cpio.Node.link(f"bin/{applet}", "busybox")
    yield cpio.Node.file("bin/vmkit-guest", guest, 0o755)
    for command in COMMANDS:
        yield cpio.Node.link(f"bin/{command}", "vmkit-guest")
    yield cpio.Node.file(AGENT, (tree / AGENT).read_bytes(), 0o755)
    for library in libraries:
        # Programs name the dynamic linker by its path; the rest is in a folder that Debian's glibc searches.
        folder = "lib64" if library.name.startswith("ld-linux") else "lib/x86_64-linux-gnu"
        yield cpio.Node.file(f"{folder}/{library.name}", library.read_bytes(), 0o755)


def _modules(tree: Path, more: tuple[str, ...] = ()) -> Iterator[cpio.Node]:
    folder = next(p for p in (tree / "lib/modules", tree / "usr/lib/modules") if p.is_dir())
    kernel = next(folder.iterdir())
    # The package leaves modules.dep to be made when it is installed.
    run([find_program("depmod", package="kmod"), "-b", folder.parent.parent, kernel.name])
    dependencies = parse_dependencies((kernel / "modules.dep").read_text())
    builtin = (kernel / "modules.builtin").read_text().splitlines()
    order = load_order(MODULES, dependencies, builtin)
    by_need = {d: load_order((), dependencies, builtin, (d,)) for d in (*NETWORK_DRIVERS, *DISK_DRIVERS, *more)}
    # A disk behind a SATA controller is one of the SCSI layer.
    disk = load_order((), dependencies, builtin, ("sd_mod",))
    by_need |= {d: [*by_need[d], *disk] for d in ("ahci", "ata_piix") if by_need[d]}
    late = load_order((), dependencies, builtin, (*LATE_MODULES, *NETWORK_DRIVERS, *DISK_DRIVERS))
    late = [p for p in late if p not in order]
    on_demand = dict.fromkeys(p for d in more for p in by_need[d] if p not in order + late)
    xen = [p for p in load_order((), dependencies, builtin, XEN_MODULES) if p not in order]
    for path in dict.fromkeys((*order, *late, *on_demand, *xen)):
        content = unsigned(unpacked(path, (kernel / path).read_bytes()))
        yield cpio.Node.file(_module_file(path), content)
    for name, paths in (("load", order), ("load-late", late), ("xen", xen)):
        listing = "".join(f"/{_module_file(p)}\n" for p in paths)
        yield cpio.Node.file(f"lib/modules/{name}", listing.encode())
    aliases = (kernel / "modules.alias").read_text()
    table = [
        f"{pattern} {' '.join(f'/{_module_file(p)}' for p in by_need[driver] if p not in order)}\n"
        for pattern, driver in drivers(by_need, aliases, dependencies)
    ]
    yield cpio.Node.file("lib/modules/drivers", "".join(table).encode())


def _module_file(path: str) -> str:
    return f"lib/modules/{module_name(path)}.ko"


def _templates() -> Iterator[cpio.Node]:
    folder = template("micro")
    for name, path in (
        ("init", "init"),
        ("udhcpc", "etc/udhcpc"),
        ("shutdown", "sbin/shutdown"),
        ("lspci", "bin/lspci"),
    ):
        yield cpio.Node.file(path, (folder / name).read_bytes(), 0o755)
    for name in ("poweroff", "reboot"):  # what the kernel runs when Xen asks for it (kernel/reboot.c)
        yield cpio.Node.link(f"sbin/{name}", "/bin/busybox")
    yield cpio.Node.file("etc/profile", (folder / "profile").read_bytes())
    yield cpio.Node.file("etc/passwd", b"root::0:0:root:/:/bin/sh\n")
    yield cpio.Node.file("etc/group", b"root:x:0:\n")
    yield cpio.Node.file(
        "etc/os-release", b'ID=vmkit-micro\nNAME="vmkit micro guest"\nPRETTY_NAME="vmkit micro guest"\n'
    )
    # The kernel opens the console for process 1 before anything is mounted.
    yield cpio.Node.character_device("dev/console", 5, 1)
    yield cpio.Node.character_device("dev/null", 1, 3, 0o666)
    yield from (cpio.Node.folder(p) for p in ("proc", "sys", "run", "mnt", "root"))
    yield cpio.Node.folder("tmp", 0o1777)
    yield cpio.Node.link("var", "run")


def _make_disk(raw: Path, size: Bytes, content: Path | None, qcow2: Path) -> None:
    with raw.open("wb") as f:
        f.truncate(size)
    filled: list[str | Path] = ["-d", content] if content else []
    run([find_program("mke2fs", package="e2fsprogs"), "-q", "-t", "ext4", "-L", "vmkit-data", *filled, "-F", raw])
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2])
