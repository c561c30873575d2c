"""The screens of VMs: where they are looked at, and pictures of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from vmkit.errors import ConflictError, NotFoundError, SpecError, UnsupportedError
from vmkit.system.shell import SshWay

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain
    from vmkit.hypervisor.host import Host


@dataclass(frozen=True, slots=True)
class Screen:
    """One way to a VM's screen, as its XML tells it.

    Attributes:
        kind: 'vnc', 'spice', or another of libvirt's.
        listen: address that it listens on, on its host; None for a socket or where there is none.
        port: TCP port; None while the VM does not run, or where only TLS is spoken.
        tls_port: SPICE's port for TLS.
        socket: path of the socket that it listens on.
        password: whether one is asked for.
    """

    kind: str
    listen: str | None
    port: int | None
    tls_port: int | None = None
    socket: str | None = None
    password: bool = False

    @property
    def uri(self) -> str | None:
        """What a viewer on the host takes (vncviewer, remote-viewer); None where nothing listens."""
        if self.kind not in ("vnc", "spice"):
            return None
        if self.socket:
            return f"{self.kind}+unix://{self.socket}"
        if self.port is None and self.tls_port is None:
            return None
        port = f":{self.port}" if self.port else ""
        tls = f"?tls-port={self.tls_port}" if self.tls_port else ""
        return f"{self.kind}://{_bracketed(self._near)}{port}{tls}"

    @property
    def _near(self) -> str:
        """The address to take on the host itself."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1", None: "127.0.0.1"}.get(self.listen, self.listen or "")  # noqa: S104


@dataclass(frozen=True, slots=True)
class Shown:
    """What `vmkit display` tells of one screen; `tunnel` is the command that brings it here from another machine."""

    name: str
    kind: str
    uri: str | None
    listen: str | None
    port: int | None
    password: bool
    tunnel: str | None


class Screens:
    """The screens of a host's VMs, whoever made them.

    Args:
        connect: returns the open connection.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def list(self, name: str) -> list[Shown]:
        """Where the screens of a VM are looked at.

        Raises:
            NotFoundError: there is no such VM, or it has no screen.
            ConflictError: it does not run.
        """
        host = self._connect()
        domain = _running(host, name)
        found = screens_in(domain.xml(secure=True))  # else libvirt leaves out that there is a password
        if not found:
            raise NotFoundError(
                f"{domain.name} has no screen, only a serial console",
                hint=f"vmkit console {domain.name}; or make it with --display vnc (display: vnc in its spec)",
            )
        return [
            Shown(domain.name, s.kind, s.uri, s.listen, s.port or s.tls_port, s.password, tunnel(host.uri, s))
            for s in found
        ]

    def picture(self, name: str, *, screen: int = 0) -> bytes:
        """What a VM's screen shows now, as PNG. It needs a graphics card, and no display.

        Args:
            name: the VM.
            screen: which of its screens, from 0.

        Raises:
            ConflictError: it does not run.
            UnsupportedError: it has no graphics card, or no screen of that number.
            EffectError: the hypervisor did not make one.
        """
        from vmkit.hypervisor.screen import grab
        from vmkit.vm.picture import as_png

        host = self._connect()
        domain = _running(host, name)
        if host.driver == "QEMU" and not _has_card(domain.xml()):
            raise UnsupportedError(
                f"{domain.name} has no graphics card, so it shows nothing",
                hint=f"vmkit log {domain.name}; or make it with --display vnc (display: vnc in its spec)",
            )
        return as_png(*grab(domain, screen))


def screens_in(xml: str) -> tuple[Screen, ...]:
    """The screens that a domain's XML speaks of. Of a password only that there is one is taken over."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    return tuple(_screen(g) for g in root.iterfind("devices/graphics"))


def tunnel(uri: str, screen: Screen) -> str | None:
    """The ssh command that makes a screen of another machine one of this; None where that is not the way.

    It takes user, port, key and program from the URI. The socket of a screen becomes one in /tmp.
    """
    try:
        way = SshWay.of(uri)
    except ValueError:
        return None
    if way is None:
        return None
    near = _bracketed(screen._near)
    roads = [f"{number}:{near}:{number}" for number in (screen.port, screen.tls_port) if number]
    if screen.socket:
        roads = [f"/tmp/{screen.socket.rpartition('/')[2]}:{screen.socket}"]  # noqa: S108 - a proposal
    if not roads:
        return None
    there = f"{way.user}@{way.host}" if way.user else way.host
    return shlex.join([way.program, "-N", *(w for road in roads for w in ("-L", road)), *way.options(), there])


def _running(host: Host, name: str) -> Domain:
    domain = host.domain(name)
    state = domain.state()
    if not state.active:
        raise ConflictError(f"{domain.name} is {state.value}", hint=f"vmkit start {domain.name}")
    return domain


def _has_card(xml: str) -> bool:
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    cards = root.findall("devices/video/model")
    # A card may also come as an argument for QEMU, or as a device of the host.
    return any(c.get("type") != "none" for c in cards) or (
        not cards and root.find("{http://libvirt.org/schemas/domain/qemu/1.0}commandline") is not None
    )


def _screen(graphics: ET.Element) -> Screen:
    listen = graphics.find("listen")
    said = listen.attrib if listen is not None else {}
    socket = said.get("socket") or graphics.get("socket")
    address = said.get("address") or graphics.get("listen")
    return Screen(
        kind=graphics.get("type", ""),
        listen=None if socket else address,
        port=_port(graphics.get("port")),
        tls_port=_port(graphics.get("tlsPort")),
        socket=socket,
        password="passwd" in graphics.attrib,
    )


def _port(text: str | None) -> int | None:
    """A TCP port; libvirt writes -1 for one that is not chosen yet."""
    return int(text) if text and text.isdecimal() and int(text) else None


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def check_file(text: str) -> str:
    """The name of a file that a picture goes to, or '-'.

    Raises:
        SpecError: it ends like another kind of picture.
    """
    wrong = text.lower().rpartition(".")[2]
    if wrong in ("jpg", "jpeg", "ppm", "gif", "bmp", "webp", "svg"):
        raise SpecError(f"pictures are PNG, not {wrong.upper()}", path="FILE", hint="name it like screen.png")
    return text
