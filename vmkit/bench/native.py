"""Running the programs of the bench image on the host itself: the same files, the same C library."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from vmkit.bench.workloads import DISK_MIB
from vmkit.errors import UnsupportedError
from vmkit.image import bench
from vmkit.image.manifest import Image
from vmkit.system.files import ensure_dir, home, locked
from vmkit.system.process import Completed, find_program, run, spawn

PORT: Final = "5201"
"""Of iperf3's server, its default."""


class Native:
    """The host as one of the things that are measured.

    Args:
        image: the bench image.
    """

    def __init__(self, image: Image) -> None:
        self._folder = unpacked(image)
        # One CPU, as a guest has one virtual CPU; the last, since the first one serves most interrupts.
        cpu = str(max(os.sched_getaffinity(0)))
        self._pin = [str(find_program("taskset", package="util-linux")), "--cpu-list", cpu]

    def run(self, program: str, arguments: Sequence[str], timeout: float, *, pinned: bool = True) -> Completed:
        """Run a program of the image."""
        argv = bench.command(str(self._folder), program, arguments)
        return run([*self._pin, *argv] if pinned else argv, timeout=timeout, check=False)

    @contextlib.contextmanager
    def data_file(self) -> Iterator[str]:
        """A file of DISK_MIB in the host's page cache."""
        path = ensure_dir(home() / "bench") / f"data-{os.getpid()}"
        try:
            with path.open("wb") as f:
                for _ in range(DISK_MIB):
                    f.write(os.urandom(1 << 20))
            yield str(path)
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def server(self) -> Iterator[str]:
        """An iperf3 server on the loopback interface; yields its address."""
        log = ensure_dir(home() / "bench") / "iperf3.log"
        log.unlink(missing_ok=True)
        arguments = ["--server", "--bind", "127.0.0.1", "--port", PORT]
        process = spawn(bench.command(str(self._folder), "iperf3", arguments), log=log)
        try:
            yield "127.0.0.1"
        finally:
            process.kill(signal.SIGTERM)
            log.unlink(missing_ok=True)


def unpacked(image: Image) -> Path:
    """The folder with the image's programs on this machine; filled when it is first asked for.

    Raises:
        UnsupportedError: the image has none.
        EffectError: they cannot be taken out of its disk.
    """
    if image.programs is None:
        raise UnsupportedError(f"the image '{image.name}' has no programs", hint="vmkit image build bench --force")
    base = ensure_dir(home() / "cache")
    folder = base / f"bench-{image.programs.sha256[:16]}"
    with locked(base / "bench.lock", busy="another process unpacks the bench image", wait=120):
        if not folder.is_dir():
            for old in base.glob("bench-*"):
                shutil.rmtree(old, ignore_errors=True)
            temporary = base / "bench.new"
            shutil.rmtree(temporary, ignore_errors=True)
            bench.unpack(image, ensure_dir(temporary))
            temporary.rename(folder)
    return folder / bench.FOLDER
