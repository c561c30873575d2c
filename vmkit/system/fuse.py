"""Two libvirt connections, of which the one to the source breaks first.

When libvirt's client loses the target at the end of a migration, it tells the source to let the guest go on, although
it may run at the target by then ("There is a small chance that the ddomain is NULL due to an RPC failure. In that case
ddomain could in fact be running on the dest", virDomainMigrateVersion3Full in libvirt's libvirt-domain.c). With a fuse
it cannot: when the connection to the target breaks, the one to the source is gone before libvirt's client learns of it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

PREFIX: Final = "vmkit-fuse-"


def folder_name() -> str:
    """A folder for `fused`, to be noted before it is made."""
    return f"{tempfile.gettempdir()}/{PREFIX}{secrets.token_hex(6)}"


def swept(folder: str) -> None:
    """Remove what is left of a fuse."""
    if Path(folder).name.startswith(PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def fused(source: str, target: str, folder: str) -> Iterator[tuple[str, str] | None]:
    """URIs for both, to be opened while the block runs, each once; None where there can be no fuse.

    `folder` is made, and removed at the end. There can be one where libvirt reaches both by ssh(1), and where this
    machine's folder for temporary files lets programs be run. The target's connection must have no keep-alive of
    libvirt's own, which would be noticed too late.
    """
    if not all(urlsplit(uri).scheme.endswith("+ssh") for uri in (source, target)):
        yield None
        return
    Path(folder).mkdir(mode=0o700)
    try:
        ends = tuple(_by_pump(uri, role, folder) for uri, role in ((source, "source"), (target, "target")))
        yield (ends[0], ends[1]) if os.access(f"{folder}/ssh-source", os.X_OK) else None
    finally:
        swept(folder)


def _by_pump(uri: str, role: str, folder: str) -> str:
    parts = urlsplit(uri)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    pump = str(Path(__file__).with_name("pump.py"))
    words = [sys.executable, "-I", "-S", pump, role, folder, given.get("command") or "ssh"]
    script = Path(folder, f"ssh-{role}")
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o700)
    given["command"] = str(script)
    return urlunsplit(parts._replace(query=urlencode(given, quote_via=quote, safe="/")))
