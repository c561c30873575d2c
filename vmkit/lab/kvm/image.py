"""The host image: a Debian root file system with a hypervisor in it, its kernel and its initramfs."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkit.errors import RefusedError, UnsupportedError, VmkitError
from vmkit.lab import cache
from vmkit.lab.kvm.recipe import Recipe, read_recipe
from vmkit.progress import Advanced, Finished, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.longrun import contained, run_long
from vmkit.system.process import find_program, run
from vmkit.values import Bytes

NEEDS: Final = Bytes.parse("4G")
"""Space on disk while the image is built; it then takes 1 G (measured)."""
_TIMEOUT: Final = 3600.0
_MIRROR: Final = "http://deb.debian.org/debian"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True, slots=True)
class HostImage:
    """Files of a host image. They are never written to: hosts have overlays.

    Attributes:
        key: changes with the recipe.
        disk: root file system, raw and sparse, without a partition table.
        kernel, initrd: Debian's kernel and an initramfs that finds the root on a virtio disk.
        cmdline: kernel command line that every machine made of it needs.
    """

    key: str
    disk: Path
    kernel: Path
    initrd: Path
    cmdline: str = "root=/dev/vda rw console=ttyS0"

    @property
    def name(self) -> str:
        """Its name in the cache."""
        return f"image-{self.key}"


def build_image(reporter: Reporter = silent) -> HostImage:
    """The host image of this version's recipe; built if this machine has none, which takes 1 to 3 minutes.

    Raises:
        RefusedError: not root, where it has to be built; or no space.
        UnsupportedError: not an x86-64 machine, or a program is missing.
        EffectError, DeadlineError: the build failed; nothing is left of it.
    """
    recipe = read_recipe()
    name = f"image-{recipe.key}"
    folder = cache.find(name)
    if folder is None:
        check_builder("the image of nested KVM hosts")
        folder = cache.make(name, NEEDS, lambda half: _build(recipe, half, reporter))
    return HostImage(recipe.key, folder / "disk.raw", folder / "kernel", folder / "initrd")


def check_builder(what: str) -> None:
    """See that this machine and user can make a Debian tree.

    Raises:
        UnsupportedError, RefusedError: they cannot.
    """
    if platform.machine() != "x86_64":
        raise UnsupportedError(f"{what} is built on x86-64 only, not on {platform.machine()}")
    find_program("mmdebstrap", package="mmdebstrap")
    find_program("mke2fs", package="e2fsprogs")
    if os.geteuid() != 0:
        raise RefusedError(
            f"{what} is not there yet, and only root can build it", hint="build it once: sudo vmkit lab image build kvm"
        )


def debootstrap(
    suite: str, packages: tuple[str, ...], target: Path, options: list[str], log: Path, reporter: Reporter, step: str
) -> None:
    """Make a Debian tree with mmdebstrap(1), contained so that nothing is left of it if this process dies.

    Raises:
        EffectError: it failed, with the end of its output.
    """
    argv = ["mmdebstrap", "--mode=root", "--format=directory", f"--include={','.join(packages)}", *options]
    argv += ['--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Retries "3"']
    if KEYRING.exists():
        argv += [f"--keyring={KEYRING}"]
    argv += [suite, str(target), mirror()]
    reporter(Started(step, f"Debian {suite}, {len(packages)} packages"))

    def advance(seconds: float, line: str) -> None:
        reporter(Advanced(step, seconds, None, line.removeprefix("I: ")[:60]))

    run_long(contained(argv), log=log, advance=advance, timeout=_TIMEOUT, env={"TMPDIR": str(log.parent)})


def mirror() -> str:
    """The Debian mirror that apt uses on this machine; the public one where it uses none."""
    try:
        listed = run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"])
    except VmkitError:
        return _MIRROR
    for line in listed.stdout.splitlines():
        match = re.match(r"Debian Debian ((?:https?|copy|file):\S+)\Z", line)
        if match:
            return match[1]
    return _MIRROR


def _build(recipe: Recipe, folder: Path, reporter: Reporter) -> None:
    """Make tree, disk, kernel and initramfs in an empty folder; the tree is removed at the end."""
    seconds = stopwatch()
    tree, early, late = folder / "tree", folder / "early", folder / "late"
    _lay_out(early, recipe.early)
    _lay_out(late, recipe.files)
    _lay_out(late, recipe.programs, mode=0o755)
    (folder / "finish").write_text(_finish(recipe))
    options = [
        "--variant=minbase",
        f"--essential-hook=copy-in {' '.join(str(p) for p in sorted(early.iterdir()))} /",
        f"--customize-hook=copy-in {' '.join(str(p) for p in sorted(late.iterdir()))} /",
        f'--customize-hook=sh {folder / "finish"} "$1"',
    ]
    debootstrap(recipe.suite, recipe.packages, tree, options, folder / "log", reporter, "host image")
    for name, pattern in (("kernel", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        shutil.copyfile(next((tree / "boot").glob(pattern)), folder / name)
    disk = folder / "disk.raw"
    with disk.open("wb") as f:
        f.truncate(recipe.size)
    # No journal: hosts write to overlays that are thrown away.
    features = ["-O", "^has_journal", "-E", "lazy_itable_init=1"]
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "vmkit-host", *features, "-d", str(tree), str(disk)]
    run_long(
        argv, log=folder / "log", advance=lambda s, _: reporter(Advanced("host image", s, None, "disk")), timeout=900
    )
    for path in (tree, early, late):
        shutil.rmtree(path)
    for name in ("log", "finish"):
        (folder / name).unlink()
    for name in ("disk.raw", "kernel", "initrd"):
        (folder / name).chmod(0o644)
    folder.chmod(0o755)
    reporter(Finished("host image", seconds(), f"Debian {recipe.suite}"))


def _lay_out(folder: Path, files: dict[str, str], mode: int = 0o644) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)


def _finish(recipe: Recipe) -> str:
    """Shell script for the end: folders, links, units, and what every machine makes for itself. $1 is the tree."""
    lines = ["set -e", 'cd "$1"']
    lines += [f"mkdir -p {path}" for path in recipe.folders]
    lines += [f"mkdir -p {Path(path).parent} && ln -sf {target} {path}" for path, target in recipe.links.items()]
    lines += [f'chroot "$1" systemctl -q enable {" ".join(recipe.enable)}']
    lines += [f'chroot "$1" systemctl -q mask {" ".join(recipe.mask)}']
    # Units that are to run once after an update need not: nothing is updated.
    lines += ["touch etc/.updated var/.updated"]
    lines += [f"rm -f {pattern}" for pattern in recipe.remove]
    lines += [
        "rm -rf var/cache/apt/*.bin var/lib/apt/lists/* var/log/*.log var/log/apt",
        "chmod 0711 var/lib/vmkit/pool",
    ]
    return "\n".join(lines) + "\n"
