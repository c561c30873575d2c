"""The host image: a Debian root file system with a hypervisor in it, its kernel and its initramfs."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkit.image.recipe import Recipe
from vmkit.image.tree import check_builder, file_system, grow
from vmkit.lab import cache
from vmkit.lab.nested.flavour import Flavour
from vmkit.lab.nested.recipe import read_recipe
from vmkit.progress import Advanced, Finished, Reporter, silent
from vmkit.system.clock import stopwatch
from vmkit.values import Bytes

NEEDS: Final = Bytes.parse("4G")
"""Space on disk while the image is built; it then takes 1 G (measured)."""


@dataclass(frozen=True, slots=True)
class HostImage:
    """Files of a host image. They are never written to: hosts have overlays.

    Attributes:
        key: changes with the recipe.
        disk: root file system, raw and sparse, without a partition table.
        kernel, initrd: Debian's kernel and an initramfs that finds the root.
        cmdline: kernel command line that every machine made of it needs.
        hypervisor: that is booted before the kernel; None where it is a part of that.
    """

    key: str
    disk: Path
    kernel: Path
    initrd: Path
    cmdline: str
    hypervisor: Path | None = None

    @property
    def name(self) -> str:
        """Its name in the cache."""
        return f"image-{self.key}"


def build_image(flavour: Flavour, reporter: Reporter = silent) -> HostImage:
    """The host image of this version's recipe; built if this machine has none, which takes 1 to 3 minutes.

    Raises:
        RefusedError: not root, where it has to be built; or no space.
        UnsupportedError: not an x86-64 machine, or a program is missing.
        EffectError, DeadlineError: the build failed; nothing is left of it.
    """
    recipe = read_recipe(flavour.kind)
    name = f"image-{recipe.key}"
    folder = cache.find(name)
    if folder is None:
        check_builder(f"the image of nested {flavour.title} hosts", f"vmkit lab image build {flavour.kind}")
        folder = cache.make(name, NEEDS, lambda half: _build(flavour, recipe, half, reporter))
    hypervisor = folder / "hypervisor" if "hypervisor" in flavour.boot else None
    return HostImage(recipe.key, folder / "disk.raw", folder / "kernel", folder / "initrd", flavour.cmdline, hypervisor)


def _build(flavour: Flavour, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
    """Make tree, disk, kernel and initramfs in an empty folder; the tree is removed at the end."""
    seconds = stopwatch()
    tree = grow(
        recipe, folder, reporter, "host image", last=["mkdir -p var/lib/vmkit/pool", "chmod 0711 var/lib/vmkit/pool"]
    )
    for name, pattern in flavour.boot.items():
        _copy(next((tree / "boot").glob(pattern)), folder / name)
    reporter(Advanced("host image", seconds(), None, "disk"))
    # No journal: hosts write to overlays that are thrown away.
    options = ("-O", "^has_journal", "-E", "lazy_itable_init=1")
    file_system(tree, folder / "disk.raw", recipe.size, "vmkit-host", *options, log=folder / "log")
    shutil.rmtree(tree)
    (folder / "log").unlink()
    for name in ("disk.raw", *flavour.boot):
        (folder / name).chmod(0o644)
    folder.chmod(0o755)
    reporter(Finished("host image", seconds(), f"Debian {recipe.suite}"))


def _copy(source: Path, target: Path) -> None:
    """Copy a file; one that is called '.gz' is unpacked, since QEMU boots no such hypervisor."""
    with (gzip.open if source.suffix == ".gz" else Path.open)(source, "rb") as f, target.open("wb") as out:
        shutil.copyfileobj(f, out)
