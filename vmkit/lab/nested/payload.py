"""The second disk of a host: a tar archive of all that tells it from other hosts, and often of vmkit itself."""

from __future__ import annotations

import io
import secrets
import tarfile
import time
from pathlib import Path
from typing import Final

from vmkit.errors import NotFoundError, RefusedError
from vmkit.image.api import Images
from vmkit.image.manifest import Image, ImageKind
from vmkit.lab.layout import Layout
from vmkit.lab.nested import config
from vmkit.lab.nested.blueprint import Blueprint, HostPlan
from vmkit.lab.nested.flavour import Flavour
from vmkit.lab.nested.hardware import PAYLOAD_SIZE
from vmkit.progress import Note, Reporter
from vmkit.system.process import run
from vmkit.system.templates import template
from vmkit.values import Bytes

_LIMIT: Final = PAYLOAD_SIZE - 64 * 2**20
_SEED: Final = 64


def images(reporter: Reporter) -> list[Image]:
    """The micro images of this machine's store, which hosts get; one is built if there is none.

    Raises:
        UnsupportedError, EffectError: it cannot be built.
    """
    store = Images()
    try:
        store.get("micro")
    except NotFoundError:
        reporter(Note("building the image 'micro' once, for the guests of the lab's hosts"))
        store.build_micro(reporter=reporter)
    return [image for image in store.list(reporter) if image.kind is ImageKind.MICRO]


def keygen(path: Path, comment: str) -> str:
    """Make a key pair; returns the public key."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])
    return path.with_suffix(".pub").read_text()


def write_payload(
    target: Path, layout: Layout, flavour: Flavour, plan: Blueprint, host: HostPlan, seeded: list[Image]
) -> None:
    """Write the disk of one host. Its keys are below the lab's folder already.

    Raises:
        RefusedError: the images do not fit.
    """
    size = sum(file.size for image in seeded for file in image.files)
    if size > _LIMIT:
        raise RefusedError(
            f"the micro images of this machine take {Bytes(size)}, and a host gets at most {Bytes(_LIMIT)}",
            hint="remove some: vmkit image list",
        )
    target.touch(mode=0o600)
    with target.open("r+b") as raw, tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, text in config.host_files(flavour, layout, plan, host).items():
            _add(tar, path, text.encode(), 0o755 if path.endswith(config.PROGRAMS) else 0o644)
        _add(tar, "usr/lib/vmkit-lab/identity", template("lab-nested/identity").read_bytes(), 0o755)
        _add(tar, "usr/lib/vmkit-lab/own", template(f"lab-{flavour.kind}/own").read_bytes(), 0o644)
        _keys(tar, layout, host)
        if flavour.carries:
            _vmkit(tar)
        for image in seeded:
            folder = image.files[0].path.parent
            for file in sorted(folder.iterdir()):
                tar.add(file, f"var/lib/vmkit/images/{image.name}/{file.name}", filter=_roots)
        tar.close()
        raw.truncate(PAYLOAD_SIZE)


def _keys(tar: tarfile.TarFile, layout: Layout, host: HostPlan) -> None:
    own = layout.host(host.name) / "ssh_host_ed25519_key"
    _add(tar, "etc/ssh/ssh_host_ed25519_key", own.read_bytes(), 0o600)
    _add(tar, "etc/ssh/ssh_host_ed25519_key.pub", own.with_suffix(".pub").read_bytes(), 0o644)
    folder = tarfile.TarInfo("root/.ssh")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o700
    tar.addfile(folder)
    _add(tar, "root/.ssh/authorized_keys", layout.key.with_suffix(".pub").read_bytes(), 0o600)
    _add(tar, f"{config.OWN[1:]}/id_ed25519", layout.key.read_bytes(), 0o600)
    _add(tar, f"{config.OWN[1:]}/known_hosts", layout.known_hosts.read_bytes(), 0o644)
    _add(tar, f"{config.OWN[1:]}/seed", secrets.token_bytes(_SEED), 0o600)


def _vmkit(tar: tarfile.TarFile) -> None:
    """This very vmkit: package, data files, and the version that `vmkit --version` looks for."""
    from importlib.metadata import PackageNotFoundError, version

    import vmkit

    package = Path(vmkit.__file__).parent
    tar.add(package, "opt/vmkit/vmkit", filter=_source)
    tar.add(template("lab-nested").parent, "opt/vmkit/templates", filter=_source)
    try:
        number = version("vmkit")
    except PackageNotFoundError:
        number = "0"
    text = f"Metadata-Version: 2.1\nName: vmkit\nVersion: {number}\n"
    _add(tar, f"opt/vmkit/vmkit-{number}.dist-info/METADATA", text.encode(), 0o644)


def _source(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in info.name else _roots(info)


def _roots(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def _add(tar: tarfile.TarFile, path: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime = len(data), mode, int(time.time())
    tar.addfile(info, io.BytesIO(data))
