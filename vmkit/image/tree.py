"""A Debian root file system made from a recipe with mmdebstrap(1). Root only."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vmkit.errors import RefusedError, UnsupportedError, VmkitError
from vmkit.image.recipe import Recipe
from vmkit.progress import Advanced, Reporter, Started
from vmkit.system.longrun import contained, run_long
from vmkit.system.process import find_program, run

_TIMEOUT: Final = 3600.0
_PUBLIC: Final = "http://deb.debian.org"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def check_builder(what: str, command: str = "vmkit lab image build kvm") -> None:
    """See that this machine and user can make a Debian tree. `command` is what root would run, for the hint.

    Raises:
        UnsupportedError, RefusedError: they cannot.
    """
    if platform.machine() != "x86_64":
        raise UnsupportedError(
            f"{what} is built on x86-64 only, not on {platform.machine()}", hint="take a machine of that kind"
        )
    find_program("mmdebstrap", package="mmdebstrap")
    find_program("mke2fs", package="e2fsprogs")
    if os.geteuid() != 0:
        raise RefusedError(
            f"{what} is not there yet, and only root can build it", hint=f"build it once: sudo {command}"
        )


def grow(
    recipe: Recipe,
    folder: Path,
    reporter: Reporter,
    step: str,
    *,
    last: Sequence[str] = (),
    sources: Sequence[str] = (),
) -> Path:
    """Make the tree of a recipe in a folder that is there; returns it. What else is left there may be removed.

    Args:
        recipe: what it is made of.
        folder: for the tree and what is needed on the way.
        reporter: told of the progress.
        step: name of that step.
        last: shell lines that run at the end, with the tree in $1 and as the working folder. This machine's apt then
            works for the tree, with $MMDEBSTRAP_APT_CONFIG as its APT_CONFIG.
        sources: lines of sources.list(5) that packages come from; empty for the release on the mirror.

    Raises:
        EffectError, DeadlineError: it failed, with the end of the output.
    """
    tree, early, late = folder / "tree", folder / "early", folder / "late"
    _lay_out(early, recipe.early)
    _lay_out(late, recipe.files)
    _lay_out(late, recipe.programs, mode=0o755)
    (folder / "last").write_text("\n".join(["set -e", 'cd "$1"', *last, ""]))
    (folder / "finish").write_text(finish(recipe))
    options = [
        "--variant=minbase",
        f"--essential-hook=copy-in {' '.join(str(p) for p in sorted(early.iterdir()))} /",
        f"--customize-hook=copy-in {' '.join(str(p) for p in sorted(late.iterdir()))} /",
        f'--customize-hook=sh {folder / "last"} "$1"',
        f'--customize-hook=sh {folder / "finish"} "$1"',
    ]
    debootstrap(recipe.suite, recipe.packages, tree, options, folder / "log", reporter, step, sources)
    for path in (early, late):
        shutil.rmtree(path)
    for name in ("last", "finish"):
        (folder / name).unlink()
    return tree


def debootstrap(
    suite: str,
    packages: tuple[str, ...],
    target: Path,
    options: list[str],
    log: Path,
    reporter: Reporter,
    step: str,
    sources: Sequence[str] = (),
) -> None:
    """Make a Debian tree with mmdebstrap(1), contained so that nothing is left of it if this process dies.

    Raises:
        EffectError: it failed, with the end of its output.
    """
    argv = ["mmdebstrap", "--mode=root", "--format=directory", f"--include={','.join(packages)}", *options]
    argv += ['--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Retries "3"']
    if KEYRING.exists():
        argv += [f"--keyring={KEYRING}"]
    argv += [suite, str(target), *(sources or [mirror()])]
    reporter(Started(step, f"Debian {suite}, {len(packages)} packages"))

    def advance(seconds: float, line: str) -> None:
        reporter(Advanced(step, seconds, None, line.removeprefix("I: ")[:60]))

    run_long(contained(argv), log=log, advance=advance, timeout=_TIMEOUT, env={"TMPDIR": str(log.parent)})


def file_system(tree: Path, disk: Path, size: int, label: str, *options: str, log: Path) -> None:
    """Make a sparse raw file with an ext4 file system that holds a tree, without a partition table.

    Raises:
        EffectError: it does not fit, or mke2fs failed.
    """
    with disk.open("wb") as f:
        f.truncate(size)
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", label, *options, "-d", str(tree), str(disk)]
    run_long(argv, log=log, advance=lambda _s, _line: None, timeout=900)


def mirror() -> str:
    """The Debian mirror that apt uses on this machine; the public one where it uses none."""
    return _mirrors().get("Debian", f"{_PUBLIC}/debian")


def sources(suite: str) -> list[str]:
    """Lines of sources.list(5) for a release with its updates and security fixes, from this machine's mirrors.

    A machine whose apt has a mirror of its own and none for security fixes gets the release without them.
    """
    here = _mirrors()
    main = here.get("Debian", f"{_PUBLIC}/debian")
    lines = [f"deb {main} {suite} main", f"deb {main} {suite}-updates main"]
    security = here.get("Debian-Security") or (f"{_PUBLIC}/debian-security" if main.startswith(_PUBLIC) else None)
    return [*lines, f"deb {security} {suite}-security main"] if security else lines


def _mirrors() -> dict[str, str]:
    """URL of the mirror that apt uses on this machine for each of Debian's archives: 'Debian', 'Debian-Security'."""
    try:
        listed = run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"])
    except VmkitError:
        return {}
    found: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        if match := re.match(r"Debian (Debian(?:-Security)?) ((?:https?|copy|file):\S+)\Z", line):
            found.setdefault(match[1], match[2])
    return found


def _lay_out(folder: Path, files: dict[str, str], mode: int = 0o644) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)


def finish(recipe: Recipe) -> str:
    """Shell script for the end: folders, links, units, and what every machine makes for itself. $1 is the tree."""
    lines = ["set -e", 'cd "$1"']
    lines += [f"mkdir -p {path}" for path in recipe.folders]
    lines += [f"mkdir -p {Path(path).parent} && ln -sf {target} {path}" for path, target in recipe.links.items()]
    lines += [f'chroot "$1" systemctl -q enable {" ".join(recipe.enable)}'] if recipe.enable else []
    lines += [f'chroot "$1" systemctl -q mask {" ".join(recipe.mask)}'] if recipe.mask else []
    # Units that are to run once after an update need not: nothing is updated.
    lines += ["touch etc/.updated var/.updated"]
    lines += [*recipe.run, *(f"rm -f {pattern}" for pattern in recipe.remove)]
    lines += ["rm -rf var/cache/apt/*.bin var/lib/apt/lists/* var/log/*.log var/log/apt"]
    return "\n".join(lines) + "\n"
