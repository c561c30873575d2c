"""Whether a guest can be reached, as its host sees it: an address that answers, a port that listens."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from vmkit.errors import VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.host import Host
from vmkit.system.shell import Shell
from vmkit.vm import guest

_PATIENCE = 20.0
"""Seconds for a script on the host; it has its own limits of a few."""
_LISTENS = "0A"
"""State of a listening socket in /proc/net/tcp (TCP_LISTEN of Linux' include/net/tcp_states.h)."""


@dataclass(frozen=True, slots=True)
class Open:
    """A port that took a connection, and the first line that came from it ('' where none came at once)."""

    banner: str


def answers(host: Host, ip: str, mac: str) -> bool | None:
    """Whether an address answers its host, and is that of this MAC address. None where the host cannot be asked.

    The host sends an echo request, or where it has no ping(8) asks for a connection, which is answered if only by a
    refusal. Either makes it ask for the MAC address too, and what it learns is in its neighbour table.
    """
    at = str(ipaddress.ip_address(ip))
    script = (
        f"if command -v ping >/dev/null; then ping -n -c 1 -W 1 {at} >/dev/null 2>&1 && echo alive; "
        f"else said=$(LC_ALL=C timeout 1 bash -c 'exec 3<>/dev/tcp/{at}/22 && echo open' 2>&1); "
        f'case "$said" in *open* | *refused*) echo alive ;; esac; fi; ip neigh show to {at}\n'
    )
    try:
        return judge(Shell.of_uri(host.uri).run_script(script, timeout=_PATIENCE).stdout, mac)
    except VmkitError:
        return None


def judge(text: str, mac: str) -> bool:
    """Read the script's answer: `alive` and a line of `ip neigh`. Another owner of the address does not count."""
    neighbour = re.search(r"lladdr (\S+)(?: .*)? (\S+) *$", text, re.MULTILINE)
    if neighbour:
        return neighbour[1].lower() == mac and ("alive" in text.split() or neighbour[2] == "REACHABLE")
    return "alive" in text.split()


def port(host: Host, ip: str, number: int) -> Open | None:
    """Connect from the host to a port; None if nothing takes the connection.

    Raises:
        UnsupportedError, UnreachableError: the host cannot be asked.
    """
    at = str(ipaddress.ip_address(ip))
    # bash, since a plain shell has no TCP and hosts without python or nc are not rare.
    script = (
        f"timeout 5 bash -c 'exec 3<>/dev/tcp/{at}/{int(number)} || exit 1; "
        'IFS= read -r -t 2 line <&3; printf "open %s\\n" "$line"\' 2>/dev/null\n'
    )
    text = Shell.of_uri(host.uri).run_script(script, timeout=_PATIENCE).stdout
    return Open(text[5:].strip()) if text.startswith("open") else None


def listens(domain: Domain, number: int) -> bool:
    """Whether something in a Linux guest listens on a TCP port, by its agent; not on its loopback alone.

    Raises:
        EffectError, DeadlineError: the agent does not answer.
    """
    seen = guest.run(domain, ["cat", "/proc/net/tcp", "/proc/net/tcp6"], timeout=10).stdout
    return listening(seen, number)


def listening(table: str, number: int) -> bool:
    """Read /proc/net/tcp (proc(5))."""
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 4 or ":" not in fields[1] or fields[3] != _LISTENS:
            continue
        address, _, at = fields[1].rpartition(":")
        # Little-endian words: 127.0.0.1 is 0100007F, ::1 ends in 01000000.
        loopback = address in ("0100007F", "0" * 24 + "01000000")
        if int(at, 16) == number and not loopback:
            return True
    return False
