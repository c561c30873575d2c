"""What a user asks of a network: the spec, as YAML or as flags. Parsing is strict and names the path of the field."""

from __future__ import annotations

import contextlib
import difflib
import enum
import ipaddress
import re
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

import msgspec

from vmkit.errors import SpecError
from vmkit.values import check_mac, check_name, in_yaml_words, quoted, to_plain

MIN_PREFIX: Final = 8
MAX_PREFIX: Final = 29
"""Smallest network: gateway and five more addresses."""
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}\Z", re.ASCII)


class Mode(enum.Enum):
    """Where the packets of a network may go.

    NAT: to other VMs, to the host, and out under the host's address. ISOLATED: to other VMs and the host.
    BRIDGE: wherever a bridge of the host leads.
    """

    NAT = "nat"
    ISOLATED = "isolated"
    BRIDGE = "bridge"


class Reservation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """An address that DHCP gives to one MAC address and to no other; `name` is resolvable in the network."""

    name: str
    mac: str
    address: str


class NetworkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A network.

    Attributes:
        name: 1 to 63 letters, digits, '.', '_' or '-'; not 'auto', 'user' or 'none', which mean something to a NIC.
        mode: 'nat', 'isolated' or 'bridge'.
        subnet: IPv4 network as in 192.168.150.0/24; 'auto' takes one that the host has no route to. Its first address
            is the host's own.
        dhcp: 'auto' (the upper half of the subnet), 'none', or FIRST-LAST.
        domain: DNS domain of the VMs' names; None takes the network's name where it is one, '' has none.
        bridge: name of the bridge device. With mode 'bridge' one that exists is joined; otherwise it is made.
        ports: interfaces of the host that become ports of the bridge; only with mode 'bridge'.
        reservations: fixed addresses.
        autostart: start with the host.
    """

    name: str
    mode: Mode = Mode.NAT
    subnet: str = "auto"
    dhcp: str = "auto"
    domain: str | None = None
    bridge: str | None = None
    ports: tuple[str, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    autostart: bool = True

    @property
    def domain_name(self) -> str:
        """The DNS domain of its VMs; '' for none."""
        if self.domain is not None:
            return self.domain
        return self.name.lower() if self.mode is not Mode.BRIDGE and _LABEL.match(self.name) else ""


def parse(data: Any, *, at: str = "") -> NetworkSpec:
    """The spec in plain data.

    Args:
        data: a mapping.
        at: path of the mapping in its document, put before every path in an error.

    Raises:
        SpecError: a field is unknown, of the wrong type or out of range; says which.
    """
    if isinstance(data, NetworkSpec):
        check(data, at)
        return data
    if not isinstance(data, dict):
        raise SpecError(f"a network is a mapping, not {type(data).__name__}", path=at, hint="begin with 'name: net1'")
    plain = {**data}
    if isinstance(plain.get("dhcp"), bool):  # what YAML makes of `dhcp: no`
        plain["dhcp"] = "auto" if plain["dhcp"] else "none"
    try:
        spec = msgspec.convert(plain, NetworkSpec, str_keys=True)
    except msgspec.ValidationError as e:
        raise _spec_error(str(e), at) from e
    check(spec, at)
    return spec


def dump(spec: NetworkSpec) -> dict[str, Any]:
    """The spec as plain data, defaults left out: what `parse` takes."""
    plain: dict[str, Any] = to_plain(msgspec.to_builtins(spec, str_keys=True))
    return plain


def check(spec: NetworkSpec, at: str = "") -> None:
    """Check what types alone cannot. `at` is put before every path.

    Raises:
        SpecError: a field is out of range, or contradicts another.
    """

    def path(field: str) -> str:
        return f"{at}.{field}".lstrip(".")

    check_name(spec.name, path=path("name"))
    if spec.name in ("auto", "user", "none"):
        raise SpecError(
            f"'{spec.name}' means something else to a NIC", path=path("name"), hint="call the network net1, say"
        )
    if spec.bridge is not None:
        check_interface(spec.bridge, path("bridge"))
    for i, port in enumerate(spec.ports):
        check_interface(port, path(f"ports[{i}]"))
    if spec.domain:
        for label in spec.domain.split("."):
            if not _LABEL.match(label) or len(spec.domain) > 253:
                raise SpecError(
                    f"{quoted(spec.domain)} is not a DNS domain", path=path("domain"), hint="like net1.test"
                )
    if spec.mode is Mode.BRIDGE:
        _check_bridge(spec, path)
        return
    if spec.ports:
        raise SpecError(f"a network of mode {spec.mode.value} has none", path=path("ports"), hint="add mode: bridge")
    subnet = None if spec.subnet == "auto" else parse_subnet(spec.subnet, path("subnet"))
    if spec.dhcp not in ("auto", "none"):
        if subnet is None:
            raise SpecError("a range needs a subnet", path=path("dhcp"), hint="add subnet: 192.168.150.0/24")
        dhcp_range(spec.dhcp, subnet, path("dhcp"))
    for i, reservation in enumerate(spec.reservations):
        check_reservation(reservation, subnet, path(f"reservations[{i}]"))
        if spec.dhcp == "none":
            raise SpecError("without DHCP nobody hands them out", path=path("reservations"), hint="leave dhcp out")
        for field in ("mac", "address", "name"):
            if getattr(reservation, field) in (getattr(r, field) for r in spec.reservations[:i]):
                raise SpecError("is there twice", path=path(f"reservations[{i}].{field}"))


def _check_bridge(spec: NetworkSpec, path: Any) -> None:
    plain = NetworkSpec(name=spec.name)
    for field in ("subnet", "dhcp", "domain", "reservations"):
        if getattr(spec, field) != getattr(plain, field):
            raise SpecError(
                "a bridge has none of its own: whoever is on it hands out addresses",
                path=path(field),
                hint="leave it out, or take mode: nat",
            )


def check_interface(name: str, path: str) -> str:
    """Return `name` if Linux could have a network interface of that name: 1 to 15 characters.

    Raises:
        SpecError: it is not one.
    """
    if not _INTERFACE.match(name):
        raise SpecError(f"{quoted(name)} is no interface's name", path=path, hint="1 to 15 characters, like br1")
    return name


def check_reservation(wanted: Reservation, subnet: IPv4Network | None, path: str) -> None:
    """Check a reservation against the subnet it is to be in, where that is known.

    Raises:
        SpecError: the name is no DNS label, the MAC address none, or the address not one of the subnet's for VMs.
    """
    check_label(wanted.name, f"{path}.name")
    if check_mac(wanted.mac, path=f"{path}.mac") != wanted.mac:
        raise SpecError("is written in lower case", path=f"{path}.mac", hint=wanted.mac.lower())
    if subnet is None:
        try:
            IPv4Address(wanted.address)
        except ValueError as e:
            raise SpecError(str(e), path=f"{path}.address", hint="write it like 192.168.150.10") from e
        raise SpecError("a fixed address needs a subnet", path=f"{path}.address", hint="add subnet: 192.168.150.0/24")
    guest_address(wanted.address, subnet, f"{path}.address")


def check_label(name: str, path: str) -> str:
    """Return `name` if it is one label of a DNS name (RFC 1123, 2.1).

    Raises:
        SpecError: it is not.
    """
    if not _LABEL.match(name):
        raise SpecError(f"{quoted(name)} is not a host name", path=path, hint="letters, digits and '-'")
    return name


def parse_subnet(text: str, path: str = "subnet") -> IPv4Network:
    """The IPv4 network that `text` names.

    Raises:
        SpecError: it is not one, or too large or too small.
    """
    try:
        subnet = ipaddress.ip_network(text)
    except ValueError as e:
        hint, why = "write it like 192.168.150.0/24", ""
        with contextlib.suppress(ValueError):
            if "/" in text:
                hint, why = f"did you mean {ipaddress.ip_interface(text).network}?", ": it has host bits set"
        raise SpecError(f"{quoted(text)} is not a network{why}", path=path, hint=hint) from e
    if not isinstance(subnet, IPv4Network):
        raise SpecError(f"{subnet} is IPv6", path=path, hint="IPv4 only: like 192.168.150.0/24")
    if not MIN_PREFIX <= subnet.prefixlen <= MAX_PREFIX:
        raise SpecError(f"{subnet} is not between /{MIN_PREFIX} and /{MAX_PREFIX}", path=path)
    if subnet.is_loopback or subnet.is_multicast or subnet.is_link_local or subnet.is_unspecified:
        raise SpecError(f"{subnet} is reserved", path=path, hint="like 192.168.150.0/24")
    return subnet


def gateway_of(subnet: IPv4Network) -> IPv4Address:
    """The host's own address in a network of vmkit's: the first one."""
    return subnet.network_address + 1


def dhcp_range(text: str, subnet: IPv4Network, path: str = "dhcp") -> tuple[IPv4Address, IPv4Address] | None:
    """First and last address that DHCP gives to whoever asks; None for no DHCP.

    'auto' is the upper half of the subnet, so that there is room for fixed addresses that nobody hands out.

    Raises:
        SpecError: the range is not one of the subnet's.
    """
    if text == "none":
        return None
    if text == "auto":
        return subnet.network_address + subnet.num_addresses // 2, subnet.broadcast_address - 1
    first, dash, last = text.partition("-")
    if not dash:
        raise SpecError(f"{quoted(text)} is not FIRST-LAST", path=path, hint="or auto, or none")
    low, high = guest_address(first.strip(), subnet, path), guest_address(last.strip(), subnet, path)
    if low > high:
        raise SpecError(f"{low} comes after {high}", path=path)
    return low, high


def guest_address(text: str, subnet: IPv4Network, path: str) -> IPv4Address:
    """An address that a VM may have in a subnet.

    Raises:
        SpecError: it is none, outside, or the network's, the host's or the broadcast address.
    """
    try:
        address = IPv4Address(text)
    except ValueError as e:
        raise SpecError(str(e), path=path, hint=f"an address in {subnet}") from e
    if address not in subnet:
        raise SpecError(f"{address} is not in {subnet}", path=path)
    taken = {subnet.network_address: "the network's", gateway_of(subnet): "the host's"}
    taken[subnet.broadcast_address] = "the broadcast address"
    if address in taken:
        raise SpecError(f"{address} is {taken[address]}", path=path, hint=f"another address in {subnet}")
    return address


def _spec_error(text: str, at: str) -> SpecError:
    match = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$(.*)`)?", text, re.DOTALL)
    message, path = (match[1], match[2] or "") if match else (text, "")
    path = f"{at}{path}".lstrip(".")
    if unknown := re.search(r"unknown field `(.*)`", message, re.DOTALL):
        inner = path.removeprefix(at).startswith(".reservations")
        fields = (Reservation if inner else NetworkSpec).__struct_fields__
        near = difflib.get_close_matches(unknown[1], fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known fields: {', '.join(fields)}"
        return SpecError("unknown field", path=f"{path}.{unknown[1]}".lstrip("."), hint=hint)
    if wrong := re.search(r"[Ii]nvalid enum value '(.*)'", message, re.DOTALL):
        modes = ", ".join(m.value for m in Mode)
        return SpecError(f"invalid enum value {quoted(wrong[1])}", path=path, hint=f"one of {modes}")
    return SpecError(in_yaml_words(message), path=path)
