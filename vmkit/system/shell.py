"""A shell on a host that a libvirt URI names: this machine's own, or one behind the ssh(1) that libvirt would run too.

So whatever the user set up for `qemu+ssh://` (agent, ~/.ssh/config, jump hosts, known hosts) holds here as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
class SshWay:
    """How ssh(1) gets to the host of a libvirt URI, as its parameters say (https://libvirt.org/uri.html).

    Attributes:
        host, user, port: of the URI; '' and 0 where it names none.
        program: that is run as ssh.
        key: private key file; '' for those that ssh tries by itself.
        given: all parameters.
    """

    host: str
    user: str
    port: int
    program: str
    key: str
    given: Mapping[str, str]

    @classmethod
    def of(cls, uri: str) -> Self | None:
        """None where the URI does not name another machine by way of ssh.

        Raises:
            ValueError: it is not a URI.
        """
        parts = urlsplit(uri)
        host, port = parts.hostname or "", parts.port or 0
        if parts.scheme.partition("+")[2] not in ("ssh", "libssh", "libssh2") or not host or host.startswith("-"):
            return None
        given = {k: v[-1] for k, v in parse_qs(parts.query).items()}
        program = given.get("command") or "ssh"
        return cls(host, parts.username or "", port, program, given.get("keyfile", ""), given)

    def options(self) -> list[str]:
        """Key and port."""
        return [*(["-i", self.key] if self.key else []), *(["-p", str(self.port)] if self.port else [])]


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
            far, way = urlsplit(uri).hostname, SshWay.of(uri)
        except ValueError as e:
            raise SpecError(
                f"{quoted(uri)} is not a libvirt URI", path="--connect", hint="one is like qemu+ssh://root@HOST/system"
            ) from e
        if not far:
            return cls.local()
        if not _WORD.match(far) or (way and way.user and not _WORD.match(way.user)):
            raise SpecError(
                f"{quoted(uri)} has a host or user that ssh would not take",
                path="--connect",
                hint="one is like qemu+ssh://root@HOST/system",
            )
        if way is None:
            raise UnsupportedError(
                f"{quoted(uri)} leads to libvirt alone, and most of a host's facts are found beside it",
                hint=f"give a way in with --ssh: --ssh root@{far}",
            )
        options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT}"]
        if way.given.get("no_verify") == "1":
            options += ["-o", "StrictHostKeyChecking=no"]
        if known := way.given.get("known_hosts"):
            options += ["-o", f"UserKnownHostsFile={known}"]
        options += [*way.options(), *(["-l", way.user] if way.user else [])]
        return cls((way.program, *options, "--", way.host, "exec /bin/sh"), way.host, True)

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
