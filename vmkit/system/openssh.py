"""ssh(1) as a child process: the command line for a server whose host key has a name of its own, and programs there.

ssh(1) and not a library, so that the user's agent, smart cards and ~/.ssh/config hold here as in a terminal.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from vmkit.errors import DeadlineError, EffectError, UnreachableError, UnsupportedError
from vmkit.system.process import Completed

_FAILED: Final = 255  # ssh(1), EXIT STATUS
_POLL: Final = 0.2


@dataclass(frozen=True, slots=True)
class Server:
    """An ssh server, and what it takes to be let in.

    Attributes:
        address: IP address or name.
        port: of its ssh server.
        user: account; None for the one that ssh(1) takes by itself.
        alias: name under which its host key is known.
        known_hosts: file with its host key.
        known: whether the key is there already; if not, the first one that comes is taken and kept.
        keys: private key files to try, and no others; none for those that ssh(1) tries by itself.
        proxy: command whose streams lead to the server; empty for a direct connection.
    """

    address: str
    port: int
    user: str | None
    alias: str
    known_hosts: Path
    known: bool
    keys: tuple[Path, ...] = ()
    proxy: tuple[str, ...] = field(default=())

    @property
    def where(self) -> str:
        """The server, for messages."""
        return f"{self.user + '@' if self.user else ''}{self.address} port {self.port}"

    def argv(self, command: Sequence[str] = (), *, quiet: bool = False) -> list[str]:
        """The command line of ssh(1).

        Args:
            command: program and arguments to run there, each word as it is; empty for a login shell.
            quiet: ask nothing, print only errors.
        """
        words = ["ssh", "-p", str(self.port), *(["-l", self.user] if self.user else [])]
        options = {
            "HostKeyAlias": self.alias,
            "UserKnownHostsFile": _value(str(self.known_hosts)),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes" if self.known else "accept-new",
            "CheckHostIP": "no",
            "UpdateHostKeys": "no",
            "ServerAliveInterval": "15",
            "LogLevel": "ERROR",
        }
        if self.keys:
            options["IdentitiesOnly"] = "yes"
        if self.proxy:
            # %% is a percent sign to ssh; %h and %p are its own words.
            parts = [w if w == "%h:%p" else w.replace("%", "%%") for w in self.proxy]
            options["ProxyCommand"] = shlex.join(parts)
        if quiet:
            options |= {"BatchMode": "yes", "ConnectTimeout": "10"}
        for key in self.keys:
            words += ["-i", str(key)]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        words += ["--", self.address]
        return [*words, shlex.join(command)] if command else words

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: BinaryIO | None = None,
        stdout: BinaryIO | None = None,
        timeout: float = 60.0,
        tick: Callable[[], None] = lambda: None,
    ) -> Completed:
        """Run a program there to its end; its exit status is not looked at.

        Args:
            command: program and arguments.
            stdin: open file that it reads from where that stands; nothing if None.
            stdout: open file that takes what it writes; None returns it.
            timeout: seconds until it is given up.
            tick: called a few times a second while it runs.

        Raises:
            UnsupportedError: ssh is not installed.
            UnreachableError: ssh could not get in, or the connection broke.
            DeadlineError: it has not ended in time; it may go on there.
        """
        done = _run(self.argv(command, quiet=True), stdin, stdout, timeout, tick, f"'{command[0]}' on {self.where}")
        if done.status == _FAILED:
            tail = done.stderr.strip().splitlines()[-4:]
            raise UnreachableError(
                f"ssh to {self.where}: {tail[-1].strip() if tail else 'the connection broke'}",
                hint=f"see where it is stuck: ssh -v -p {self.port} {self.address}",
            )
        return done


def _value(text: str) -> str:
    """A file name as ssh_config(5) takes it: percent signs doubled, quotation marks where there is a blank."""
    text = text.replace("%", "%%")
    return f'"{text}"' if any(c.isspace() for c in text) else text


def _run(
    argv: Sequence[str],
    stdin: BinaryIO | None,
    stdout: BinaryIO | None,
    timeout: float,
    tick: Callable[[], None],
    what: str,
) -> Completed:
    import time

    end = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(tempfile.TemporaryFile()) if stdout is None else stdout
        err = stack.enter_context(tempfile.TemporaryFile())
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=out,
                stderr=err,
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError as e:
            raise UnsupportedError("the program 'ssh' is not installed", hint="apt-get install openssh-client") from e
        try:
            while True:
                try:
                    status = child.wait(_POLL)
                    break
                except subprocess.TimeoutExpired:
                    tick()
                if time.monotonic() > end:
                    raise DeadlineError(f"{what} has not ended within {timeout:g} s")
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        return Completed(status, _text(out) if stdout is None else "", _text(err))


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def check(done: Completed, what: str) -> Completed:
    """Return `done` if it ended well.

    Raises:
        EffectError: it did not; with what it said last.
    """
    if done.status != 0:
        tail = tuple((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:])
        last = f": {tail[-1].strip()}" if tail else f" (status {done.status})"
        raise EffectError(f"{what}{last}", details=tail[:-1])
    return done
