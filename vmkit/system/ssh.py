"""Running commands on another host over ssh, in process (paramiko). Host keys are always checked."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import paramiko

from vmkit.errors import DeadlineError, EffectError, UnreachableError
from vmkit.system.clock import Deadline
from vmkit.system.process import Completed

_AGAIN: Final = "see that the host is up and that ssh to it works, and try again"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An ssh server and what it takes to be let in: user, private key file, and the file with the server's key."""

    host: str
    port: int
    user: str
    key: Path
    known_hosts: Path


class Connection:
    """An authenticated connection. A context manager that closes it."""

    def __init__(self, endpoint: Endpoint, client: paramiko.SSHClient) -> None:
        self.endpoint = endpoint
        self._client = client

    @classmethod
    def open(cls, endpoint: Endpoint, *, timeout: float = 10.0) -> Self:
        """Connect and log in. The user's own keys, agent and known_hosts are not looked at.

        Raises:
            UnreachableError: no answer within `timeout` seconds, an unknown or a changed host key, or not let in.
        """
        where = f"{endpoint.user}@{endpoint.host} port {endpoint.port}"
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            client.load_host_keys(str(endpoint.known_hosts))
            client.connect(
                endpoint.host,
                endpoint.port,
                endpoint.user,
                key_filename=str(endpoint.key),
                timeout=timeout,
                banner_timeout=timeout,
                auth_timeout=timeout,
                allow_agent=False,
                look_for_keys=False,
            )
        except paramiko.BadHostKeyException as e:
            client.close()
            raise UnreachableError(
                f"ssh to {where}: the host key is not the one in {endpoint.known_hosts}",
                hint="if the host was set up anew, remove its old line from that file",
            ) from e
        except paramiko.AuthenticationException as e:
            client.close()
            raise UnreachableError(
                f"ssh to {where}: the key {endpoint.key} is not let in",
                hint=f"add {endpoint.key}.pub to the user's authorized_keys there",
            ) from e
        except (paramiko.SSHException, OSError, EOFError) as e:
            client.close()
            raise UnreachableError(
                f"ssh to {where}: {_text(e)}", hint="see that the host is up and its ssh server runs"
            ) from e
        return cls(endpoint, client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it. It is safe to call twice."""
        self._client.close()

    def run(
        self, argv: Sequence[str | Path], *, stdin: bytes = b"", timeout: float = 60.0, check: bool = True
    ) -> Completed:
        """Run a program there to its end. Each word of `argv` arrives as it is, whatever is in it.

        Args:
            argv: program and arguments.
            stdin: what it reads.
            timeout: seconds until this gives up; the program may then go on there.
            check: raise if the exit status is not 0.

        Raises:
            EffectError: it failed, and `check` is set.
            DeadlineError: it did not end in time.
            UnreachableError: the connection broke.
        """
        words = [str(a) for a in argv]
        deadline = Deadline(timeout)
        with self._broken_means_unreachable():
            transport = self._client.get_transport()
            if transport is None:
                raise UnreachableError(f"the ssh connection to {self.endpoint.host} is closed", hint=_AGAIN)
            with transport.open_session(timeout=timeout) as channel:
                channel.exec_command(shlex.join(words))
                done = _drain(channel, stdin, deadline, f"'{words[0]}' on {self.endpoint.host}")
        if check and done.status != 0:
            tail = tuple((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:])
            last = f": {tail[-1]}" if tail else ""
            raise EffectError(
                f"'{words[0]}' on {self.endpoint.host} failed with status {done.status}{last}", details=tail[:-1]
            )
        return done

    @contextmanager
    def _broken_means_unreachable(self) -> Iterator[None]:
        try:
            yield
        except (paramiko.SSHException, OSError, EOFError) as e:
            raise UnreachableError(f"the ssh connection to {self.endpoint.host} broke: {_text(e)}", hint=_AGAIN) from e


def _drain(channel: paramiko.Channel, stdin: bytes, deadline: Deadline, what: str) -> Completed:
    """Feed and read both streams by turns, so that neither side waits for the other for ever."""
    out, err, left = bytearray(), bytearray(), memoryview(stdin)
    closed = False
    while True:
        moved = False
        if left and channel.send_ready():
            left = left[channel.send(bytes(left[:32768])) :]
            moved = True
        if not left and not closed:
            channel.shutdown_write()
            closed = True
        while channel.recv_ready():
            out += channel.recv(65536)
            moved = True
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(65536)
            moved = True
        if channel.exit_status_ready() and channel.eof_received and not moved:
            return Completed(channel.recv_exit_status(), out.decode(errors="replace"), err.decode(errors="replace"))
        if channel.closed and not moved:
            raise EOFError(f"{what} ended without an exit status")
        if not moved:
            if deadline.passed:
                raise DeadlineError(f"{what} did not end within {deadline.seconds:g} s")
            time.sleep(0.005)


def _text(error: BaseException) -> str:
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "no answer"
    return " ".join(str(error).split()) or type(error).__name__
