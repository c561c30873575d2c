"""The networks of a host, as the Python API and the command line see them."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmkit.errors import ConflictError, NotFoundError, SpecError
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.network import Lease, Network, network, networks
from vmkit.network import facts as look
from vmkit.progress import Note, Reporter, silent

if TYPE_CHECKING:
    from vmkit.network.facts import NetworkFacts, Reserved, User
    from vmkit.network.plan import Difference
    from vmkit.network.spec import NetworkSpec
    from vmkit.plan import Plan


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of `vmkit network list`. `vms` counts the VMs on it, `managed` says whether vmkit made it."""

    name: str
    mode: str
    state: str
    bridge: str | None
    subnet: str | None
    vms: int
    autostart: bool
    managed: bool


@dataclass(frozen=True, slots=True)
class Details:
    """All that `vmkit network show` tells."""

    name: str
    uuid: str
    mode: str
    state: str
    bridge: str | None
    subnet: str | None
    gateway: str | None
    dhcp: str | None
    domain: str
    autostart: bool
    managed: bool
    ports: tuple[str, ...]
    reserved: tuple[Reserved, ...]
    leases: tuple[Lease, ...]
    vms: tuple[User, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done about one network of a file: 'created', 'changed', 'started' or 'unchanged'."""

    name: str
    action: str
    differences: tuple[Difference, ...] = ()


class Networks:
    """The networks of one host.

    Args:
        connect: returns the open connection to it.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def list(self) -> builtins.list[Summary]:
        """Every network, whoever made it, by name."""
        host = self._connect()
        rows = []
        for found in networks(host):
            seen = look.of(found)
            rows.append(
                Summary(
                    name=found.name,
                    mode=seen.mode,
                    state=_state(found),
                    bridge=seen.bridge,
                    subnet=str(seen.subnet) if seen.subnet else None,
                    vms=len({u.vm for u in look.users(host, seen)}),
                    autostart=found.autostart if found.persistent else False,
                    managed=seen.managed,
                )
            )
        return rows

    def show(self, name: str) -> Details:
        """All about one.

        Raises:
            NotFoundError: there is none of this name.
        """
        host = self._connect()
        found = network(host, name)
        seen = look.of(found)
        return Details(
            name=found.name,
            uuid=found.uuid,
            mode=seen.mode,
            state=_state(found),
            bridge=seen.bridge,
            subnet=str(seen.subnet) if seen.subnet else None,
            gateway=seen.gateway,
            dhcp="-".join(seen.dhcp) if seen.dhcp else None,
            domain=seen.domain,
            autostart=found.autostart if found.persistent else False,
            managed=seen.managed,
            ports=tuple((seen.spec or {}).get("ports", ())),
            reserved=seen.reserved,
            leases=tuple(found.leases()) if found.active else (),
            vms=tuple(look.users(host, seen)),
        )

    def plan(self, spec: NetworkSpec | dict[str, Any]) -> Plan:
        """What `create` would choose and do, with reasons. Raises as `create` does before it touches anything."""
        from vmkit.network.plan import decide
        from vmkit.network.spec import parse

        return decide(parse(spec), look.gather(self._connect()))[1]

    def create(self, spec: NetworkSpec | dict[str, Any], *, reporter: Reporter = silent) -> Details:
        """Make a network and start it.

        Raises:
            SpecError, ConflictError, NotFoundError, RefusedError, UnsupportedError: nothing was touched.
            EffectError: a step failed; what was made is removed again.
        """
        from vmkit.network.make import build
        from vmkit.network.plan import decide
        from vmkit.network.spec import parse

        wanted, host = parse(spec), self._connect()
        design, plan = decide(wanted, look.gather(host))
        for text in plan.warnings:
            reporter(Note(text, warning=True))
        return self.show(build(host, wanted, design, reporter).name)

    def start(self, name: str) -> bool:
        """Start a network that is inactive, and join the ports of its bridge. False if all of that is so already."""
        from vmkit.network.make import join

        found = network(self._connect(), name)
        seen = look.of(found)
        began = not found.active
        if began:
            found.start()
        return bool(join(name, seen.bridge, tuple((seen.spec or {}).get("ports", ())))) or began

    def delete(self, name: str, *, force: bool = False) -> None:
        """Stop a network and remove it, with its bridge if that came with it.

        Raises:
            NotFoundError: there is none of this name.
            ConflictError: VMs are on it, or another tool made it, and `force` is not set.
        """
        from vmkit.network.make import remove

        host = self._connect()
        found = network(host, name)
        seen = look.of(found)
        remove(found, seen, look.users(host, seen), force=force)

    def difference(self, spec: NetworkSpec | dict[str, Any]) -> tuple[Difference, ...] | None:
        """In what a network differs from its spec, and what a change takes; None where there is no such network.

        Raises:
            ConflictError: another tool made it.
        """
        from vmkit.network.plan import compare
        from vmkit.network.spec import dump, parse

        wanted = parse(spec)
        try:
            known = look.of(network(self._connect(), wanted.name))
        except NotFoundError:
            return None
        if known.spec is None:
            raise ConflictError(
                f"the network '{wanted.name}' exists, and another tool made it",
                hint="take it out of the file, or give it another name there",
            )
        return compare(known.spec, dump(wanted))

    def check(self, spec: NetworkSpec | dict[str, Any]) -> tuple[Difference, ...] | None:
        """As `difference`, and raise what `apply` would raise before it touches anything."""
        from vmkit.network.plan import decide
        from vmkit.network.spec import parse

        wanted = parse(spec)
        differences = self.difference(wanted)
        if differences is None:
            decide(wanted, look.gather(self._connect()))
        elif differences:
            self._planned(wanted, differences)
        return differences

    def apply(self, spec: NetworkSpec | dict[str, Any], *, reporter: Reporter = silent) -> Applied:
        """Make a network that is missing, change one that differs, start one that does not run.

        Raises:
            ConflictError: another tool made it, or a change takes its re-creation and VMs run on it.
            otherwise as `create`.
        """
        from vmkit.network.change import change
        from vmkit.network.spec import parse

        wanted, host = parse(spec), self._connect()
        differences = self.difference(wanted)
        if differences is None:
            self.create(wanted, reporter=reporter)
            return Applied(wanted.name, "created")
        if differences:
            found, known, design = self._planned(wanted, differences)
            change(host, found, wanted, known, differences, design)
        started = self.start(wanted.name)
        return Applied(wanted.name, "changed" if differences else "started" if started else "unchanged", differences)

    def _planned(self, wanted: NetworkSpec, differences: tuple[Difference, ...]) -> tuple[Network, NetworkFacts, Any]:
        from vmkit.network.change import plan_change

        host = self._connect()
        found = network(host, wanted.name)
        known = look.of(found)
        return (
            found,
            known,
            plan_change(wanted, known, look.gather(host), differences, look.users(host, known)),
        )

    def reserve(self, name: str, vm: str, address: str, *, mac: str | None = None) -> Reserved:
        """Keep an address of a network for a VM, from its next request on; its name is resolved at once.

        Args:
            name: of the network.
            vm: name of a VM whose NIC is on it, or, with `mac`, any name.
            address: IPv4 address in the network.
            mac: MAC address; None takes that of the VM's NIC.

        Raises:
            NotFoundError: no such network, or the VM has no NIC on it.
            SpecError: the address is not one of the network's. ConflictError: it is taken.
        """
        from vmkit.network.facts import Reserved
        from vmkit.network.reserve import reserve
        from vmkit.network.spec import check_label, guest_address
        from vmkit.values import check_mac

        host = self._connect()
        found = network(host, name)
        seen = look.of(found)
        if seen.subnet is None:
            raise SpecError(
                f"the network '{name}' has no addresses of its own",
                path="address",
                hint="reserve it where the addresses of its bridge are handed out",
            )
        at = str(guest_address(address, seen.subnet, "address"))
        if mac is None:
            macs = [u.mac for u in look.users(host, seen) if u.vm == vm]
            if len(macs) != 1:
                raise NotFoundError(
                    f"{vm} has {len(macs) or 'no'} NICs on the network '{name}'",
                    hint="name the one that is meant: --mac",
                )
            mac = macs[0]
        wanted = Reserved(check_mac(mac, path="--mac"), at, check_label(vm, "name"))
        reserve(found, wanted)
        return wanted

    def release(self, name: str, which: str) -> tuple[Reserved, ...]:
        """Take back what is reserved in a network for a name, an address or a MAC address.

        Raises:
            NotFoundError: nothing is.
        """
        from vmkit.network.reserve import release

        found = network(self._connect(), name)
        there = [r for r in look.of(found).reserved if which.lower() in (r.name.lower(), r.address, r.mac)]
        if not there:
            raise NotFoundError(f"nothing is reserved for {which} in '{name}'", hint=f"vmkit network show {name}")
        for reserved in there:
            release(found, reserved)
        return tuple(there)


def _state(found: Network) -> str:
    return "active" if found.active else "inactive"
