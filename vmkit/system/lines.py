"""Unix sockets that are spoken to line by line: QEMU's monitor (QMP), and serial ports of virtual machines."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any, Final, Self

from vmkit.errors import DeadlineError, EffectError, RefusedError, UnreachableError
from vmkit.system.clock import Deadline

PATH_LIMIT: Final = 107
"""Longest path of a Unix socket in bytes (unix(7): 108 with the final zero)."""
_CONNECT_INTERVAL: Final = 0.05


def check_socket_path(path: Path) -> None:
    """See that a path can be that of a Unix socket.

    Raises:
        RefusedError: it is too long.
    """
    if len(bytes(path)) > PATH_LIMIT:
        raise RefusedError(
            f"{path} is too long for a socket (at most {PATH_LIMIT} bytes)",
            hint="set VMKIT_HOME to a folder with a shorter name, or give the lab a shorter name",
        )


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        number: int = s.getsockname()[1]
        return number


class LineSocket:
    """A connection to a Unix socket. A context manager that closes it."""

    def __init__(self, path: Path, sock: socket.socket) -> None:
        self.path = path
        self._sock = sock
        self._rest = b""

    @classmethod
    def open(cls, path: Path, *, timeout: float) -> Self:
        """Connect, waiting for the socket to be there.

        Raises:
            UnreachableError: nobody listened within `timeout` seconds.
        """
        deadline = Deadline(timeout)
        found: list[socket.socket] = []

        def probe() -> bool:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(path))
            except OSError:
                sock.close()
                return False
            found.append(sock)
            return True

        try:
            deadline.wait_for(f"{path.name} of {path.parent.name}", probe, interval=_CONNECT_INTERVAL)
        except DeadlineError as e:
            raise UnreachableError(f"nobody listens on {path} after {timeout:g} s") from e
        return cls(path, found[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; safe to call twice."""
        with contextlib.suppress(OSError):
            self._sock.close()

    def send(self, line: str) -> None:
        """Send a line.

        Raises:
            UnreachableError: nobody is at the other end any more.
        """
        try:
            self._sock.settimeout(10.0)
            self._sock.sendall(line.encode() + b"\n")
        except OSError as e:
            raise UnreachableError(f"{self.path}: {e.strerror or 'no answer'}") from e

    def receive(self, timeout: float) -> str | None:
        """The next line; None if none came within `timeout` seconds.

        Raises:
            UnreachableError: the other end was closed.
        """
        deadline = Deadline(timeout)
        while b"\n" not in self._rest:
            self._sock.settimeout(max(deadline.left, 0.001))
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                return None
            except OSError as e:
                raise UnreachableError(f"{self.path}: {e.strerror or e}") from e
            if not data:
                raise UnreachableError(f"{self.path}: closed by the other end")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")


class Qmp:
    """QEMU's monitor (https://www.qemu.org/docs/master/interop/qmp-spec.html). A context manager that closes it."""

    def __init__(self, lines: LineSocket) -> None:
        self._lines = lines

    @classmethod
    def open(cls, path: Path, *, timeout: float = 30.0) -> Self:
        """Connect, and be greeted.

        Raises:
            UnreachableError: nobody answers.
        """
        lines = LineSocket.open(path, timeout=timeout)
        monitor = cls(lines)
        try:
            if lines.receive(timeout) is None:
                raise UnreachableError(f"no greeting on {path} within {timeout:g} s")
            monitor.execute("qmp_capabilities", timeout=timeout)
        except BaseException:
            lines.close()
            raise
        return monitor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._lines.close()

    def execute(self, command: str, *, timeout: float = 30.0, **arguments: Any) -> Any:
        """Run a command and return what it answers; events that come meanwhile are dropped.

        Raises:
            EffectError: QEMU refused it.
            DeadlineError: no answer within `timeout` seconds.
            UnreachableError: QEMU is gone.
        """
        self._lines.send(json.dumps({"execute": command, "arguments": arguments}))
        deadline = Deadline(timeout)
        while True:
            line = self._lines.receive(deadline.left)
            if line is None:
                raise DeadlineError(f"QEMU does not answer to '{command}' within {timeout:g} s")
            answer = json.loads(line)
            if "error" in answer:
                raise EffectError(f"QEMU refused '{command}': {answer['error'].get('desc', 'no reason given')}")
            if "return" in answer:
                return answer["return"]
