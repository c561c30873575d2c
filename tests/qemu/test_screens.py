"""Consoles and screens of real guests, at a terminal as a user sits at it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.conftest import sweep
from tests.unit.test_display import chunks
from vmkit.client import Client
from vmkit.image.manifest import Image
from vmkit.vm.machine import Vm

WAIT = 180.0
ATTACHED = b"Ctrl-] detaches"


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, argv: list[str]) -> None:
        self.seen = b""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(argv[0], argv)  # noqa: S606 - the child of a test

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def read(self) -> bool:
        """Take what has come; False at the end of it."""
        if not select.select([self._fd], [], [], 0.5)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: the program has ended
            return False
        self.seen += data
        return bool(data)

    def until(self, text: bytes, seconds: float = WAIT) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert self.read(), f"ended: {self.seen[-2000:]!r}"
            assert time.monotonic() < end, f"no {text!r}: {self.seen[-2000:]!r}"

    def end(self) -> int:
        while self.read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def console(uri: str, name: str, *more: str) -> Terminal:
    return Terminal([sys.executable, "-m", "vmkit", "-c", uri, "console", name, *more])


def plain(data: bytes) -> bytes:
    """Without what moves a cursor, asks a terminal or ends a line."""
    return re.sub(rb"\x1b\[[0-9;?>=]*[A-Za-z]|\x1b[cZ]|[\r\n]", b"", data)


@pytest.fixture(scope="module")
def screen_vm(pair: object, micro: Image) -> Iterator[tuple[Client, Vm]]:
    """A micro guest with a screen."""
    with Client(pair.host("h1").uri) as client:  # type: ignore[attr-defined]
        spec = {"name": "eyes", "image": micro.name, "memory": "192M", "display": "vnc", "nics": [{"network": "none"}]}
        made = client.vms.create(spec, wait=True, deadline=WAIT)
        yield client, made.vm
        sweep(client)


def test_a_console_has_all_from_the_first_byte_and_then_what_comes(screen_vm: tuple[Client, Vm]) -> None:
    client, vm = screen_vm
    terminal = console(client.host.uri, vm.name)
    terminal.until(ATTACHED)
    for number in range(1, 6):  # answers of the guest, and their echoes
        terminal.type(b"echo answer-$((%d * 111)); counter\r" % number)
        terminal.until(b"answer-%d\r\n" % (number * 111))
    time.sleep(1)
    terminal.type(b"\x1d")
    assert terminal.end() == 0
    assert b"detached" in terminal.seen
    history, live = terminal.seen.split(b"--- console of", 1)
    assert b"vmkit-micro: kernel up" in history
    live = live.partition(b"---")[2].rpartition(b"--- detached")[0]
    log = vm.log().encode()
    assert plain(history + live) == plain(log)


def test_a_console_that_is_opened_while_the_guest_talks_misses_nothing(screen_vm: tuple[Client, Vm]) -> None:
    client, vm = screen_vm
    talk = "i=0; while [ $i -lt 400 ]; do echo line-$i >/dev/ttyS0; i=$((i + 1)); usleep 10000; done"
    vm.guest_exec(["sh", "-c", f"({talk}) >/dev/null 2>&1 &"])
    terminal = console(client.host.uri, vm.name)
    terminal.until(b"line-399\r")
    terminal.type(b"\x1d")
    assert terminal.end() == 0
    said = re.findall(rb"line-(\d+)\r", terminal.seen)
    assert [int(n) for n in said] == list(range(400))


def test_a_second_user_is_refused_and_may_insist(screen_vm: tuple[Client, Vm]) -> None:
    client, vm = screen_vm
    first = console(client.host.uri, vm.name)
    first.until(ATTACHED)
    refused = subprocess.run(
        [sys.executable, "-m", "vmkit", "-c", client.host.uri, "console", vm.name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert refused.returncode == 3, refused.stderr
    assert f"vmkit console --force {vm.name}" in refused.stderr
    second = console(client.host.uri, vm.name, "--force")
    second.until(ATTACHED)
    first.until(b"closed")
    assert first.end() == 0
    second.type(b"\x1d")
    assert second.end() == 0


def test_the_screen_is_where_it_is_said_to_be(screen_vm: tuple[Client, Vm]) -> None:
    client, vm = screen_vm
    done = vmkit("display", vm.name, "-o", "json", uri=client.host.uri)
    [shown] = json.loads(done.stdout)
    assert shown["kind"] == "vnc"
    assert shown["listen"] == "127.0.0.1"
    assert shown["uri"] == f"vnc://127.0.0.1:{shown['port']}"
    assert f":127.0.0.1:{shown['port']} " in shown["tunnel"]


def test_a_picture_of_what_the_guest_shows(screen_vm: tuple[Client, Vm], tmp_path: Path) -> None:
    client, vm = screen_vm
    target = tmp_path / "eyes.png"
    done = vmkit("screenshot", vm.name, str(target), uri=client.host.uri)
    assert done.returncode == 0, done.stderr
    parts = chunks(target.read_bytes())
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    assert (width, height) >= (640, 400)
    assert any(zlib.decompress(parts[b"IDAT"])), "at least the words of the firmware should be on the screen"


def test_a_vm_without_a_screen_says_so(client_h1: Client, micro: Image) -> None:
    client_h1.vms.create({"name": "blind", "image": micro.name, "memory": "192M", "nics": [{"network": "none"}]})
    try:
        for command in ("display", "screenshot"):
            done = vmkit(command, "blind", uri=client_h1.host.uri)
            assert done.returncode == 3, done.stderr
            assert "--display vnc" in done.stderr
    finally:
        client_h1.vms.get("blind").delete(force=True)


def vmkit(*argv: str, uri: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmkit", "-c", uri, *argv], capture_output=True, text=True, timeout=WAIT, check=False
    )
