"""A network as it was decided: all that its XML says, and what is done beside libvirt."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

from vmkit.network.facts import Reserved


@dataclass(frozen=True, slots=True)
class NetworkDesign:
    """A network.

    Attributes:
        forward: libvirt's mode of forwarding: 'nat', 'bridge' (a bridge that exists), 'open' (a bridge that libvirt
            makes and nothing more), or '' for an isolated network.
        bridge: the bridge device; None lets libvirt pick a name.
        subnet, gateway: the network, and the host's address in it; None and '' for bridges.
        dhcp: first and last address that is handed out; None for no DHCP.
        domain: DNS domain; '' for none.
        reserved: fixed addresses.
        ports: interfaces that become ports of the bridge.
        autostart: start with the host.
    """

    name: str
    forward: str
    bridge: str | None = None
    subnet: IPv4Network | None = None
    gateway: str = ""
    dhcp: tuple[str, str] | None = None
    domain: str = ""
    reserved: tuple[Reserved, ...] = ()
    ports: tuple[str, ...] = ()
    autostart: bool = True
