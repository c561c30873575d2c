"""Downloads that go on where they were cut off: by a lost connection, by Ctrl-C or by kill -9.

What came so far is in HOME/cache/downloads, NAME.part, with what the server said of it in NAME.json. It is continued
only if the server still has the same file (If-Range, RFC 9110, 13.1.5), or if its checksum is known.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from vmkit.errors import CancelledError, EffectError, NotFoundError, RefusedError, SpecError, UnreachableError
from vmkit.progress import Advanced, Finished, Note, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.files import ensure_dir, free_space, home, locked, write_atomic
from vmkit.values import Bytes, quoted

if TYPE_CHECKING:
    from urllib.request import Request

CHUNK: Final = 1 << 20
NETWORK_TIMEOUT: Final = 60.0
"""Seconds without a byte until an attempt is given up."""
ATTEMPTS: Final = 4
"""Attempts in a row that bring nothing; one that brought bytes begins the count anew."""
PAUSE: Final = 0.5
"""Seconds before the second attempt; doubled for each further one."""
WAIT: Final = 3600.0
"""Seconds that one process waits for another that fetches the same URL."""


@dataclass(frozen=True, slots=True)
class Remote:
    """What the server said of a file: `validator` is its ETag or date, `total` its bytes; None where it did not."""

    url: str
    validator: str | None
    total: int | None


class _CutOffError(Exception):
    """The connection broke; what came is kept."""


def folder() -> Path:
    """Where unfinished downloads are; it may not exist."""
    return home() / "cache" / "downloads"


def key(url: str) -> str:
    """Name of the files of a download."""
    return hashlib.sha256(url.encode()).hexdigest()[:20]


@contextlib.contextmanager
def fetched(url: str, *, verified: bool, reporter: Reporter = silent) -> Iterator[Path]:
    """Fetch `url`, and yield the file with all of it. The block may move it away; else it is removed at its end.

    If the block fails, the file is removed: it was whole, and wrong. If the transfer fails, what came is kept.

    Args:
        url: http or https.
        verified: its checksum is known, and the block compares it; a server without validators is then trusted to have
            the same file still.
        reporter: told of the progress.

    Raises:
        NotFoundError, UnreachableError, RefusedError: the server does not give it, or there is no room for it.
        EffectError: the transfer was cut off, again and again.
        ConflictError: another process has been fetching it for an hour.
    """
    base = ensure_dir(folder(), 0o700)
    name = key(url)
    part, note = base / f"{name}.part", base / f"{name}.json"
    lock = base / f"{name}.lock"
    with locked(lock, busy=f"another process is still fetching {quoted(url, 200)}", wait=WAIT):
        _transfer(url, part, note, verified, reporter)
        try:
            yield part
        finally:
            for path in (part, note, lock):
                path.unlink(missing_ok=True)


def small(source: str, limit: int, what: str) -> bytes:
    """The content of a small file, by path or URL.

    Raises:
        NotFoundError, UnreachableError, RefusedError, SpecError: it cannot be had, or it is larger than `limit` bytes.
    """
    url = as_url(source)
    if url is None:
        from vmkit.system.files import open_regular

        with open_regular(Path(source), what, limit=limit) as f:
            return f.read()
    try:
        with _opened(url, {}) as answer:
            data: bytes = answer.read(limit + 1)
    except (_CutOffError, OSError) as e:
        raise UnreachableError(f"{quoted(url, 200)}: {e}", hint="try again in a while") from e
    if len(data) > limit:
        raise RefusedError(
            f"the {what} {quoted(url, 200)} is larger than {Bytes(limit)}",
            hint=f"see whether the address is that of the {what}",
        )
    return data


def as_url(source: str) -> str | None:
    """The URL, or None where `source` is a path.

    Raises:
        SpecError: a URL of another kind than http and https.
    """
    scheme, mark, _ = source.partition("://")
    if not mark or not scheme.isascii() or not scheme.replace("+", "a").replace("-", "a").replace(".", "a").isalnum():
        return None
    if scheme.lower() not in ("http", "https"):
        raise SpecError(f"cannot fetch {quoted(source)}", path="source", hint="give a path, or an http(s) URL")
    try:
        parts = urlsplit(source)
        valid = bool(parts.hostname) and parts.port != 0 and source.isprintable() and " " not in source
    except ValueError:
        valid = False
    if not valid:
        raise SpecError(
            f"{quoted(source)} is not a URL",
            path="source",
            hint="a URL is like https://HOST/PATH; of a file give the path",
        )
    return source


def _transfer(url: str, part: Path, note: Path, verified: bool, reporter: Reporter) -> None:
    seconds = stopwatch()
    failures = 0
    reporter(Started("download", url))
    while True:
        before = _size(part)
        try:
            if _attempt(url, part, note, verified, reporter):
                break
        except KeyboardInterrupt:
            raise CancelledError(
                f"the download of {quoted(url, 200)} was stopped; {Bytes(_size(part))} of it are kept",
                hint="run it again: it goes on from there",
            ) from None
        except _CutOffError as e:
            failures = 0 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS:
                kept = Bytes(_size(part))
                raise EffectError(
                    f"download of {quoted(url, 200)}: {e}",
                    left=f"{kept} of it are kept",
                    hint="run it again: it goes on from there",
                ) from e
            reporter(Note(f"the connection broke after {Bytes(_size(part))}; trying again", warning=True))
            time.sleep(PAUSE * 2 ** max(failures - 1, 0))
    reporter(Finished("download", seconds(), str(Bytes(_size(part)))))


def _attempt(url: str, part: Path, note: Path, verified: bool, reporter: Reporter) -> bool:
    """One request. True once the file is whole; False if it has to be asked for again from its beginning."""
    have, known = _size(part), _read(note, url)
    headers = _resume_headers(have, known, verified)
    if have and not headers:
        part.unlink()
        have = 0
    with _opened(url, headers) as answer:
        if answer.status == 416:  # nothing after what we have
            if known and known.total == have:
                return True
            part.unlink(missing_ok=True)
            return False
        remote, offset = _remote(url, answer, have)
        if offset != have and offset != 0:
            part.unlink(missing_ok=True)
            return False
        if offset == 0:
            part.unlink(missing_ok=True)
        _refuse_no_room(part, None if remote.total is None else 2 * remote.total - offset)
        write_atomic(note, json.dumps(asdict(remote)), mode=0o600)
        if offset:
            reporter(Note(f"going on with the download after {Bytes(offset)}"))
        _pump(answer, part, offset, remote.total, reporter)
    return True


def _resume_headers(have: int, known: Remote | None, verified: bool) -> dict[str, str]:
    """The request for the rest; none where it has to be fetched from its beginning. Pure."""
    if not have or known is None:
        return {}
    if known.validator:
        return {"Range": f"bytes={have}-", "If-Range": known.validator}
    return {"Range": f"bytes={have}-"} if verified else {}


def _remote(url: str, answer: Any, have: int) -> tuple[Remote, int]:
    """What the answer says of the whole file, and at which byte its body begins."""
    etag = answer.headers.get("ETag", "")
    # A weak tag or a date of the last minute would not do for ranges: RFC 9110, 8.8.3.
    validator = etag if etag.startswith('"') else answer.headers.get("Last-Modified")
    length = answer.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    if answer.status != 206:
        return Remote(url, validator, total), 0
    unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
    begin, _, _ = rest.partition("-")
    whole = rest.rpartition("/")[2]
    if unit != "bytes" or not begin.isdecimal():
        raise UnreachableError(
            f"{quoted(url, 200)}: the server's answer to a request for a part makes no sense",
            hint="fetch it with another program, and import the file",
        )
    if int(begin) == have and total is not None:
        total += have
    return Remote(url, validator, int(whole) if whole.isdecimal() else total), int(begin)


def _pump(answer: Any, part: Path, offset: int, total: int | None, reporter: Reporter) -> None:
    import http.client

    done, seconds = offset, stopwatch()
    try:
        with part.open("ab") as f:
            while chunk := answer.read1(CHUNK):  # what is there, so that a slow one is seen to go on
                f.write(chunk)
                f.flush()
                done += len(chunk)
                rate = Bytes((done - offset) / max(seconds(), 0.001))
                of = f" of {Bytes(total)}" if total else ""
                reporter(Advanced("download", done, total, f"{Bytes(done)}{of}, {rate}/s"))
    except (OSError, http.client.HTTPException) as e:
        if isinstance(e, OSError) and e.errno == 28:  # ENOSPC: trying again does not help
            raise RefusedError(f"no space left in {part.parent}", hint=f"free some: df -h {part.parent}") from e
        raise _CutOffError(f"cut off after {Bytes(done)}: {e}") from e
    if total is not None and done < total:
        raise _CutOffError(f"cut off after {done} of {total} bytes")
    if total is not None and done > total:
        part.unlink()
        raise EffectError(
            f"download: the server sent {done} bytes and had announced {total}",
            hint="try again; what came is thrown away",
        )


@contextlib.contextmanager
def _opened(url: str, headers: dict[str, str]) -> Iterator[Any]:
    """The answer to a GET, of status 200, 206 or 416."""
    import http.client
    import urllib.error
    import urllib.request

    class Careful(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            as_url(newurl)
            if req.full_url.lower().startswith("https:") and not newurl.lower().startswith("https:"):
                raise RefusedError(
                    f"{quoted(url, 200)} leads from https to {quoted(newurl, 200)}, which is not safe",
                    hint="give the other address itself, if it can be trusted",
                )
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    # No transparent compression: ranges and digests are of the file as it is.
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "vmkit", **headers})  # noqa: S310 - as_url has seen it
    try:
        answer = urllib.request.build_opener(Careful()).open(request, timeout=NETWORK_TIMEOUT)
    except urllib.error.HTTPError as e:
        with e:
            if e.code == 416 and "Range" in headers:
                yield e
                return
        if e.code in (429, 502, 503, 504):
            raise _CutOffError(f"the server answers {e.code} {e.reason}") from e
        kind = NotFoundError if e.code in (404, 410) else UnreachableError
        raise kind(f"{quoted(url, 200)}: the server answers {e.code} {e.reason}") from e
    except urllib.error.URLError as e:
        hint = "see that the address is right and that the network reaches it"
        raise UnreachableError(f"{quoted(url, 200)}: {e.reason}", hint=hint) from e
    except http.client.HTTPException as e:
        raise UnreachableError(
            f"{quoted(url, 200)}: the server does not speak HTTP: {e!r}", hint="see that address and port are right"
        ) from e
    except OSError as e:
        raise _CutOffError(str(e)) from e
    with answer:
        yield answer


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(note: Path, url: str) -> Remote | None:
    try:
        body = json.loads(note.read_text())
        found = Remote(body["url"], body["validator"], body["total"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return found if found.url == url else None


def _refuse_no_room(target: Path, need: int | None) -> None:
    if need is not None and free_space(target.parent) < need:
        raise RefusedError(
            f"no space: {Bytes(need)} are needed in {target.parent}", hint=f"free some: df -h {target.parent}"
        )
