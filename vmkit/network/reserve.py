"""Fixed addresses of a network: given and taken back while it runs."""

from __future__ import annotations

import contextlib
from xml.etree import ElementTree as ET

from vmkit.errors import ConflictError, NotFoundError, VmkitError
from vmkit.hypervisor.network import Network
from vmkit.network.facts import NetworkFacts, Reserved, lease_of, of
from vmkit.network.xml import host_element, name_element


def check(facts: NetworkFacts, wanted: Reserved) -> bool:
    """Whether a reservation has to be made; False where it is there already.

    Raises:
        ConflictError: address, MAC address or name are reserved for something else.
    """
    if wanted in facts.reserved:
        return False
    for other in facts.reserved:
        for field in ("address", "mac", "name"):
            value = getattr(wanted, field)
            if value and value == getattr(other, field):
                raise ConflictError(
                    f"{value} is reserved in the network '{facts.name}': {shown(other)}",
                    hint=f"vmkit network show {facts.name}",
                )
    return True


def shown(reserved: Reserved) -> str:
    """A reservation in words."""
    return f"{reserved.address} for {reserved.name or reserved.mac}" + (f" ({reserved.mac})" if reserved.name else "")


def reserve(network: Network, wanted: Reserved) -> bool:
    """Keep an address for a MAC address; False if it is kept for it already. Names are resolved at once.

    Raises:
        ConflictError: address, MAC address or name are reserved, or the address is lent to another MAC address now.
        NotFoundError: the network has no DHCP server.
        EffectError: libvirt refused; nothing is left of it.
    """
    facts = of(network)
    if facts.dhcp is None:
        raise NotFoundError(f"the network '{facts.name}' has no DHCP server", hint="an address of its own needs one")
    if not check(facts, wanted):
        return False
    lease = lease_of(network.leases() if network.active else (), wanted.address)
    if lease and lease.mac != wanted.mac:
        raise ConflictError(
            f"{wanted.address} is lent to {lease.hostname or lease.mac} now",
            hint=f"an address below {facts.dhcp[0]}, where nothing is handed out",
        )
    network.add_host(_text(host_element(wanted)))
    if wanted.name and wanted.name not in facts.names.get(wanted.address, ()):
        try:
            network.add_name(_text(name_element(wanted)))
        except VmkitError:
            with contextlib.suppress(VmkitError):
                network.remove_host(_text(host_element(wanted)))
            raise
    return True


def release(network: Network, reserved: Reserved) -> bool:
    """Take a reservation back; False if there is none like it."""
    facts = of(network)
    there = reserved in facts.reserved
    if there:
        network.remove_host(_text(host_element(reserved)))
    if reserved.name and facts.names.get(reserved.address) == (reserved.name,):
        network.remove_name(_text(name_element(reserved)))
    return there


def _text(element: ET.Element) -> str:
    return ET.tostring(element, encoding="unicode")
