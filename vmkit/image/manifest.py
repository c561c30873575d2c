"""What an image is, and its manifest on disk (manifest.json, one an image). Pure: values in, values out."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vmkit.errors import SpecError
from vmkit.values import Bytes, check_name

FORMAT: Final = 1
"""Version of the manifest's layout; a reader refuses a higher one."""


_UNKNOWN: Final = Bytes(0)


class ImageKind(enum.Enum):
    """Where an image comes from."""

    MICRO = "micro"
    DEBIAN = "debian"
    IMPORTED = "imported"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file of an image.

    Attributes:
        path: where it is on this machine; in the manifest only its name.
        sha256: of its content, lower-case hexadecimal.
        size: bytes of the file (for a qcow2 disk not what the guest sees).
    """

    path: Path
    sha256: str
    size: Bytes


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the store.

    Attributes:
        name: its name in the store.
        kind: built here or imported.
        arch: as QEMU names it: 'x86_64'.
        created: UTC, ISO 8601.
        source: what it was made from: a Debian kernel package and its version, a path, a URL.
        kernel, initrd: for direct kernel boot; None where the disk has a boot loader.
        disk: the qcow2 file that disks of VMs are overlays of; None if there is none.
        cmdline: base of the kernel command line; '' without a kernel.
        agent: whether a QEMU guest agent answers in it.
        console_marker: the line on the serial console that means 'booted'; None if unknown.
        min_memory: bytes below which it does not boot, as far as known; 0 if unknown.
        programs: archive of the programs on its disk, for use on this machine; None if it has no such.
        memory: saved memory of a running VM, from which others go on; None for an image that is booted.
        state: what else is known of that VM at the moment when it was saved; goes with `memory`.
        cloud_init: whether cloud-init runs in it where there is a seed; None if unknown.
        user: whom cloud-init gives the ssh keys and the password; None if unknown.
        source_sha256: digest of the file that was imported, as its publisher knows it; None for what was built.
    """

    name: str
    kind: ImageKind
    arch: str
    created: str
    source: str
    kernel: ImageFile | None = None
    initrd: ImageFile | None = None
    disk: ImageFile | None = None
    cmdline: str = ""
    agent: bool = False
    console_marker: str | None = None
    min_memory: Bytes = _UNKNOWN
    programs: ImageFile | None = None
    memory: ImageFile | None = None
    state: ImageFile | None = None
    cloud_init: bool | None = None
    user: str | None = None
    source_sha256: str | None = None

    @property
    def size(self) -> Bytes:
        """Bytes of all its files."""
        return Bytes(sum(f.size for f in self.files))

    @property
    def files(self) -> tuple[ImageFile, ...]:
        """Those that it has."""
        return tuple(self.by_field.values())

    @property
    def by_field(self) -> dict[str, ImageFile]:
        """The same by the name of the field: 'kernel', 'disk', ..."""
        return {name: f for name in _FILES if (f := getattr(self, name)) is not None}


_FILES: Final = ("kernel", "initrd", "disk", "programs", "memory", "state")


def to_json(image: Image) -> str:
    """The manifest. Paths are reduced to file names, so that the folder may move."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "name": image.name,
        "kind": image.kind.value,
        "arch": image.arch,
        "created": image.created,
        "source": image.source,
    }
    for field in _FILES:
        file: ImageFile | None = getattr(image, field)
        body[field] = file and {"file": file.path.name, "sha256": file.sha256, "size": int(file.size)}
    body |= {
        "cmdline": image.cmdline,
        "agent": image.agent,
        "console_marker": image.console_marker,
        "min_memory": int(image.min_memory),
        "cloud_init": image.cloud_init,
        "user": image.user,
        "source_sha256": image.source_sha256,
    }
    return json.dumps(body, indent=1) + "\n"


def from_json(text: str, folder: Path) -> Image:
    """The image that a manifest describes; its files are in `folder`.

    Raises:
        SpecError: it is not a manifest of a known format; `path` names the field.
    """
    try:
        body = json.loads(text)
    except ValueError as e:
        raise SpecError(f"not JSON: {e}") from e
    if not isinstance(body, dict):
        raise SpecError("not an image manifest")
    if _field(body, "format", int) > FORMAT:
        raise SpecError(
            f"{body['format']} is newer than this vmkit knows ({FORMAT})",
            path="format",
            hint="a newer vmkit made it; use that one here, too",
        )
    try:
        kind = ImageKind(_field(body, "kind", str))
    except ValueError as e:
        raise SpecError(f"unknown kind {body['kind']!r}", path="kind") from e
    files = {f: _file(body.get(f), folder, f) for f in _FILES}
    return Image(
        name=check_name(_field(body, "name", str)),
        kind=kind,
        arch=_field(body, "arch", str),
        created=_field(body, "created", str),
        source=_field(body, "source", str),
        kernel=files["kernel"],
        initrd=files["initrd"],
        disk=files["disk"],
        cmdline=_field(body, "cmdline", str),
        agent=_field(body, "agent", bool),
        console_marker=_optional(body, "console_marker", str),
        min_memory=Bytes(_field(body, "min_memory", int)),
        programs=files["programs"],
        memory=files["memory"],
        state=files["state"],
        cloud_init=_optional(body, "cloud_init", bool),
        user=_optional(body, "user", str),
        source_sha256=_optional(body, "source_sha256", str),
    )


def _field(body: dict[str, Any], name: str, kind: type, path: str = "") -> Any:
    value = body.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SpecError(f"{'missing' if name not in body else 'has the wrong type'}", path=path + name)
    return value


def _optional(body: dict[str, Any], name: str, kind: type) -> Any:
    return None if body.get(name) is None else _field(body, name, kind)


def _file(entry: Any, folder: Path, field: str) -> ImageFile | None:
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise SpecError("has the wrong type", path=field)
    # check_name keeps a manifest from naming a file outside its folder.
    name = check_name(_field(entry, "file", str, f"{field}."), path=f"{field}.file")
    digest: str = _field(entry, "sha256", str, f"{field}.")
    check_sha256(digest, path=f"{field}.sha256")
    return ImageFile(folder / name, digest, Bytes.parse(_field(entry, "size", int, f"{field}."), path=f"{field}.size"))


def check_sha256(text: str, *, path: str = "sha256") -> str:
    """The digest in lower case.

    Raises:
        SpecError: it is not 64 hexadecimal digits.
    """
    digest = text.strip().lower()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise SpecError("not a SHA-256 digest", path=path, hint="it has 64 hexadecimal digits: sha256sum FILE")
    return digest
