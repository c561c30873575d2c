"""`vmkit hotfix watch`: VMs that others start are patched; patches retire; it ends in order."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.test_hotfix_lifetime import DURING, QEMU, edu, spec
from vmkit.client import Client
from vmkit.hotfix import undo
from vmkit.hypervisor.domain import DomainState
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab

PATIENCE = 240.0
VMKIT = str(Path(sys.executable).parent / "vmkit")


def wait_for(wanted: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not wanted():
        assert time.monotonic() < end, what
        time.sleep(0.3)


class Watching:
    """The service as a process of its own; what it says is kept."""

    def __init__(self, uri: str) -> None:
        # A shell that put these tests into the background has SIGINT ignored, and children with it.
        argv = ["env", "--default-signal=INT", VMKIT, "-c", uri, "hotfix", "watch"]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        self.said: list[str] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.said.append(line.rstrip())

    def hears(self, words: str) -> None:
        wait_for(lambda: any(words in line for line in self.said), f"{words!r} in {self.said}")

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        assert self.process.stderr
        self.process.stderr.close()
        return status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order(number: signal.Signals, pair: Lab) -> None:
    watching = Watching(pair.host("h2").uri)
    try:
        watching.hears("watching the VMs of")
    finally:
        status = watching.end(number)
    assert status == 0, watching.said
    assert watching.said[-1] == f"ended by {'Ctrl-C' if number == signal.SIGINT else number.name}"


def test_vms_that_others_start_are_patched_and_the_patch_retires(
    pair: Lab, micro: Image, client_h1: Client, tmp_path: Path
) -> None:
    patch, hotfixes = tmp_path / "edu-watch.toml", client_h1.hotfixes
    hotfixes.make(QEMU, find="b8 ed 00 00 01", replace="b8 ed 00 00 02", id="edu-watch", path=patch)
    client_h1.vms.create(spec("watched"), wait=True, deadline=300.0)
    watching = None
    try:
        assert hotfixes.apply(patch, allow_unsigned=True, max_pause=60).state == "applied"
        domain = client_h1.host.domain("watched")
        domain.destroy()
        watching = Watching(pair.host("h1").uri)
        watching.hears("watching the VMs of")
        domain.handle.create()  # as virsh does: nobody attends
        watching.hears("watched: edu-watch put into its process")
        client_h1.vms.get("watched").wait(deadline=300.0)
        assert edu(client_h1, "watched") == DURING
        assert domain.state() is DomainState.RUNNING
        assert [e.what for e in hotfixes.history() if e.id == "edu-watch"][-1] == "patched by watch"

        undo.activate("edu-watch", on=True, files={str(QEMU): "00" * 20})  # as if the file were of another build
        domain.destroy()
        watching.hears("edu-watch: retired")
        assert not [r for r in undo.active() if r.patch_id == "edu-watch"]
    finally:
        status = watching.end(signal.SIGTERM) if watching else 0
        client_h1.vms.get("watched").delete(force=True)
    assert status == 0
