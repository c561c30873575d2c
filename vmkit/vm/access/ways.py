"""Two ways into a guest: its agent, and ssh. Both run programs and move the bytes of files."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Final, Protocol

from vmkit.errors import EffectError, VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.system import openssh
from vmkit.system.openssh import Server
from vmkit.system.process import Completed
from vmkit.vm import guest

PUT: Final = 64 << 10
GET: Final = 512 << 10
"""Bytes in one call of the agent. A call that is larger than the send buffer of libvirt's socket (208 KiB) was never
answered by libvirt 11.3 and QEMU 10.0, and no other one after it; base64 makes a third more of them."""
TRANSFER: Final = 6 * 3600.0
"""Seconds until a transfer is given up that still goes on."""
_PATIENCE: Final = 60
Advance = Callable[[int], None]
"""Called with the bytes moved so far."""


class Way(Protocol):
    """A way into a guest. Programs are run without a shell; paths and words arrive as they are."""

    name: str

    @property
    def vm(self) -> str:
        """Name of the VM, for messages."""

    def run(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes | None = None) -> Completed:
        """Run a program to its end; its exit status is not looked at."""

    def put(self, source: BinaryIO, path: str, advance: Advance) -> None:
        """Write what is left of `source` to a file in the guest, which only its owner can read."""

    def get(self, path: str, sink: BinaryIO, advance: Advance) -> None:
        """Write the content of a file in the guest to `sink`."""

    def feed(self, argv: Sequence[str], source: BinaryIO, advance: Advance) -> Completed:
        """Run a program that reads what is left of `source`."""

    def drain(self, argv: Sequence[str], sink: BinaryIO, advance: Advance) -> Completed:
        """Run a program that writes to `sink`."""


class ByAgent:
    """The guest agent: as root, and without a network. Streams go through a file in the guest's /var/tmp."""

    name = "agent"

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    @property
    def vm(self) -> str:
        """Name of the VM, for messages."""
        return self.domain.name

    def run(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes | None = None) -> Completed:
        """Run a program to its end; its exit status is not looked at."""
        if stdin is not None and len(stdin) > PUT:
            with tempfile.TemporaryFile() as f:
                f.write(stdin)
                f.seek(0)
                return self.feed(argv, f, lambda _done: None, timeout=timeout)
        return guest.run(self.domain, argv, timeout=timeout, stdin=stdin)

    def put(self, source: BinaryIO, path: str, advance: Advance) -> None:
        """Write what is left of `source` to a file in the guest, which only its owner can read."""
        openssh.check(
            self.run(["sh", "-c", 'umask 077; : >"$1"', "sh", path]), f"cannot write {path} in {self.domain.name}"
        )
        handle = self._call("guest-file-open", path=path, mode="w")
        done = 0
        try:
            while chunk := source.read(PUT):
                view = memoryview(chunk)
                while view:
                    data = base64.b64encode(view).decode()
                    count = self._call("guest-file-write", handle=handle, **{"buf-b64": data})["count"]
                    if count <= 0:
                        raise EffectError(
                            f"{path} in {self.domain.name}: the guest agent writes no more of it",
                            hint=f"is there room? vmkit exec {self.domain.name} -- df -h",
                        )
                    view = view[count:]
                    done += count
                    advance(done)
        finally:
            self._call("guest-file-close", handle=handle)

    def get(self, path: str, sink: BinaryIO, advance: Advance) -> None:
        """Write the content of a file in the guest to `sink`."""
        handle = self._call("guest-file-open", path=path, mode="r")
        done = 0
        try:
            while True:
                answer = self._call("guest-file-read", handle=handle, count=GET)
                done += sink.write(base64.b64decode(answer["buf-b64"]))
                advance(done)
                if answer["eof"] or not answer["count"]:
                    return
        finally:
            self._call("guest-file-close", handle=handle)

    def feed(self, argv: Sequence[str], source: BinaryIO, advance: Advance, *, timeout: float = TRANSFER) -> Completed:
        """Run a program that reads what is left of `source`."""
        staged = self._staging_file()
        try:
            self.put(source, staged, advance)
            return self.run(["sh", "-c", 'f=$1; shift; exec "$@" <"$f"', "sh", staged, *argv], timeout=timeout)
        finally:
            self.run(["rm", "-f", staged])

    def drain(self, argv: Sequence[str], sink: BinaryIO, advance: Advance) -> Completed:
        """Run a program that writes to `sink`."""
        staged = self._staging_file()
        try:
            script = 'f=$1; shift; exec "$@" >"$f"'
            done = self.run(["sh", "-c", script, "sh", staged, *argv], timeout=TRANSFER)
            if done.status == 0:
                self.get(staged, sink, advance)
            return done
        finally:
            self.run(["rm", "-f", staged])

    def _staging_file(self) -> str:
        # Not /tmp, which is often memory.
        script = "umask 077; d=/var/tmp; [ -d $d ] || d=/tmp; mktemp $d/vmkit-XXXXXX"
        made = openssh.check(self.run(["sh", "-c", script]), f"cannot make a file in {self.domain.name}")
        return made.stdout.strip()

    def _call(self, command: str, **arguments: Any) -> Any:
        try:
            return guest.call(self.domain, command, arguments, timeout=_PATIENCE)
        except VmkitError as e:
            path = arguments.get("path", "the file")
            raise EffectError(f"{path} in {self.domain.name}: {e.message}", hint=e.hint) from e


class BySsh:
    """An ssh server: as its user, over the network."""

    name = "ssh"

    def __init__(self, server: Server, vm: str) -> None:
        self.server = server
        self.vm = vm

    def run(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes | None = None) -> Completed:
        """Run a program to its end; its exit status is not looked at."""
        if stdin is None:
            return self.server.run(argv, timeout=timeout)
        with tempfile.TemporaryFile() as f:
            f.write(stdin)
            f.seek(0)
            return self.server.run(argv, stdin=f, timeout=timeout)

    def put(self, source: BinaryIO, path: str, advance: Advance) -> None:
        """Write what is left of `source` to a file in the guest, which only its owner can read."""
        done = self.feed(["sh", "-c", 'umask 077; cat >"$1"', "sh", path], source, advance)
        openssh.check(done, f"cannot write {path} on {self.server.where}")

    def get(self, path: str, sink: BinaryIO, advance: Advance) -> None:
        """Write the content of a file in the guest to `sink`."""
        openssh.check(self.drain(["cat", "--", path], sink, advance), f"cannot read {path} on {self.server.where}")

    def feed(self, argv: Sequence[str], source: BinaryIO, advance: Advance) -> Completed:
        """Run a program that reads what is left of `source`."""
        begin = source.tell()
        source.seek(begin)  # ssh goes on from where the file's own position is, which buffering may have moved on

        def tick() -> None:
            advance(os.lseek(source.fileno(), 0, os.SEEK_CUR) - begin)

        return self.server.run(argv, stdin=source, timeout=TRANSFER, tick=tick)

    def drain(self, argv: Sequence[str], sink: BinaryIO, advance: Advance) -> Completed:
        """Run a program that writes to `sink`."""
        sink.flush()
        begin = os.fstat(sink.fileno()).st_size
        return self.server.run(
            argv, stdout=sink, timeout=TRANSFER, tick=lambda: advance(os.fstat(sink.fileno()).st_size - begin)
        )
