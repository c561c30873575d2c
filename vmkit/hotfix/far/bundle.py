"""What is carried to a host: the code of hotfixes, and the libraries that it uses, as a tar file."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path
from typing import Final

from vmkit.errors import UnsupportedError
from vmkit.hypervisor.standin import source

PARTS: Final = ("errors.py", "values.py", "progress.py", "plan.py", "system", "hypervisor", "hotfix")
"""Of vmkit: the floors that hotfix/ stands on."""
LIBRARIES: Final = ("elftools", "capstone")
"""Neither is bound to a version of Python. capstone's own library is bound to the CPU architecture."""
_ENDINGS: Final = (".py", ".so")


def bundle() -> bytes:
    """The tar file, gzipped lightly; it unpacks to a folder for sys.path.

    Raises:
        UnsupportedError: a library is not where it can be read.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        own = Path(__file__).parents[2]
        _put(tar, "vmkit/__init__.py", b"")
        for name in PARTS:
            _add(tar, own / name, Path("vmkit", name))
        for name in LIBRARIES:
            _add(tar, _folder(name), Path(name))
        _put(tar, "libvirt.py", source().encode())
    return out.getvalue()


def _folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        raise UnsupportedError(f"the library {name} is not installed as files", hint="install it anew: scripts/setup")
    return Path(spec.origin).parent


def _add(tar: tarfile.TarFile, path: Path, name: Path) -> None:
    if path.is_dir():
        for each in sorted(path.iterdir()):
            _add(tar, each, name / each.name)
    elif path.suffix in _ENDINGS:
        _put(tar, str(name), path.read_bytes())


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    tar.addfile(info, io.BytesIO(data))
