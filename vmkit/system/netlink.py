"""Links, addresses and routes, through rtnetlink."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vmkit.errors import ConflictError, EffectError, NotFoundError, RefusedError
from vmkit.system.namespaces import NetworkNamespace


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface: number, name, text of `ip link set alias` ('' if none), number of its bridge (0 if none)."""

    index: int
    name: str
    alias: str
    master: int = 0


class Links:
    """The interfaces of one network namespace: the caller's, or the one given. A context manager."""

    def __init__(self, namespace: NetworkNamespace | None = None) -> None:
        with namespace.entered() if namespace else contextlib.nullcontext():
            self._route: Any = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._route.close()

    def all(self) -> list[Link]:
        """Every interface."""
        return [
            Link(m["index"], m.get("ifname"), m.get("ifalias") or "", m.get("master") or 0)
            for m in self._route.get_links()
        ]

    def networks(self) -> list[IPv4Network]:
        """IPv4 networks and addresses that some route of any table leads to; default routes left out."""
        found = set()
        for message in self._route.get_routes(family=2):
            if message["dst_len"] and (to := message.get("dst")):
                found.add(ipaddress.ip_network(f"{to}/{message['dst_len']}", strict=False))
        return sorted(n for n in found if isinstance(n, IPv4Network))

    def add_bridge(self, name: str, mac: str) -> None:
        """Make a bridge without spanning tree, so that a port forwards at once. A MAC that was set stays as ports come.

        Raises:
            ConflictError: the name is taken.
        """
        with _translated(f"making the bridge {name}"):
            self._route.link("add", ifname=name, kind="bridge", address=mac, br_stp_state=0, br_forward_delay=0)

    def add_veth(self, name: str, peer: str, peer_namespace: NetworkNamespace) -> None:
        """Make a pair of virtual Ethernet links: `name` here, `peer` in the other namespace.

        Raises:
            ConflictError: a name is taken.
        """
        with _translated(f"making the link {name}"):
            self._route.link("add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_fd": peer_namespace.fd})

    def set(self, name: str, *, up: bool | None = None, master: str | None = None, alias: str | None = None) -> None:
        """Change an interface: up or down, port of the bridge `master`, and its alias.

        Raises:
            NotFoundError: there is no interface of that name.
        """
        index = self._index(name)
        changes: dict[str, Any] = {}
        if up is not None:
            changes["state"] = "up" if up else "down"
        if master is not None:
            changes["master"] = self._index(master)
        if alias is not None:
            changes["ifalias"] = alias
        with _translated(f"changing the link {name}"):
            self._route.link("set", index=index, **changes)

    def add_address(self, name: str, address: str, prefix: int) -> None:
        """Give an interface an IPv4 address."""
        with _translated(f"giving {name} the address {address}"):
            self._route.addr("add", index=self._index(name), address=address, prefixlen=prefix)

    def remove_address(self, name: str, address: str, prefix: int) -> bool:
        """Take an IPv4 address from an interface. False if it does not have it.

        Raises:
            NotFoundError: there is no interface of that name.
        """
        index = self._index(name)
        if not any(
            m.get_attr("IFA_LOCAL") == address and m["prefixlen"] == prefix
            for m in self._route.get_addr(index=index, family=2)
        ):
            return False
        with _translated(f"taking the address {address} from {name}"):
            self._route.addr("del", index=index, address=address, prefixlen=prefix)
        return True

    def delete(self, name: str) -> bool:
        """Delete an interface. False if there is none of that name."""
        try:
            with _translated(f"deleting the link {name}"):
                self._route.link("del", index=self._index(name))
        except NotFoundError:
            return False
        return True

    def _index(self, name: str) -> int:
        found = self._route.link_lookup(ifname=name)
        if not found:
            raise NotFoundError(f"no network interface named {name}", hint="see what there is: ip link")
        return int(found[0])


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as e:
        text = f"{what}: {e.args[1] if len(e.args) > 1 else e}"
        match e.code:
            case 17:
                raise ConflictError(text, hint="see what there is: ip link") from e
            case 1:
                raise RefusedError(text, hint="run as root") from e
            case 19:  # ENODEV
                raise NotFoundError(text, hint="see what there is: ip link") from e
        raise EffectError(text) from e
