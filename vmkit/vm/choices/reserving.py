"""Fixed addresses: kept for the VM by the network's own DHCP server, so that nobody else gets them. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING

from vmkit.errors import ConflictError, SpecError
from vmkit.network.spec import guest_address
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.design import NicDesign
from vmkit.vm.facts import HostFacts

if TYPE_CHECKING:
    from vmkit.network.facts import NetworkFacts
    from vmkit.vm.spec import VmSpec


def reserved(spec: VmSpec, nics: tuple[NicDesign, ...], facts: HostFacts, why: Reasons) -> tuple[NicDesign, ...]:
    """The cards with what their networks shall keep for them.

    Raises:
        SpecError: the address is not one that the network has. ConflictError: it is reserved for another.
    """
    found = []
    taken: list[str] = []
    for card in nics:
        known = facts.reservable.get(card.source) if card.kind == "network" else None
        asked = spec.nics[card.index].address
        if known is None or known.subnet is None or asked in ("dhcp", "none"):
            found.append(card)
            continue
        path = f"nics[{card.index}].address"
        address = _address(asked, known, path, why)
        if address and known.dhcp:
            _free(address, spec.name, card.mac, known, path)
            if address in taken:
                raise SpecError(f"{address} is there twice", path=path)
            taken.append(address)
            why.chose(path, address, f"{ASKED}: kept for this card by the DHCP server of '{known.name}'")
            card = replace(card, reserve=address)
        found.append(card)
    return tuple(found)


def _address(asked: str, known: NetworkFacts, path: str, why: Reasons) -> str:
    """The address without its prefix; '' where the network does not have it and is not vmkit's to judge."""
    wanted = ipaddress.ip_interface(asked)
    assert known.subnet is not None  # noqa: S101 - asked by the caller
    if not known.managed and wanted.ip not in known.subnet:
        why.warn(f"{path}: {wanted.ip} is not in {known.subnet} of the network '{known.name}'")
        return ""
    address = str(guest_address(str(wanted.ip), known.subnet, path))
    if wanted.network.prefixlen != known.subnet.prefixlen:
        raise SpecError(
            f"the network '{known.name}' is {known.subnet}", path=path, hint=f"{address}/{known.subnet.prefixlen}"
        )
    return address


def _free(address: str, name: str, mac: str | None, known: NetworkFacts, path: str) -> None:
    for other in known.reserved:
        if other.address == address and (other.mac == mac or other.name == name):
            return  # kept for this VM: its spec is looked at again
        if other.address == address:
            raise ConflictError(
                f"{path}: {address} is kept for {other.name or other.mac} in the network '{known.name}'",
                hint=f"another one in {known.subnet}; vmkit network show {known.name}",
            )
    lent = known.lent.get(address)
    if lent and lent != mac:
        low = f"; below {known.dhcp[0]} nothing is lent" if known.dhcp else ""
        raise ConflictError(
            f"{path}: {address} is lent to {lent} in the network '{known.name}' now",
            hint=f"another one in {known.subnet}{low}",
        )
