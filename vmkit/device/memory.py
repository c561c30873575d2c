"""What vmkit keeps in a domain's <metadata> about the functions that it lends to it. Pure.

Libvirt's own XML holds MAC address and VLAN of a virtual function. It has no place for the rest, and its PCI address is
only the one of the last start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from xml.etree import ElementTree as ET

from vmkit.system.vf import VfSettings

NAMESPACE: Final = "urn:vmkit:device:1"
PREFIX: Final = "vmkit-device"


@dataclass(frozen=True, slots=True)
class VfMemory:
    """A virtual function of a VM: the physical function that it has to be of (None: any), and its settings."""

    pf: str | None
    settings: VfSettings


@dataclass(frozen=True, slots=True)
class Lendings:
    """What a VM is to have at each start: virtual functions by MAC address, and other functions by PCI address."""

    vfs: Mapping[str, VfMemory] = field(default_factory=dict)
    functions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.vfs or self.functions)

    def with_vf(self, memory: VfMemory) -> Lendings:
        """These and one more virtual function."""
        return replace(self, vfs={**self.vfs, str(memory.settings.mac): memory})

    def with_function(self, address: str) -> Lendings:
        """These and one more function."""
        return replace(self, functions=(*(f for f in self.functions if f != address), address))

    def without(self, *, mac: str | None = None, address: str | None = None) -> Lendings:
        """These without one."""
        vfs = {m: v for m, v in self.vfs.items() if m != mac}
        return Lendings(vfs, tuple(f for f in self.functions if f != address))


def to_element(lendings: Lendings) -> str:
    """Vmkit's element for the metadata."""
    body: dict[str, Any] = {
        "vfs": {m: {"pf": v.pf, **_plain(v.settings)} for m, v in lendings.vfs.items()},
        "functions": list(lendings.functions),
    }
    element = ET.Element("devices")
    element.text = json.dumps(body, sort_keys=True)
    return ET.tostring(element, encoding="unicode")


def read_element(element: str | None) -> Lendings:
    """Read it back; nothing where there is none, or not one that this version wrote."""
    try:
        body = json.loads(ET.fromstring(element or "<x/>").text or "")  # noqa: S314 - libvirt's own answer
        vfs = {m: VfMemory(v.pop("pf"), VfSettings(mac=m, **v)) for m, v in body["vfs"].items()}
        return Lendings(vfs, tuple(body["functions"]))
    except (ET.ParseError, ValueError, KeyError, TypeError, AttributeError):
        return Lendings()


def _plain(settings: VfSettings) -> dict[str, Any]:
    return {
        "vlan": settings.vlan,
        "max_tx_rate": settings.max_tx_rate,
        "spoofcheck": settings.spoofcheck,
        "trust": settings.trust,
    }
