"""A micro guest under a bare QEMU: serial console, monitor and agent on unix sockets, user networking."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmkit.image.manifest import Image


class Bare:
    """Use as a context manager; the process is gone afterwards."""

    def __init__(self, image: Image, folder: Path, *, cmdline: str = "", extra: Sequence[str] = (), disk: bool = True):
        assert image.kernel
        assert image.initrd
        assert image.disk
        self.folder = folder
        self.udp = {7: _free_port(), 7007: _free_port()}
        forward = ",".join(f"hostfwd=udp:127.0.0.1:{host}-:{guest}" for guest, host in self.udp.items())
        self.argv = [
            *("qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-nodefaults", "-no-user-config"),
            *("-display", "none", "-m", "256M", "-smp", "1"),
            *("-kernel", str(image.kernel.path), "-initrd", str(image.initrd.path)),
            *("-append", f"{image.cmdline} {cmdline}"),
            *("-chardev", f"socket,id=c0,path={folder}/console,server=on,wait=on,logfile={folder}/console.log"),
            *("-serial", "chardev:c0", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=ga,path={folder}/ga,server=on,wait=off"),
            *("-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0", "-device", "virtio-rng-pci"),
            *("-netdev", f"user,id=n0,{forward}", "-device", "virtio-net-pci,netdev=n0,romfile="),
            *extra,
        ]
        if disk:
            self.argv += ["-drive", f"file={image.disk.path},if=none,id=d0,snapshot=on"]
            self.argv += ["-device", "virtio-blk-pci,drive=d0"]

    def __enter__(self) -> Bare:
        with (self.folder / "qemu.log").open("wb") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.console = self._connect("console")
        self.seen = b""
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.wait()
        self.console.close()

    def _connect(self, name: str) -> socket.socket:
        for _ in range(200):
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(str(self.folder / name))
                return s
            except OSError:
                s.close()
                assert self.process.poll() is None, (self.folder / "qemu.log").read_text()
                time.sleep(0.05)
        raise AssertionError(f"QEMU opened no socket '{name}'")

    def expect(self, pattern: str, deadline: float = 60.0) -> re.Match[bytes]:
        """Wait until the console shows the pattern; what came before it is not looked at again."""
        compiled = re.compile(pattern.encode())
        end = time.monotonic() + deadline
        while not (match := compiled.search(self.seen)):
            self.console.settimeout(max(0.01, end - time.monotonic()))
            try:
                data = self.console.recv(4096)
            except TimeoutError:
                data = b""
            assert data, f"{pattern!r} was not seen; the end of the console is {self.seen[-600:]!r}"
            self.seen += data
        self.seen = self.seen[match.end() :]
        return match

    def shell(self, command: str) -> str:
        """Run a command in the shell on the console; returns what it printed."""
        self.console.sendall(f"echo BEG''IN; {command}; echo E''ND $?\n".encode())
        match = self.expect(r"BEGIN\r\n((?:.|\n)*?)END (\d+)")
        return match[1].decode().replace("\r\n", "\n")

    def ask_udp(self, port: int, data: bytes, tries: int = 10) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(2.0)
            for _ in range(tries):
                s.sendto(data, ("127.0.0.1", self.udp[port]))
                try:
                    return s.recv(65536)
                except TimeoutError:
                    continue
        raise AssertionError(f"no answer from UDP port {port}")

    def counter(self) -> int:
        return int(self.ask_udp(7007, b"?"))

    def qmp(self, *commands: str) -> list[Any]:
        with self._connect("qmp") as s, s.makefile("rw") as f:
            f.readline()
            answers = []
            for command in ("qmp_capabilities", *commands):
                f.write(json.dumps({"execute": command}) + "\n")
                f.flush()
                while "event" in (answer := json.loads(f.readline())):
                    pass
                answers.append(answer["return"])
        return answers[1:]

    def agent(self, command: str, **arguments: Any) -> Any:
        with self._connect("ga") as s, s.makefile("rw") as f:
            s.settimeout(60.0)
            f.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            f.flush()
            return json.loads(f.readline())["return"]

    def agent_exec(self, *argv: str) -> tuple[int, str]:
        pid = self.agent("guest-exec", path=argv[0], arg=list(argv[1:]), **{"capture-output": True})["pid"]
        for _ in range(200):
            status = self.agent("guest-exec-status", pid=pid)
            if status["exited"]:
                return status["exitcode"], base64.b64decode(status.get("out-data", "")).decode()
            time.sleep(0.1)
        raise AssertionError(f"{argv} did not end in the guest")


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
