"""Who a copy is: its name, uuid, MAC addresses, machine-id; in its domain XML and in what its guest is told. Pure."""

from __future__ import annotations

import secrets
import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface
from typing import Any, Final
from xml.etree import ElementTree as ET

from vmkit.errors import SpecError
from vmkit.vm.metadata import NAMESPACE, Remembered, remembered_in, to_text

PREFIX: Final = "52:54:00"
"""Vendor part of the MAC addresses that libvirt and QEMU give to guests."""


@dataclass(frozen=True, slots=True)
class Card:
    """A network card of a copy.

    Attributes:
        old, mac: MAC address before and now.
        address: 'dhcp', 'none' or ADDRESS/PREFIX.
        gateway: default route that goes with a fixed address.
        old_address, old_gateway: what the source has, likewise.
        index: its number in the spec's `nics`.
    """

    old: str
    mac: str
    address: str = "dhcp"
    gateway: str | None = None
    old_address: str = "dhcp"
    old_gateway: str | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """All that tells a copy from its source.

    Attributes:
        name, uuid: of the domain.
        machine_id: of the guest.
        seed: for the guest's random numbers.
        cards: its network cards.
        seedless: the disk that cloud-init read is empty in the copy.
    """

    name: str
    uuid: str
    machine_id: str
    seed: str
    cards: tuple[Card, ...]
    seedless: bool = False


def new(name: str, cards: Sequence[Card], *, uuid: str | None = None) -> Identity:
    """A fresh identity; MAC addresses are drawn for the cards."""
    drawn = tuple(replace(card, mac=random_mac()) for card in cards)
    return Identity(name, uuid or str(uuids.uuid4()), secrets.token_hex(16), secrets.token_hex(64), drawn)


def random_mac() -> str:
    """A MAC address for a guest."""
    return ":".join([PREFIX, *(f"{b:02x}" for b in secrets.token_bytes(3))])


