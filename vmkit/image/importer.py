"""Bringing in a disk image that someone else made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from vmkit.errors import EffectError, NotFoundError, RefusedError, SpecError, UnreachableError
from vmkit.image import qcow2, store
from vmkit.image.manifest import Image, ImageKind, check_sha256
from vmkit.progress import Advanced, Finished, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.files import free_space
from vmkit.system.process import run
from vmkit.values import Bytes, check_name, quoted

if TYPE_CHECKING:
    from urllib.request import Request

CHUNK: Final = 1 << 20
NETWORK_TIMEOUT: Final = 60.0
"""Seconds without a byte until a download is given up."""
CONVERT_TIMEOUT: Final = 3600.0

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_PACKED: Final = {b"\x1f\x8b": "gunzip", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd", b"BZh": "bunzip2"}


def import_image(source: str | Path, name: str, *, sha256: str | None = None, reporter: Reporter = silent) -> Image:
    """Import a disk; see `vmkit.image.api.Images.import_`."""
    check_name(name)
    wanted = None if sha256 is None else check_sha256(sha256, path="--sha256")
    store.refuse_taken(name)
    with store.making(name) as (folder, commit):
        disk = folder / "disk.qcow2"
        url = _url(str(source))
        if url:
            original = folder / "original"
            digest: str | None = _download(url, original, reporter)
        else:
            original = _local(Path(source))
            digest = _digest(original, reporter) if wanted else None
        if wanted and digest != wanted:
            raise RefusedError(
                f"the checksum of {quoted(str(source), 200)} is wrong: expected {wanted}, got {digest}",
                hint="fetch it again, and compare with what its publisher says",
            )
        kind = examine(original)
        _convert(kind, original, disk, reporter)
        return commit(
            Image(
                name=name,
                kind=ImageKind.IMPORTED,
                arch="x86_64",
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                source=url or str(original.resolve()),
                disk=store.describe(disk),
            )
        )


def examine(path: Path) -> str:
    """The format of a disk image, 'qcow2' or 'raw', after looking for everything that would make it unsafe or useless.

    A backing or data file named by the image would make QEMU read any file of this machine into the guest.

    Raises:
        RefusedError: it is compressed, encrypted, damaged, names other files, or has another format.
    """
    with path.open("rb") as f:
        head = f.read(qcow2.HEADER_LIMIT)
    for magic, program in _PACKED.items():
        if head.startswith(magic):
            raise RefusedError(f"{path.name} is compressed", hint=f"unpack it first: {program}")
    if qcow2.is_qcow2(head):
        header = qcow2.parse_header(head)
        if header.backing:
            raise RefusedError(
                f"{path.name} names a backing file, which could be any file of this machine",
                hint="have its maker flatten it: qemu-img convert -O qcow2",
            )
        if header.data_file:
            raise RefusedError(f"{path.name} keeps its data in another file, which could be any file of this machine")
        if header.encrypted:
            raise RefusedError(f"{path.name} is encrypted", hint="decrypt it first: qemu-img convert")
    info = _qemu_info(path)
    kind = str(info.get("format"))
    if kind not in ("qcow2", "raw"):
        hint = f"convert it first: qemu-img convert -f {kind} -O qcow2"
        raise RefusedError(f"{path.name} has the format {kind}; only qcow2 and raw are taken", hint=hint)
    if (kind == "qcow2") != qcow2.is_qcow2(head) or info.get("backing-filename"):
        raise RefusedError(f"{path.name} is not what its header says")
    size = path.stat().st_size
    if kind == "raw" and (size == 0 or size % 512):
        raise RefusedError(
            f"{path.name} is no disk image: {size} bytes are not a whole number of sectors",
            hint="see what it is: file; a download may have been cut off, or be an error page",
        )
    if kind == "qcow2":
        _check(path)
    return kind


def _qemu_info(path: Path) -> dict[str, Any]:
    try:
        answer = json.loads(run(["qemu-img", "info", "--output=json", _plain(path)]).stdout)
    except EffectError as e:
        raise RefusedError(f"{path.name} is not a disk image that QEMU can read", details=(e.message,)) from e
    return answer if isinstance(answer, dict) else {}


def _plain(path: Path) -> str:
    """A path that QEMU cannot take for one of its protocols, as it would 'nbd:...' or 'json:{...}'."""
    return str(path.absolute())


def _check(path: Path) -> None:
    """Have QEMU look through the tables of a qcow2 file; a truncated one shows there. Leaked clusters do no harm."""
    done = run(["qemu-img", "check", "-f", "qcow2", _plain(path)], check=False, timeout=CONVERT_TIMEOUT)
    if done.status not in (0, 3):
        lines = tuple((done.stderr or done.stdout).strip().splitlines()[:4])
        raise RefusedError(f"{path.name} is damaged, or was cut off", details=lines, hint="fetch it again")


def _convert(kind: str, original: Path, disk: Path, reporter: Reporter) -> None:
    reporter(Started("convert", f"{kind} to qcow2"))
    seconds = stopwatch()
    run(["qemu-img", "convert", "-f", kind, "-O", "qcow2", _plain(original), disk], timeout=CONVERT_TIMEOUT)
    reporter(Finished("convert", seconds(), f"{kind} to qcow2"))


# -- from a file


def _local(path: Path) -> Path:
    try:
        if path.is_file():
            with path.open("rb"):
                return path
        exists = path.exists()
    except OSError as e:
        raise RefusedError(f"cannot read {quoted(str(path), 200)}: {e.strerror}") from e
    if exists:
        raise RefusedError(f"{quoted(str(path), 200)} is not a regular file")
    raise NotFoundError(f"no file {quoted(str(path), 200)}", hint="give a path, or a URL that begins with https://")


def _digest(path: Path, reporter: Reporter) -> str:
    seconds = stopwatch()
    reporter(Started("checksum"))
    with path.open("rb") as f:
        digest = _pump(f, None, path.stat().st_size, lambda done, total: reporter(Advanced("checksum", done, total)))
    reporter(Finished("checksum", seconds()))
    return digest


def _pump(
    source: IO[bytes], target: IO[bytes] | None, total: int | None, advance: Callable[[float, float | None], None]
) -> str:
    """Copy to the end and return the SHA-256 of what passed."""
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        if target:
            target.write(chunk)
        done += len(chunk)
        advance(done, total)
    return digest.hexdigest()


# -- over the network


def _url(source: str) -> str | None:
    """The URL, or None where `source` is a path.

    Raises:
        SpecError: a URL of another kind than http and https.
    """
    match = _URL.match(source)
    if not match:
        return None
    if match[1].lower() not in ("http", "https"):
        raise SpecError(f"cannot fetch {quoted(source)}", path="source", hint="give a path, or an http(s) URL")
    try:
        parts = urlsplit(source)
        valid = bool(parts.hostname) and parts.port != 0 and source.isprintable() and " " not in source
    except ValueError:
        valid = False
    if not valid:
        raise SpecError(f"{quoted(source)} is not a URL", path="source")
    return source


def _download(url: str, target: Path, reporter: Reporter) -> str:
    """Fetch `url` into `target` and return the SHA-256 of what came.

    Raises:
        NotFoundError, UnreachableError, RefusedError: the server does not give it, or there is no room for it.
        EffectError: the transfer was cut off.
    """
    import http.client
    import urllib.error
    import urllib.request

    class Careful(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            _url(newurl)
            if req.full_url.lower().startswith("https:") and not newurl.lower().startswith("https:"):
                raise RefusedError(f"{quoted(url, 200)} leads from https to {quoted(newurl, 200)}, which is not safe")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    seconds = stopwatch()
    try:
        with urllib.request.build_opener(Careful()).open(url, timeout=NETWORK_TIMEOUT) as answer:
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
            _refuse_no_room(target, total)
            reporter(Started("download", url))
            with target.open("wb") as f:
                digest = _pump(answer, f, total, lambda done, all_: reporter(Advanced("download", done, all_)))
    except urllib.error.HTTPError as e:
        kind = NotFoundError if e.code in (404, 410) else UnreachableError
        raise kind(f"{quoted(url, 200)}: the server answers {e.code} {e.reason}") from e
    except urllib.error.URLError as e:
        hint = "see that the address is right and that the network reaches it"
        raise UnreachableError(f"{quoted(url, 200)}: {e.reason}", hint=hint) from e
    except http.client.HTTPException as e:
        raise UnreachableError(f"{quoted(url, 200)}: the server does not speak HTTP: {e!r}") from e
    except OSError as e:  # the connection broke, or the disk is full
        raise EffectError(f"download of {quoted(url, 200)}: {e}", left="nothing is left of it") from e
    got = target.stat().st_size
    if total is not None and got != total:
        raise EffectError(f"download of {quoted(url, 200)}: cut off after {got} of {total} bytes")
    reporter(Finished("download", seconds(), str(Bytes(got))))
    return digest


def _refuse_no_room(target: Path, total: int | None) -> None:
    # Twice: the download, and what it is converted to.
    if total is not None and free_space(target.parent) < 2 * total:
        need = Bytes(2 * total)
        raise RefusedError(f"no space: {need} are needed in {target.parent}", hint=f"free some: df -h {target.parent}")
