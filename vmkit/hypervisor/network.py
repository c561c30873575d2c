"""Networks of a host: those that libvirt makes, and what its DHCP servers have handed out."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import libvirt

from vmkit.errors import NotFoundError, UnsupportedError, VmkitError
from vmkit.hypervisor.errors import translate, translated
from vmkit.values import quoted

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain
    from vmkit.hypervisor.host import Host


@dataclass(frozen=True, slots=True)
class Lease:
    """An address that a network's DHCP server gave out: until `expires`, in seconds since 1970 (0: for ever)."""

    mac: str
    address: str
    prefix: int
    hostname: str
    expires: int


class Network:
    """A handle on a network. Every call asks libvirt; nothing is remembered but name and uuid."""

    def __init__(self, host: Host, handle: libvirt.virNetwork) -> None:
        self.host = host
        self.handle = handle
        self.name: str = handle.name()
        self.uuid: str = handle.UUIDString()

    def __repr__(self) -> str:
        return f"<Network {self.name} on {self.host.uri}>"

    @property
    def active(self) -> bool:
        """Whether its bridge is there, and its servers run."""
        with translated(f"network {self.name}"):
            return bool(self.handle.isActive())

    @property
    def persistent(self) -> bool:
        """Whether its definition outlives its being stopped."""
        with translated(f"network {self.name}"):
            return bool(self.handle.isPersistent())

    @property
    def autostart(self) -> bool:
        """Whether it starts with its host."""
        with translated(f"network {self.name}"):
            return bool(self.handle.autostart())

    def set_autostart(self, on: bool) -> None:
        """Have it start with its host, or not."""
        with translated(f"autostart of network {self.name}"):
            self.handle.setAutostart(int(on))

    def xml(self) -> str:
        """What it is now (https://libvirt.org/formatnetwork.html)."""
        with translated(f"network {self.name}"):
            return str(self.handle.XMLDesc(0))

    def definition(self) -> str:
        """What the next start makes of it."""
        known = self.persistent and self.host.driver != "TEST"  # whose networks have one form only
        with translated(f"network {self.name}"):
            return str(self.handle.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE if known else 0))

    def start(self) -> None:
        """Make its bridge and start its servers."""
        with translated(f"start of network {self.name}"):
            self.handle.create()

    def stop(self) -> None:
        """Take its bridge and its servers away. VMs on it lose their connection."""
        with translated(f"stop of network {self.name}"):
            self.handle.destroy()

    def undefine(self) -> None:
        """Remove its definition."""
        with translated(f"deletion of network {self.name}"):
            self.handle.undefine()

    def leases(self) -> list[Lease]:
        """What its DHCP server has handed out; nothing where it has none, or the driver does not tell."""
        try:
            with translated(f"leases of network {self.name}"):
                found = self.handle.DHCPLeases()
        except (UnsupportedError, NotFoundError):
            return []
        return [
            Lease(
                mac=(lease.get("mac") or "").lower(),
                address=lease.get("ipaddr") or "",
                prefix=int(lease.get("prefix") or 0),
                hostname=lease.get("hostname") or "",
                expires=int(lease.get("expirytime") or 0),
            )
            for lease in found or ()
            if lease.get("ipaddr")
        ]

    def add_host(self, xml: str) -> None:
        """Reserve an address: a <host> of <dhcp>. It holds at once, and after a restart of the network.

        Raises:
            ConflictError, EffectError: MAC address or address are reserved already.
        """
        self._update(libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, xml)

    def remove_host(self, xml: str) -> None:
        """Take a reservation back."""
        self._update(libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, xml)

    def add_name(self, xml: str) -> None:
        """Have a name resolved: a <host> of <dns>."""
        self._update(libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, libvirt.VIR_NETWORK_SECTION_DNS_HOST, xml)

    def remove_name(self, xml: str) -> None:
        """Have a name no longer resolved."""
        self._update(libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, libvirt.VIR_NETWORK_SECTION_DNS_HOST, xml)

    def _update(self, command: int, section: int, xml: str) -> None:
        flags = libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE if self.active else 0
        flags |= libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG if self.persistent else 0
        with translated(f"change of network {self.name}"):
            self.handle.update(command, section, -1, xml, flags)


def networks(host: Host) -> list[Network]:
    """Every network of a host, active or not, by name. None where the driver has no networks."""
    try:
        with translated("list of networks"):
            return sorted((Network(host, n) for n in host.handle.listAllNetworks(0)), key=lambda n: n.name)
    except UnsupportedError:
        return []


def network(host: Host, name: str) -> Network:
    """The network of this name.

    Raises:
        NotFoundError: there is none; the hint names similar ones.
    """
    try:
        return Network(host, host.handle.networkLookupByName(name))
    except libvirt.libvirtError as e:
        error = translate(e, f"network {quoted(name)}")
        if not isinstance(error, NotFoundError):
            raise error from e
    known = [n.name for n in networks(host)]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "see what there is: vmkit network list"
    raise NotFoundError(f"no network named {quoted(name)} on {host.uri}", hint=hint)


def define(host: Host, xml: str) -> Network:
    """Define a network without starting it, or replace the definition of the one of the same uuid."""
    with translated("definition of a network"):
        return Network(host, host.handle.networkDefineXML(xml))


def heard_of(domain: Domain) -> list[tuple[str, str]]:
    """MAC and IP addresses of a running domain that its host's neighbour table (ARP) holds."""
    try:
        with translated(f"addresses of {domain.name}"):
            found = domain.handle.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP)
    except VmkitError:  # a driver that cannot, or a domain that does not run
        return []
    return [
        ((interface.get("hwaddr") or "").lower(), address["addr"])
        for interface in found.values()
        for address in interface.get("addrs") or ()
    ]
