"""A shell on a host that a libvirt URI names: this machine's own, or one behind the ssh(1) that libvirt would run too.

So whatever the user set up for `qemu+ssh://` (agent, ~/.ssh/config, jump hosts, known hosts) holds here as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import parse_qs, quote, urlsplit

from vmkit.errors import SpecError, UnreachableError, UnsupportedError
from vmkit.system.process import Completed, run
from vmkit.values import quoted

CONNECT_TIMEOUT: Final = 10
"""Seconds for the TCP connection to the ssh server."""
_SSH_FAILED: Final = 255  # ssh(1), EXIT STATUS
_WORD = re.compile(r"[A-Za-z0-9_.:%\[][A-Za-z0-9_.:%@\[\]-]*\Z", re.ASCII)
_TARGET = re.compile(
    r"(?:([A-Za-z0-9_][A-Za-z0-9_.-]*)@)?([A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?\Z"
)


@dataclass(frozen=True, slots=True)
class Shell:
    """Where a script can be run.

    Attributes:
        argv: the program that reads the script from its standard input.
        where: the host, for messages.
        remote: whether it is another machine.
    """

    argv: tuple[str, ...]
    where: str
    remote: bool

    @classmethod
    def local(cls) -> Self:
        """This machine's /bin/sh."""
        return cls(("/bin/sh",), "this machine", False)

    @classmethod
    def of_uri(cls, uri: str) -> Self:
        """The shell of the host that a libvirt URI names.

        The parameters `command`, `keyfile`, `known_hosts`, `no_verify` and `no_tty` mean what they mean to libvirt
        (https://libvirt.org/uri.html). ssh never asks for anything: it is run with BatchMode.

        Raises:
            SpecError: the URI is not one.
            UnsupportedError: it names another machine, and not by way of ssh.
        """
        try:
            parts = urlsplit(uri)
            host, user, port = parts.hostname or "", parts.username or "", parts.port
        except ValueError as e:
            raise SpecError(f"{quoted(uri)} is not a libvirt URI", path="--connect") from e
        if not host:
            return cls.local()
        if parts.scheme.partition("+")[2] not in ("ssh", "libssh", "libssh2"):
            raise UnsupportedError(
                f"{quoted(uri)} leads to libvirt alone, and most of a host's facts are found beside it",
                hint=f"give a way in with --ssh: --ssh root@{host}",
            )
        if not _WORD.match(host) or (user and not _WORD.match(user)):
            raise SpecError(f"{quoted(uri)} has a host or user that ssh would not take", path="--connect")
        given = {k: v[-1] for k, v in parse_qs(parts.query).items()}
        options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT}"]
        if given.get("no_verify") == "1":
            options += ["-o", "StrictHostKeyChecking=no"]
        if known := given.get("known_hosts"):
            options += ["-o", f"UserKnownHostsFile={known}"]
        if key := given.get("keyfile"):
            options += ["-i", key]
        options += ["-p", str(port)] if port else []
        options += ["-l", user] if user else []
        return cls((given.get("command") or "ssh", *options, "--", host, "exec /bin/sh"), host, True)

    def run_script(self, script: str, *, timeout: float) -> Completed:
        """Run a script to its end; its exit status is not looked at.

        Raises:
            UnreachableError: ssh could not get in.
            UnsupportedError: there is no ssh here.
            DeadlineError: it did not end within `timeout` seconds.
        """
        done = run(self.argv, stdin=script, timeout=timeout, check=False)
        if self.remote and done.status == _SSH_FAILED:
            tail = done.stderr.strip().splitlines()[-4:]
            raise UnreachableError(
                f"ssh to {self.where}: {tail[-1].strip() if tail else 'no answer'}",
                hint=f"see that this works without a question: {' '.join(self.argv[:-1])} true",
                details=tuple(tail[:-1]),
            )
        return done


def ssh_uri(target: str, identity: str | None = None) -> str:
    """The libvirt URI for `[USER@]HOST[:PORT]`, with a private key file if one is named.

    Raises:
        SpecError: it is not written like that.
    """
    match = _TARGET.match(target)
    if not match or not 0 < int(match[3] or 22) < 65536:
        raise SpecError(f"{quoted(target)} is not [USER@]HOST[:PORT]", path="--ssh", hint="write it like root@host:22")
    user, host, port = match[1], match[2], match[3]
    key = f"?keyfile={quote(identity, safe='/')}" if identity else ""
    return f"qemu+ssh://{user + '@' if user else ''}{host}{':' + port if port else ''}/system{key}"
