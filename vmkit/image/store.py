"""The store of images on this machine: a folder for each, below HOME/images.

A folder appears by one rename when everything in it is complete, so a half image is never seen. While one is made, it
is a folder whose name begins with a dot, and an entry in the journal says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from vmkit.errors import ConflictError, EffectError, NotFoundError, RefusedError, SpecError, VmkitError
from vmkit.image import blobs
from vmkit.image.manifest import Image, ImageFile, from_json, to_json
from vmkit.system.files import ensure_dir, home, locked, sync_dir, sync_file, write_atomic
from vmkit.system.journal import journalled
from vmkit.values import Bytes, check_image_name, check_name, quoted

MANIFEST: Final = "manifest.json"
NEW: Final = ".new-"
OLD: Final = ".old-"
GONE: Final = ".gone-"


def root() -> Path:
    """The folder of the store; it may not exist."""
    return home() / "images"


def names() -> list[str]:
    """Names of the images that are there, sorted."""
    try:
        return sorted(p.parent.name for p in root().glob(f"*/{MANIFEST}") if not p.parent.name.startswith("."))
    except PermissionError:
        return []


def read(name: str) -> Image:
    """The image of this name.

    Raises:
        SpecError: that cannot be the name of an image.
        NotFoundError: there is none; the hint says what to do.
        EffectError: its manifest is damaged.
    """
    from vmkit.image.catalogue import canonical, catalogue

    asked = check_image_name(name, path="image")
    if not (root() / name / MANIFEST).exists():
        name = canonical(name, (), catalogue())
    check_name(name, path="image")
    folder = root() / name
    try:
        image = from_json((folder / MANIFEST).read_text(), folder)
    except FileNotFoundError:
        raise NotFoundError(f"no image named {quoted(asked)}", hint=_how_to_get(name)) from None
    except PermissionError as e:
        raise RefusedError(f"cannot read {folder}: {e.strerror}", hint="run as the user who made the image") from e
    except (SpecError, UnicodeDecodeError) as e:
        again = f"vmkit image delete {name}, then build or import it again"
        raise EffectError(f"the manifest of the image {name} is damaged: {e}", hint=again) from e
    return replace(image, name=name)


def _how_to_get(name: str) -> str:
    import difflib

    from vmkit.image.catalogue import catalogue, find

    if known := find(name, catalogue()):
        return f"get it: {known.command}"
    if near := difflib.get_close_matches(name, names(), n=3, cutoff=0.6):
        return f"did you mean {' or '.join(near)}?"
    return f"see what there is: vmkit image list; or bring it in: vmkit image import FILE|URL --name {name}"


def exists(name: str) -> bool:
    """Whether there is an image of this name."""
    return (root() / check_name(name, path="image") / MANIFEST).exists()


def refuse_taken(name: str) -> None:
    """Raise ConflictError if there is an image of this name."""
    if exists(name):
        hint = f"choose another name, or remove it first: vmkit image delete {name}"
        raise ConflictError(f"an image named '{name}' exists", hint=hint)


def describe(path: Path) -> ImageFile:
    """Size and digest of a file that is complete."""
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return ImageFile(path, digest, Bytes(path.stat().st_size))


@contextlib.contextmanager
def making(name: str, *, force: bool = False) -> Iterator[tuple[Path, Callable[[Image], Image]]]:
    """Make an image. Yields an empty folder for its files, and `commit`.

    `commit(image)` writes the manifest, brings everything to the disk and gives the folder its name; without it, or
    after an error, nothing is left. What lies in the folder and is no file of the image is removed by it.

    Args:
        name: of the image.
        force: replace the one of that name.

    Raises:
        ConflictError: the name is taken, or another process makes it at this moment.
        SpecError: that cannot be a name.
    """
    check_name(name, path="image")
    base = ensure_dir(root())
    with _lock(name):
        if not force:
            refuse_taken(name)
        folder = base / f"{NEW}{name}~{secrets.token_hex(4)}"
        with journalled("image", name, "making", folder=str(folder)):
            ensure_dir(folder)

            def commit(image: Image) -> Image:
                return _commit(folder, replace(image, name=name))

            try:
                yield folder, commit
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def _lock(name: str) -> contextlib.AbstractContextManager[None]:
    return locked(root() / f".{name}.lock", busy=f"another process makes or deletes the image {name}")


def _commit(folder: Path, image: Image) -> Image:
    wanted = {f.path.name for f in image.files}
    private = {f.path.name for f in (image.memory, image.state) if f}
    for path in folder.iterdir():
        if path.name not in wanted:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in wanted:
        # What a guest had in its memory is nobody's business.
        (folder / name).chmod(0o600 if name in private else 0o644)
        sync_file(folder / name)
    for file in image.files:
        blobs.share(replace(file, path=folder / file.path.name))
    write_atomic(folder / MANIFEST, to_json(image))
    final, old = folder.parent / image.name, folder.parent / f"{OLD}{image.name}~"
    if final.exists():
        # No rename replaces a folder that is not empty. A crash between the two is mended by `settle`.
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    folder.rename(final)
    sync_dir(folder.parent)
    if old.exists():
        shutil.rmtree(old, ignore_errors=True)
        blobs.sweep(digests())
    return from_json((final / MANIFEST).read_text(), final)


def digests() -> set[str]:
    """SHA-256 of every file of every image that can be read."""
    return {file.sha256 for image in readable() for file in image.files}


def readable() -> list[Image]:
    """Every image by name, without those whose manifest is damaged."""
    found = []
    for name in names():
        with contextlib.suppress(VmkitError):
            found.append(read(name))
    return found


def settle(name: str, folder: Path) -> str:
    """After a crash while `name` was made in `folder`: remove what is half, put back what was moved aside.

    Returns one line that says what was done.
    """
    base = root()
    # The path comes from a file: only ever a folder that `making` could have made.
    half = folder.parent == base and folder.name.startswith(f"{NEW}{name}~") and folder.exists()
    if half:
        shutil.rmtree(folder, ignore_errors=True)
    old, final = base / f"{OLD}{name}~", base / name
    restored = False
    with contextlib.suppress(ConflictError), _lock(name):  # whoever holds the lock finishes this himself
        restored = old.exists() and not final.exists()
        if restored:
            old.rename(final)
            sync_dir(base)
        shutil.rmtree(old, ignore_errors=True)
    if restored:
        return f"replacing the image {name} was cut off; the one before is back"
    return f"making the image {name} was cut off; " + ("its half is removed" if half else "nothing was left of it")


def delete(name: str) -> str:
    """Remove an image; returns its name, which an alias may have stood for.

    Disks of VMs are overlays of copies on their hosts, so they stay usable.

    Raises:
        NotFoundError: there is none.
        ConflictError: another process makes or deletes it.
        RefusedError: not permitted.
    """
    check_image_name(name, path="image")
    if not (root() / name).is_dir():
        from vmkit.image.catalogue import canonical, catalogue

        asked, name = name, canonical(name, (), catalogue())
        if not exists(name):
            raise NotFoundError(f"no image named {quoted(asked)}", hint="see what there is: vmkit image list")
    folder = root() / name
    with _lock(name):
        gone = root() / f"{GONE}{name}~{secrets.token_hex(4)}"
        try:
            folder.rename(gone)
        except FileNotFoundError:
            raise NotFoundError(f"no image named {quoted(name)}", hint="see what there is: vmkit image list") from None
        except PermissionError as e:
            raise RefusedError(f"cannot delete {folder}: {e.strerror}", hint="run as the user who made it") from e
        for path in root().glob(f"{GONE}*"):  # also what a deletion that was cut off left
            shutil.rmtree(path, ignore_errors=True)
    blobs.sweep(digests())
    return name
