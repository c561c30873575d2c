"""The devices of a host, as the Python API and the command line see them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkit.device import lend
from vmkit.device.facts import VFIO, DeviceFacts, Function
from vmkit.device.plan import check_address, function_at
from vmkit.device.usage import Guest, Kind, Usage, addresses_in, usage_of, usages
from vmkit.errors import ConflictError, NotFoundError, RefusedError, VmkitError
from vmkit.hypervisor.host import Host
from vmkit.progress import Note, Reporter, silent
from vmkit.system.devices import DeviceHost, devices_of

if TYPE_CHECKING:
    from vmkit.device.attach import Attached, Network

FORCE: Final = "--force"


@dataclass(frozen=True, slots=True)
class Device:
    """A PCI function, and who uses it.

    Attributes:
        use: 'free', 'host' (the host needs it), 'vm', 'process' (with VFIO, and no domain of libvirt), 'pending' (an
            operation of vmkit is at it) or 'orphan' (left behind).
        used_by: that in words; '' for nobody.
        vm: name of the VM that has it, gets it, or left it behind.
        shared_with: the other functions of its IOMMU group, without bridges.
        otherwise as facts.Function.
    """

    address: str
    kind: str
    name: str
    id: str
    group: str | None
    shared_with: tuple[str, ...]
    driver: str | None
    numa: int | None
    pf: str | None
    vf: int | None
    total_vfs: int
    vfs: int
    nets: tuple[str, ...]
    use: Kind
    used_by: str
    vm: str | None


@dataclass(frozen=True, slots=True)
class Seen:
    """A host's functions and guests at one moment, and the machine to change them on."""

    machine: DeviceHost
    facts: DeviceFacts
    guests: tuple[Guest, ...]

    def uses(self) -> dict[str, Usage]:
        """Who uses each function, by address."""
        return dict(usages(self.facts, self.guests, lend.lives))


class Devices:
    """The PCI functions of one host.

    Args:
        connect: returns the open connection to it. Its URI says where they are: on this machine, or behind ssh.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def list(self) -> builtins.list[Device]:
        """Every function but bridges, by address. Nothing is changed, also where one was left behind.

        Raises:
            UnsupportedError: the host is another machine, and the URI does not lead there by ssh.
        """
        seen = see(self._connect())
        return [_device(f, seen) for f in seen.facts.functions.values() if not f.stays]

    def show(self, address: str) -> Device:
        """One function.

        Raises:
            NotFoundError: there is none.
        """
        seen = see(self._connect())
        return _device(function_at(seen.facts, check_address(address)), seen)

    def attach(
        self,
        vm: str,
        device: str,
        *,
        network: Network | None = None,
        from_host: bool = False,
        reporter: Reporter = silent,
    ) -> Attached:
        """Give a function to a VM: see vmkit.device.attach.attach."""
        from vmkit.device.attach import attach

        domain = self._connect().domain(vm)
        return attach(domain, device, network=network, from_host=from_host, reporter=reporter)

    def detach(self, vm: str, device: str, *, deadline: float = 60.0) -> Attached:
        """Take a function from a VM: see vmkit.device.attach.detach."""
        from vmkit.device.attach import detach

        return detach(self._connect().domain(vm), device, deadline=deadline)

    def release(
        self, addresses: Sequence[str] = (), *, force: bool = False, reporter: Reporter = silent
    ) -> builtins.list[str]:
        """Give functions that were left behind back to the host: their settings, then their driver.

        Args:
            addresses: which; none of them means all that were left behind.
            force: also what an operation on another machine claims, of which cannot be told whether it still runs.
            reporter: told of each.

        Returns:
            One line about each.

        Raises:
            ConflictError: a VM, a process or an operation of vmkit uses it. NotFoundError: nothing was left behind.
            EffectError: a driver does not take its function back.
        """
        seen = see(self._connect())
        uses = seen.uses()
        wanted = [check_address(a) for a in addresses]
        if not wanted:
            wanted = [a for a, u in uses.items() if u.kind is Kind.ORPHAN]
            wanted += [a for a in seen.facts.claims if a not in seen.facts.functions]
        else:
            for address in wanted:
                _check_release(seen, address, uses, force)
        done, failed = [], None
        for address in wanted:
            try:
                done.append(_release(seen, address))
            except VmkitError as e:
                if failed is not None or len(wanted) > 1:
                    reporter(Note(e.message, warning=True))
                failed = failed or e
        if failed is not None:
            raise failed
        return done


def see(host: Host) -> Seen:
    """Look at a host's functions and domains."""
    machine = devices_of(host.uri)
    return Seen(machine, lend.look(machine), guests_of(host))


def guests_of(host: Host) -> tuple[Guest, ...]:
    """The domains of a host, with the functions that each has. A domain that goes away meanwhile is left out."""
    found = []
    for domain in host.domains():
        try:
            active = domain.state().active
            running = addresses_in(domain.xml()) if active else frozenset()
            configured = addresses_in(domain.xml(inactive=True)) if domain.persistent else running
        except NotFoundError:
            continue
        found.append(Guest(domain.name, domain.uuid, active, running, configured))
    return tuple(found)


def _device(function: Function, seen: Seen) -> Device:
    use = usage_of(function, seen.facts, seen.guests, lend.lives)
    others = seen.facts.group(function.group) if function.group else ()
    text = use.text
    if not text and (names := sorted(g.name for g in seen.guests if function.address in g.configured)):
        text = f"configured for {', '.join(names)}"
    return Device(
        address=function.address,
        kind=function.kind,
        name=function.name,
        id=function.id,
        group=function.group,
        shared_with=tuple(f.address for f in others if not f.stays and f.address != function.address),
        driver=function.driver,
        numa=function.numa,
        pf=function.pf,
        vf=function.number,
        total_vfs=function.total_vfs,
        vfs=len(function.vfs),
        nets=function.nets,
        use=use.kind,
        used_by=text,
        vm=use.who,
    )


def _check_release(seen: Seen, address: str, uses: dict[str, Usage], force: bool) -> None:
    if address not in seen.facts.functions and address in seen.facts.claims:
        return
    function = function_at(seen.facts, address)
    use = uses[address]
    match use.kind:
        case Kind.VM:
            raise ConflictError(
                f"{address} is in use: {use.text} has it", hint=f"vmkit device detach {use.who} {address}"
            )
        case Kind.PROCESS:
            raise ConflictError(f"{address} is in use: {use.text}", hint="end that process first")
        case Kind.PENDING:
            claim = seen.facts.claims[address]
            if lend.lives(claim.by) is None and force:
                return
            hint = "wait for it, or see vmkit jobs"
            if lend.lives(claim.by) is None:
                hint = f"if that does not run any more: vmkit device release {FORCE} {address}"
            raise ConflictError(f"{address} is in use: {use.text}", hint=hint)
        case Kind.FREE | Kind.HOST:
            raise RefusedError(
                f"{address} was not left behind: it is with its host (driver {function.driver or 'none'})",
                hint="vmkit device list shows who has what",
            )


def _release(seen: Seen, address: str) -> str:
    if (claim := seen.facts.claims.get(address)) is not None:
        return lend.give_back(seen.machine, claim)
    function = function_at(seen.facts, address)
    if function.driver != VFIO:
        return f"{address}: is with its host already"
    return lend.release_unclaimed(seen.machine, function)
