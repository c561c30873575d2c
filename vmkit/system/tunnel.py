"""A tunnel for unix sockets from one host to another, made of ssh(1) processes of this machine.

What connects to a path on the source comes out at the same path on the target. Where neither is this machine there are
two legs, one from the source to here and one from here to the target, so that the hosts need not trust each other.

The processes end with the one that opened the tunnel, however that ends: the kernel kills them (PR_SET_PDEATHSIG), and
what ssh runs at the other end sees its input end and removes the sockets there.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Self

from vmkit.errors import EffectError, RefusedError, SpecError, UnreachableError, UnsupportedError, VmkitError
from vmkit.system.clock import Deadline
from vmkit.system.process import run
from vmkit.system.shell import Shell

FOLDER: Final = "/var/lib/libvirt/qemu"
"""Where the sockets are on both hosts: QEMU's account can make one there, and libvirt's daemon open it."""
OPEN_S: Final = 30.0
_END_S: Final = 5.0
_PREFIX: Final = "vmkit-tunnel-"
_OPTIONS: Final = {
    "ExitOnForwardFailure": "yes",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "ConnectTimeout": "10",
}


@dataclass(frozen=True, slots=True)
class Road:
    """A tunnel that is to be.

    Attributes:
        source, target: libvirt URIs of the hosts.
        name: part of the names of the sockets; the same for nobody else.
        streams: what is carried, each over a socket of its own: 'memory', 'disks'.
        congestion: TCP congestion control of what this machine sends; '' for its default.
        scratch: folder of this machine for the sockets between two legs; '' where there is one leg.
    """

    source: str
    target: str
    name: str
    streams: tuple[str, ...]
    congestion: str = ""
    scratch: str = ""

    @classmethod
    def between(cls, source: str, target: str, name: str, streams: Sequence[str], congestion: str = "") -> Self:
        """A road from host to host. Where it takes two legs, `opened` makes a folder for it, which `swept` removes.

        Raises:
            RefusedError: a host is reached otherwise than by ssh, or both are this machine.
            SpecError: a URI is not one.
        """
        ends = [_shell(uri) for uri in (source, target)]
        if not any(s.remote for s in ends):
            raise RefusedError("both hosts are this machine: there is nothing to tunnel", hint="leave --transport out")
        two = all(s.remote for s in ends)
        folder = f"{tempfile.gettempdir()}/{_PREFIX}{name}" if two else ""
        return cls(source, target, name, tuple(streams), congestion, folder)

    def path(self, stream: str) -> str:
        """The socket of a stream, on both hosts."""
        return f"{FOLDER}/vmkit-{self.name}.{stream}"

    def between_legs(self, stream: str) -> str:
        """The socket of a stream on this machine, where there are two legs."""
        return f"{self.scratch}/{stream}"

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {s: getattr(self, s) for s in self.__slots__}

    @classmethod
    def parse(cls, plain: dict[str, object]) -> Self:
        """Read what `plain` gave."""
        streams = plain["streams"]
        words = {k: str(v) for k, v in plain.items() if k != "streams"}
        return cls(**words, streams=tuple(map(str, streams if isinstance(streams, list | tuple) else ())))


@dataclass(slots=True)
class Tunnel:
    """An open tunnel. Made by `opened`."""

    legs: list[_Leg] = field(default_factory=list)

    def trouble(self) -> tuple[str, ...]:
        """What the ssh processes had to say, the last lines."""
        return tuple(line for leg in self.legs for line in leg.said()[-3:])


@contextlib.contextmanager
def opened(road: Road) -> Iterator[Tunnel]:
    """Have the tunnel while the block runs. An EffectError out of the block gets what ssh said as details.

    The thread that enters must be the one that leaves, and must live meanwhile: the kernel ties the processes to it.

    Raises:
        UnreachableError: ssh could not get in, or the host forwards no sockets.
        RefusedError: the sockets cannot be made there.
        UnsupportedError: ssh or setpriv is not installed.
    """
    tunnel = Tunnel()
    if road.scratch:
        Path(road.scratch).mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        for start in legs(road):
            leg = _Leg(*start)
            stack.callback(leg.close)
            tunnel.legs.append(leg)
        end = Deadline(OPEN_S)
        for leg in tunnel.legs:
            leg.wait(end)
        try:
            yield tunnel
        except EffectError as e:
            e.details = (*e.details, *tunnel.trouble())
            raise


@contextlib.contextmanager
def carried(road: Road | None) -> Iterator[None]:
    """`opened`, where there is a road; else nothing."""
    if road is None:
        yield
        return
    with opened(road):
        yield


def swept(road: Road) -> None:
    """Remove what a tunnel has left on this machine and on both hosts; a host that does not answer is let be."""
    if road.scratch and Path(road.scratch).name.startswith(_PREFIX):
        shutil.rmtree(road.scratch, ignore_errors=True)
    files = shlex.join(road.path(s) for s in road.streams)
    for uri in (road.source, road.target):
        with contextlib.suppress(VmkitError):
            Shell.of_uri(uri).run_script(f"rm -f -- {files}\n", timeout=15.0)


def congestion_controls() -> list[str]:
    """What the kernel of this machine offers, sorted (tcp(7))."""
    try:
        text = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text()
    except OSError:
        return []
    return sorted(text.split())


def check_congestion(algorithm: str) -> None:
    """Raise if a socket of this machine cannot have this congestion control. The kernel may load a module for it.

    Raises:
        RefusedError: it cannot.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        try:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm.encode())
        except (OSError, ValueError) as e:
            offers = ", ".join(congestion_controls()) or "none that can be seen"
            raise RefusedError(
                f"this kernel has no TCP congestion control '{algorithm}'", hint=f"it offers: {offers}"
            ) from e