def cards_of(xml: str, spec: Mapping[str, Any]) -> tuple[Card, ...]:
    """The cards of a domain, with the addresses that its spec gives them; 'dhcp' for cards that it does not know."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    macs = [m.get("address", "").lower() for m in root.iterfind("devices/interface/mac")]
    asked: list[Mapping[str, Any]] = list(spec.get("nics", [{}]))
    wired = [(i, nic) for i, nic in enumerate(asked) if nic.get("network") != "none"]
    found = []
    for number, mac in enumerate(macs):
        index, nic = wired[number] if len(wired) == len(macs) else (number, {})
        address = str(nic.get("address", "dhcp"))
        gateway = nic.get("gateway")
        found.append(Card(mac, mac, address, gateway, address, gateway, index))
    return tuple(found)


def addressed(cards: Sequence[Card], wish: str | None, number: int, *, name: str) -> tuple[Card, ...]:
    """The cards of the copy with this number (from 0), with the addresses that they get.

    Args:
        cards: of the source.
        wish: for the first card: 'dhcp', 'none', or ADDRESS/PREFIX of the first copy, from which further ones count
            on, with ',gateway=ADDRESS' where it is not the source's; None is what the source has.
        number: of the copy.
        name: of the source, for messages.

    Raises:
        SpecError: the source has a fixed address, and nobody says what the copy gets; or that is no address.
    """
    result = list(cards)
    if wish is not None and not cards:
        raise SpecError(f"{name} has no network card", path="--address")
    for i, card in enumerate(cards):
        if i == 0 and wish is not None:
            result[0] = _wished(card, wish, number)
        elif "/" in card.old_address:
            which = "its card" if len(cards) == 1 else f"its card {i}"
            if i:  # what only the first card can be told anew
                result[i] = replace(card, address="none", gateway=None)
                continue
            raise SpecError(
                f"{name} has the fixed address {card.old_address} on {which}, which two VMs cannot share",
                path="--address",
                hint="say what the copy gets: --address ADDRESS/PREFIX, dhcp or none",
            )
    return tuple(result)


def _wished(card: Card, wish: str, number: int) -> Card:
    words, given, gateway = wish.partition(",gateway=")
    address = _counted(words, number)
    if "/" not in address:
        if given:
            raise SpecError(f"'{wish}': a gateway goes with a fixed address", path="--address")
        return replace(card, address=address, gateway=None)
    if given:
        try:
            gateway = str(ip_address(gateway))
        except ValueError:
            raise SpecError(f"the gateway '{gateway}' is no IP address", path="--address") from None
    return replace(card, address=address, gateway=gateway or card.gateway)


def _counted(wish: str, number: int) -> str:
    if wish in ("dhcp", "none"):
        return wish
    if "/" not in wish:
        hint = "write it like 192.0.2.10/24 or 192.0.2.10/24,gateway=192.0.2.1"
        raise SpecError(f"'{wish}' is not ADDRESS/PREFIX", path="--address", hint=hint)
    try:
        first = ip_interface(wish)
    except ValueError:
        raise SpecError(f"'{wish}' is not ADDRESS/PREFIX", path="--address", hint="like 192.0.2.10/24") from None
    there = first.ip + number
    if there not in first.network:
        raise SpecError(f"{wish} and {number} more are not all in {first.network}", path="--address")
    return f"{there}/{first.network.prefixlen}"


def respecced(spec: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    """What would have been asked for, had the copy been created: the source's spec under the copy's name."""
    plain = {**spec, "name": identity.name}
    if "nics" in spec:
        nics = [{k: v for k, v in nic.items() if k != "mac"} for nic in spec["nics"]]
        for card in identity.cards:
            if card.index >= len(nics):
                continue
            nic = {k: v for k, v in nics[card.index].items() if k not in ("address", "gateway")}
            nic |= {"address": card.address} if card.address != "dhcp" else {}
            nics[card.index] = nic | ({"gateway": card.gateway} if card.gateway else {})
        plain["nics"] = nics
    return plain


def rewritten(
    xml: str, identity: Identity, *, paths: Mapping[str, str], remembered: Remembered, log: str | None, down: bool
) -> str:
    """The domain XML of a copy.

    Args:
        xml: of the source.
        identity: of the copy.
        paths: file of each disk of the source -> file of the copy; also kernel and initrd, where they lie elsewhere.
        remembered: goes into <metadata>.
        log: path of the console log; None leaves the console without.
        down: the cables of its network cards are pulled.
    """
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    root.attrib.pop("id", None)
    _set(root, "name", identity.name)
    _set(root, "uuid", identity.uuid)
    if root.find("genid") is not None:
        _set(root, "genid", str(uuids.uuid5(uuids.NAMESPACE_OID, identity.uuid)))
    for element in root.iterfind(f"metadata/{{{NAMESPACE}}}vm"):
        element.text = to_text(remembered)
    _disks(root, paths)
    for tag in ("kernel", "initrd"):
        booted = root.find(f"os/{tag}")
        if booted is not None:
            booted.text = paths.get(booted.text or "", booted.text)
    macs = {card.old: card.mac for card in identity.cards}
    for card in root.iterfind("devices/interface"):
        mac = card.find("mac")
        if mac is not None:
            mac.set("address", macs.get(mac.get("address", "").lower(), mac.get("address", "")))
        for gone in (*card.findall("target"), *card.findall("portForward"), *(card.findall("link") if down else ())):
            card.remove(gone)
        if down:
            ET.SubElement(card, "link", state="down")
    for logged in root.iterfind("devices//log"):
        if log:
            logged.set("file", log)
    _cmdline(root, identity)
    return ET.tostring(root, encoding="unicode")


def _set(root: ET.Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is not None:
        element.text = text


def _disks(root: ET.Element, paths: Mapping[str, str]) -> None:
    for disk in root.iterfind("devices/disk"):
        source = disk.find("source")
        if source is None or source.get("file") not in paths:
            continue
        source.set("file", paths[source.get("file", "")])
        for tag in ("backingStore", "mirror"):  # libvirt looks at the files itself
            for gone in disk.findall(tag):
                disk.remove(gone)


def _cmdline(root: ET.Element, identity: Identity) -> None:
    """What the micro guest reads at its next boot."""
    cmdline = root.find("os/cmdline")
    if cmdline is None or not cmdline.text or "vmkit.name=" not in cmdline.text:
        return
    told: dict[str, str] = {"vmkit.name": identity.name}
    for card in identity.cards:
        number = card.index or ""
        told |= {
            f"vmkit.ip{number}": card.address,
            f"vmkit.gw{number}": card.gateway or "",
            f"vmkit.mac{number}": card.mac,
        }
    words = []
    for word in cmdline.text.split(" "):
        key, equals, value = word.partition("=")
        if equals and key in told:
            value = told[key]
            if not value:
                continue
        words.append(f"{key}{equals}{value}")
    cmdline.text = " ".join(words)


def memory_of(xml: str) -> Remembered | None:
    """What vmkit keeps in a domain's XML; None where another tool made it."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    element = root.find(f"metadata/{{{NAMESPACE}}}vm")
    return None if element is None else remembered_in(ET.tostring(element, encoding="unicode"))
