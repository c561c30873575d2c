"""A web server on the loopback that gives files, in parts if asked, and breaks off when told to."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Site:
    """What it serves, and how.

    Attributes:
        files: content by path.
        etag: ETag of every file; '' for none.
        ranges: whether it gives parts.
        cuts: numbers of bytes after which the next answers break off, one for each.
        rate: bytes a second; 0 for all at once.
        asked: the Range of each request for a file; '' for the whole.
    """

    files: dict[str, bytes]
    etag: str = '"one"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    rate: int = 0
    asked: list[str] = field(default_factory=list)
    url: str = ""


def _handler(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = site.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            wanted = self.headers.get("Range", "")
            site.asked.append(wanted)
            begin = 0
            if wanted and site.ranges and self.headers.get("If-Range", site.etag) == site.etag:
                begin = int(wanted.removeprefix("bytes=").rstrip("-"))
                if begin >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if site.etag:
                self.send_header("ETag", site.etag)
            self.send_header("Content-Length", str(len(body) - begin))
            self.end_headers()
            rest = body[begin:]
            if site.cuts:
                rest = rest[: site.cuts.pop(0)]
                self.close_connection = True
            self._send(rest)

        def _send(self, rest: bytes) -> None:
            step = max(site.rate // 20, 1) if site.rate else len(rest)
            with contextlib.suppress(OSError):  # the client has gone
                for at in range(0, len(rest), step or 1):
                    self.wfile.write(rest[at : at + step])
                    if site.rate:
                        time.sleep(0.05)

        def log_message(self, *_args: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve while the block runs; `site.url` is where."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
