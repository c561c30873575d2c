"""How the memory gets from host to host: straight, encrypted by TLS, or through a tunnel of ssh. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from vmkit.errors import SpecError, UnsupportedError
from vmkit.migrate.wish import PLAIN as WISHLESS
from vmkit.migrate.wish import Wish
from vmkit.values import quoted


class Transport(enum.Enum):
    """What carries the memory, as the user names it."""

    AUTO = "auto"
    DIRECT = "direct"
    TLS = "tls"
    SSH = "ssh"


WHAT_IT_IS: Final = {
    Transport.DIRECT: "straight from host to host, in the clear: both must be in a network that is trusted",
    Transport.TLS: "straight from host to host, encrypted with the certificates of both libvirts",
    Transport.SSH: "through a tunnel of ssh: no port but ssh's has to be open, and no certificates",
}


@dataclass(frozen=True, slots=True)
class Carriage:
    """What the user wants of it.

    Attributes:
        transport: as named.
        congestion: TCP congestion control of what this machine sends into the tunnel; '' for the kernel's default.
    """

    transport: Transport = Transport.AUTO
    congestion: str = ""

    @property
    def taken(self) -> Transport:
        """What is taken: AUTO is DIRECT."""
        return Transport.DIRECT if self.transport is Transport.AUTO else self.transport

    @property
    def why(self) -> str:
        """The reason, for a person."""
        if self.transport is Transport.AUTO:
            return f"the fastest, and nothing else was asked for; {WHAT_IT_IS[Transport.DIRECT]}"
        return WHAT_IT_IS[self.transport]


PLAIN: Final = Carriage()


def carriage_of(transport: str | None, congestion: str | None) -> Carriage:
    """What two keyword arguments mean.

    Raises:
        SpecError: there is no such transport, or the congestion control is of none that takes one.
    """
    known = {t.value: t for t in Transport}
    chosen = known.get(transport or "auto")
    if chosen is None:
        raise SpecError(
            f"{quoted(str(transport))} is not a transport", path="--transport", hint=f"one of: {', '.join(known)}"
        )
    word = congestion or ""
    if word and chosen is not Transport.SSH:
        raise SpecError(
            "only of the tunnel can the congestion control be chosen",
            path="--congestion",
            hint="add --transport ssh; QEMU's own connections have the hosts' default (sysctl "
            "net.ipv4.tcp_congestion_control)",
        )
    if not all(c.isascii() and (c.isalnum() or c in "-_") for c in word) or len(word) > 15:
        raise SpecError(f"{quoted(word)} is not the name of one", path="--congestion", hint="write it like bbr")
    return Carriage(chosen, word)


def check_carriage(carriage: Carriage, driver: str, wish: Wish = WISHLESS) -> None:
    """Raise if it does not go with the rest.

    Raises:
        SpecError: one option contradicts another.
        UnsupportedError: the driver has the direct way only.
    """
    if carriage.taken is Transport.DIRECT:
        return
    if driver != "QEMU":
        raise UnsupportedError(f"the driver {driver} sends straight only", hint="leave --transport out")
    if carriage.taken is Transport.SSH and wish.parallel:
        raise SpecError(
            "the tunnel is one TCP connection, and parallel streams in it gain nothing",
            path="--parallel",
            hint="leave --parallel out, or use --transport tls",
        )
    if wish.zero_copy:
        raise SpecError("what is encrypted is copied for that", path="--zero-copy", hint="leave --zero-copy out")
