"""The builder of the image `debian`: a Debian with cloud-init, guest agent, ssh and a log-in on the serial console.

The kernel is Debian's cloud kernel, booted directly: no firmware, no boot loader, no partition table. It belongs to the
image and not to the packages in it, so a newer one comes with a new build. The initramfs is our own, with what brings
up a disk and no more, since one of initramfs-tools takes seconds longer under emulation.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from vmkit.errors import EffectError, RefusedError, SpecError
from vmkit.image import cpio, micro, packages, store
from vmkit.image.bzimage import uncompressed
from vmkit.image.manifest import Image, ImageKind
from vmkit.image.modules import load_order, module_name, parse_dependencies, unpacked, unsigned
from vmkit.image.recipe import Recipe, parse_recipe
from vmkit.image.tree import check_builder, file_system, grow, sources
from vmkit.progress import Finished, Reporter, silent
from vmkit.system.clock import stopwatch
from vmkit.system.files import free_space
from vmkit.system.process import find_program, run
from vmkit.system.templates import template
from vmkit.values import Bytes

SUITES: Final = {"13": "trixie", "12": "bookworm"}
"""Releases that can be built, the newest first."""
MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_net", "ext4")
"""Loaded in the initramfs. The network card too: then it is there before the network is set up."""
DISK_DRIVERS: Final = ("virtio_scsi", "sd_mod", "ahci", "nvme")
"""The same, as far as the kernel has them."""
LABEL: Final = "vmkit-root"
MARKER: Final = " login:"
"""What agetty(8) writes when the system is up; units that log-ins wait for are then through."""
CMDLINE: Final = (
    f"root=LABEL={LABEL} rw console=tty0 console=ttyS0 quiet net.ifnames=0 random.trust_cpu=on tsc=reliable "
    "no_timer_check cryptomgr.notests "
    "systemd.tty.term.console=dumb systemd.tty.rows.ttyS0=24 systemd.tty.columns.ttyS0=80"
)
"""As of the micro guest (see there); but the guest keeps the mitigations of CPU faults, since others may log in.
systemd.tty: systemd 257 asks the terminal for its size, which nobody answers, and clears the screen."""
MIN_MEMORY: Final = Bytes.parse("256M")
NEEDS: Final = Bytes.parse("3G")
"""Space on disk while the image is built."""
USER: Final = "debian"


def image_name(release: str) -> str:
    """What the image of a release ('13') is called unless asked otherwise."""
    return f"debian-{release}"


def build(release: str = "13", name: str | None = None, *, force: bool = False, reporter: Reporter = silent) -> Image:
    """Build the image; see `vmkit.image.api.Images.build_debian`."""
    if release not in SUITES:
        raise SpecError(f"{release!r} is not one of {', '.join(SUITES)}", path="release")
    name = name or image_name(release)
    check_builder(f"the image {name}", f"vmkit image build debian --release {release}")
    for program, package in (("depmod", "kmod"), ("qemu-img", "qemu-utils")):
        find_program(program, package=package)
    recipe = read_recipe(SUITES[release])
    seconds = stopwatch()
    with store.making(name, force=force) as (folder, commit):
        if (free := free_space(folder)) < NEEDS:
            raise RefusedError(
                f"the image {name} needs {NEEDS} in {folder.parent} while it is built, and {Bytes(free)} are free",
                hint="free some, or set VMKIT_HOME to a folder on another disk",
            )
        scratch = folder / "scratch"
        scratch.mkdir()
        step = f"Debian {release}"
        tree = grow(recipe, scratch, reporter, step, last=_last(recipe.suite), sources=sources(recipe.suite))
        version = _kernel(tree, scratch, folder)
        reporter(Finished(step, seconds(), f"packages and kernel {version}"))
        with micro.step(reporter, "disk", f"{recipe.size}, ext4"):
            options = ("-E", "lazy_itable_init=1,lazy_journal_init=1")
            file_system(tree, scratch / "disk.raw", recipe.size, LABEL, *options, log=scratch / "log")
            files = [scratch / "disk.raw", folder / "disk.qcow2"]
            run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *files], timeout=900)
        shutil.rmtree(scratch)
        return commit(
            Image(
                name=name,
                kind=ImageKind.DEBIAN,
                arch="x86_64",
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                source=f"Debian {release} ({recipe.suite}), kernel {version}",
                kernel=store.describe(folder / "kernel"),
                initrd=store.describe(folder / "initrd"),
                disk=store.describe(folder / "disk.qcow2"),
                cmdline=CMDLINE,
                agent=True,
                console_marker=MARKER,
                min_memory=MIN_MEMORY,
                cloud_init=True,
                user=USER,
            )
        )


def read_recipe(suite: str) -> Recipe:
    """What the image of a release is made of.

    Raises:
        NotFoundError, EffectError: this installation's files are missing or damaged.
    """
    folder = template("debian")
    return replace(parse_recipe((folder / "recipe.yaml").read_text(), folder), suite=suite)


def _last(suite: str) -> list[str]:
    """Shell lines in the tree while apt works for it: fetch the kernel, and name the public archive as its source."""
    apt = 'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"'
    depends = f"{apt} apt-cache depends linux-image-cloud-amd64"
    entries = [("debian", f"{suite} {suite}-updates"), ("debian-security", f"{suite}-security")]
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    text = "\\n".join(
        f"Types: deb\\nURIs: http://deb.debian.org/{archive}\\nSuites: {suites}\\n"
        f"Components: main\\nSigned-By: {keys}\\n"
        for archive, suites in entries
    )
    return [
        # Of the packages that came before dpkg was told to leave these out.
        "find usr/share/doc -type f ! -name copyright -delete",
        "rm -rf usr/share/locale/* usr/share/man/*",
        f"kernel=$({depends} | sed -n 's/^ *Depends: //p' | grep '^linux-image-' | head -n 1)",
        'test -n "$kernel"',
        f'(cd .. && {apt} apt-get -q -o APT::Sandbox::User=root download "$kernel")',
        "rm -f etc/apt/sources.list etc/apt/sources.list.d/*",
        f"printf '{text}' >etc/apt/sources.list.d/debian.sources",
    ]


def _kernel(tree: Path, scratch: Path, folder: Path) -> str:
    """Unpack the kernel that was fetched: its modules into the tree, kernel and initramfs into `folder`.

    Returns its version.
    """
    deb = next(scratch.glob("linux-image-*.deb"), None)
    if deb is None:
        raise EffectError("the download of the kernel left no package", hint="see that the mirror answers")
    unpacked_ = scratch / "kernel"
    run(["dpkg-deb", "-x", deb, unpacked_], timeout=600)
    kernel = next((unpacked_ / "boot").glob("vmlinuz-*"))
    modules = next(p for p in (unpacked_ / "usr/lib/modules", unpacked_ / "lib/modules") if p.is_dir())
    release = next(modules.iterdir()).name
    (tree / "usr/lib/modules").mkdir(exist_ok=True)
    (modules / release).rename(tree / "usr/lib/modules" / release)
    run([find_program("depmod", package="kmod"), "-b", tree, release])
    packed = kernel.read_bytes()
    (folder / "kernel").write_bytes(uncompressed(packed) or packed)
    nodes = [*_programs(scratch), *_modules(tree / "usr/lib/modules" / release)]
    (folder / "initrd").write_bytes(cpio.archive(cpio.with_parents(nodes)))
    match = re.match(r"linux-image-[^_]+_([^_]+)_", deb.name)
    return f"{release} ({match[1]})" if match else release


def _programs(scratch: Path) -> Iterator[cpio.Node]:
    root = packages.unpack(["busybox-static"], scratch / "busybox")
    busybox = next(p for p in (root / "bin/busybox", root / "usr/bin/busybox") if p.exists())
    yield cpio.Node.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in ("sh", "mount", "insmod", "findfs", "sleep", "cat", "poweroff", "switch_root"):
        yield cpio.Node.link(f"bin/{applet}", "busybox")
    yield cpio.Node.file("init", (template("debian") / "init").read_bytes(), 0o755)
    # The kernel opens the console for process 1 before anything is mounted.
    yield cpio.Node.character_device("dev/console", 5, 1)
    yield cpio.Node.character_device("dev/null", 1, 3, 0o666)
    yield from (cpio.Node.folder(p) for p in ("proc", "sys", "mnt"))


def _modules(kernel: Path) -> Iterator[cpio.Node]:
    dependencies = parse_dependencies((kernel / "modules.dep").read_text())
    builtin = (kernel / "modules.builtin").read_text().splitlines()
    order = load_order(MODULES, dependencies, builtin, (*DISK_DRIVERS, "crc32c_generic"))
    for path in order:
        content = unsigned(unpacked(path, (kernel / path).read_bytes()))
        yield cpio.Node.file(f"lib/modules/{module_name(path)}.ko", content)
    yield cpio.Node.file("lib/modules/load", "".join(f"/lib/modules/{module_name(p)}.ko\n" for p in order).encode())
