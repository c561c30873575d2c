"""Debian packages, downloaded and unpacked into a folder; nothing is installed on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vmkit.errors import EffectError, UnsupportedError, VmkitError
from vmkit.system.files import ensure_dir
from vmkit.system.process import run

_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]+\Z")
_SHARED = re.compile(r"^((?:lib[a-z0-9]|zlib)[a-z0-9.+-]+)$", re.MULTILINE)
_NO_LIBRARY = re.compile(r"-(perl|common|data|stdlib|minimal|bin)$|-modules|^lib(perl|python|debian-installer)")
"""Packages called lib... that hold no shared library of a C program."""
_MISSING = re.compile(r"^\s*(\S+) => not found", re.MULTILINE)
_FOUND = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)", re.MULTILINE)


def field(package: str, name: str) -> str:
    """A field ('Depends', 'Version') of the version that apt would install; '' if the package lacks the field.

    Raises:
        UnsupportedError: apt is not here, or knows no such package.
    """
    hint = "apt-get update, and see that apt has a Debian source; or import an image instead: vmkit image import"
    try:
        shown = run(["apt-cache", "show", "--no-all-versions", package]).stdout
    except UnsupportedError as e:
        raise UnsupportedError("the micro image is built from Debian packages, and apt is not here", hint=hint) from e
    except EffectError as e:
        raise UnsupportedError(f"apt knows no package '{package}'", hint=hint) from e
    match = re.search(rf"^{re.escape(name)}: (.*)$", shown, re.MULTILINE)
    return match[1] if match else ""


def dependencies(depends: str) -> list[str]:
    """Package names from a Depends field; of alternatives the first."""
    names = [part.split("|")[0].split("(")[0].split(":")[0].strip() for part in depends.split(",")]
    return [n for n in names if _NAME.match(n)]


def unpack(packages: Iterable[str], scratch: Path) -> Path:
    """Download packages and unpack them on top of each other; returns the folder that holds the tree.

    apt checks what it downloads against the signed lists of the archive.

    Args:
        packages: names.
        scratch: a folder for the .deb files and, below it, the tree.

    Raises:
        EffectError: a download failed.
    """
    root = ensure_dir(scratch / "root")
    folder = ensure_dir(scratch / "deb")
    try:
        # apt's own user cannot write into our folder; without this it only prints a warning.
        run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages], cwd=folder, timeout=600)
    except VmkitError as e:
        hint = "see that the mirror answers: apt-get update"
        raise EffectError(f"download of Debian packages: {e.message}", details=e.details, hint=e.hint or hint) from e
    for deb in sorted(folder.iterdir()):
        if deb.suffix == ".deb":
            run(["dpkg-deb", "-x", deb, root], timeout=600)
            deb.unlink()
    return root


def libraries(program: Path, package: str, scratch: Path) -> list[Path]:
    """Shared libraries that `program` loads, the dynamic linker included: this machine's own.

    Libraries that this machine lacks are taken from the dependencies of the program's package.

    Raises:
        UnsupportedError: some are not to be had.
    """
    listing = run(["ldd", program]).stdout
    if _MISSING.search(listing):
        names = [n for n in dependencies(field(package, "Depends")) if n.startswith("lib")]
        root = unpack(names, scratch)
        folders = [root / p for p in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")]
        listing = run(["ldd", program], env={"LD_LIBRARY_PATH": ":".join(map(str, folders))}).stdout
    if missing := _MISSING.findall(listing):
        raise UnsupportedError(f"{program.name} needs {', '.join(missing)}", hint=f"apt-get install {package}")
    return [Path(p) for p in _FOUND.findall(listing)]


def with_libraries(packages: Iterable[str]) -> list[str]:
    """The packages, and those of the shared libraries that they need, directly or by way of others.

    Raises:
        EffectError: apt knows one of them not.
    """
    wanted = list(packages)
    options = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    listing = run(["apt-cache", "depends", "--recurse", *options, *wanted]).stdout
    return [*wanted, *sorted({n for n in _SHARED.findall(listing) if not _NO_LIBRARY.search(n)} - set(wanted))]


def needed(program: Path, root: Path) -> list[Path]:
    """Shared libraries that a program of an unpacked tree loads, from that tree, its dynamic linker included.

    Raises:
        UnsupportedError: the tree lacks one.
    """
    # Some libraries are in folders of their own, which others name as they are installed ($ORIGIN, RUNPATH).
    files = sorted(
        p for p in root.rglob("*.so*") if p.is_file() and not (p.is_symlink() and p.readlink().is_absolute())
    )
    folders = ":".join(dict.fromkeys(str(p.parent) for p in files))
    loader = next((p for p in files if p.name.startswith("ld-linux-")), None)
    if loader is None:
        raise UnsupportedError("apt's libc6 has no dynamic linker", hint="apt-get update")
    listing = run([loader, "--library-path", folders, "--list", program]).stdout
    if missing := _MISSING.findall(listing):
        raise UnsupportedError(f"{program.name} needs {', '.join(missing)}", hint=f"apt-get install {program.name}")
    found = [Path(p) for p in _FOUND.findall(listing)]
    if outside := [p for p in found if root not in p.parents]:
        raise UnsupportedError(
            f"{program.name} needs {outside[0].name}, which no package brought", hint="apt-get update, and build again"
        )
    return list(dict.fromkeys([*found, loader]))


def _leads_out(path: Path) -> bool:
    return path.is_symlink() and path.readlink().is_absolute()