def check_route(uri: str) -> None:
    """Raise if the way to a host is not a TCP connection of this machine's own, so that it cannot be tuned.

    Raises:
        RefusedError: ssh's configuration has a jump host or a proxy command for it.
        UnsupportedError, UnreachableError: ssh is not there, or does not take the URI.
    """
    shell = Shell.of_uri(uri)
    words = run([shell.argv[0], "-G", *shell.argv[1:-1]], timeout=15.0, check=False).stdout
    for line in words.splitlines():
        key, _, value = line.partition(" ")
        if key in ("proxyjump", "proxycommand") and value not in ("", "none"):
            raise RefusedError(
                f"ssh reaches {shell.where} by way of '{value}', so its TCP connection cannot be tuned from here",
                hint="leave --congestion out",
            )


def _shell(uri: str) -> Shell:
    try:
        return Shell.of_uri(uri)
    except UnsupportedError as e:
        raise RefusedError(
            f"{uri} is not reached by ssh, so there is no tunnel to it",
            hint="name it as qemu+ssh://root@HOST/system, or use --transport tls",
        ) from e
    except SpecError as e:
        raise SpecError(e.message, path="--to") from e


def legs(road: Road) -> list[tuple[Shell, list[str], list[str], str]]:
    """What each leg is given: the shell, what it forwards, the sockets to remove there, the congestion control."""
    source, target = _shell(road.source), _shell(road.target)
    here, there = {s: road.path(s) for s in road.streams}, {s: road.path(s) for s in road.streams}
    if source.remote and target.remote:
        between = {s: road.between_legs(s) for s in road.streams}
        onward = [w for s in road.streams for w in ("-L", f"{between[s]}:{there[s]}")]
        inward = [w for s in road.streams for w in ("-R", f"{here[s]}:{between[s]}")]
        # the onward leg first: what comes in then has somewhere to go
        return [
            (target, onward, [*there.values()], road.congestion),
            (source, inward, [*here.values()], ""),
        ]
    way = "-L" if target.remote else "-R"
    forwards = [w for s in road.streams for w in (way, f"{here[s]}:{there[s]}")]
    return [(target if target.remote else source, forwards, [*here.values()], road.congestion)]


class _Leg:
    """One ssh process."""

    def __init__(self, shell: Shell, forwards: list[str], sockets: list[str], congestion: str) -> None:
        self._where = shell.where
        self._local = [
            w.partition(":")[0] for flag, w in zip(forwards[::2], forwards[1::2], strict=True) if flag == "-L"
        ]
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the leg
        options = dict(_OPTIONS)
        if congestion:
            words = [sys.executable, str(Path(__file__).with_name("dial.py")), congestion]
            options["ProxyCommand"] = f"{shlex.join(words).replace('%', '%%')} %h %p"
            options["ProxyUseFdpass"] = "yes"
        given = [w for name, value in options.items() for w in ("-o", f"{name}={value}")]
        files = shlex.join(sockets)
        # it says that the forwards stand (ssh asks for them first), and removes the sockets when this side is gone
        script = f"test -w {FOLDER} && test -x {FOLDER} || exit 77; echo ready; cat >/dev/null; rm -f -- {files}"
        ssh, *rest = shell.argv
        *rest, dashes, host, _ = rest
        argv = ["setpriv", "--pdeathsig", "KILL", "--", ssh, "-a", "-x", *given, *rest, *forwards, dashes, host]
        try:
            self._process = subprocess.Popen(
                [*argv, f"exec /bin/sh -c {shlex.quote(script)}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,  # a Ctrl-C is for the program that steers
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError as e:
            self._log.close()
            raise UnsupportedError(
                f"the program '{argv[0]}' is not installed", hint="apt-get install util-linux openssh-client"
            ) from e

    def wait(self, end: Deadline) -> None:
        """Until it stands."""
        out = self._process.stdout
        if out is None:
            raise EffectError(f"ssh to {self._where} could not be started")
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            ready = bool(selector.select(end.left)) and out.readline() == b"ready\n"
        if ready:
            return
        self._process.kill()
        if self._process.wait() == 77:
            raise RefusedError(
                f"the tunnel's sockets cannot be made in {FOLDER} on {self._where} by this account",
                hint="log in as root there: qemu+ssh://root@HOST/system",
            )
        said = self.said()
        raise UnreachableError(
            f"no tunnel to {self._where}: {said[-1] if said else 'no answer'}",
            hint="see that ssh to it works without a question, and that its sshd allows AllowStreamLocalForwarding",
            details=said[:-1],
        )

    def said(self) -> tuple[str, ...]:
        """What ssh wrote to its standard error."""
        self._log.seek(0)
        return tuple(line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip())

    def close(self) -> None:
        """End it: the other end sees its input end, and tidies up."""
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()
        for path in self._local:
            Path(path).unlink(missing_ok=True)
