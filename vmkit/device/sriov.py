"""Physical functions and their virtual functions: what there is, and how many there are to be."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmkit.device import lend
from vmkit.device.api import Seen, see
from vmkit.device.facts import Function
from vmkit.device.persist import forget, remember, remembered
from vmkit.device.plan import find_pf
from vmkit.device.usage import Kind, Usage
from vmkit.errors import ConflictError, DeadlineError, EffectError, NotFoundError, SpecError
from vmkit.hypervisor.host import Host
from vmkit.progress import Note, Reporter, silent
from vmkit.system.clock import Deadline
from vmkit.system.vf import NO_MAC, VfSettings

SETTLE: Final = 10.0
"""Seconds that a card gets for its link, and udev for the drivers of new functions; igb takes under 1 s."""


@dataclass(frozen=True, slots=True)
class Vf:
    """A virtual function.

    Attributes:
        number: of its physical function, from 0.
        mac: what the physical function gave it; None if it chose one by itself, or none is known.
        vlan: None for none. max_tx_rate: Mbit/s, None for no limit.
        spoofcheck, trust: None where the driver does not tell.
        driver: on the host. use, used_by, vm: as in Device.
    """

    number: int
    address: str
    mac: str | None
    vlan: int | None
    max_tx_rate: int | None
    spoofcheck: bool | None
    trust: bool | None
    driver: str | None
    nets: tuple[str, ...]
    use: Kind
    used_by: str
    vm: str | None


@dataclass(frozen=True, slots=True)
class Pf:
    """A physical function with SR-IOV.

    Attributes:
        name: its network interface; its address where it has none.
        up: whether that is up.
        total: how many virtual functions it can have.
        persistent: how many it gets when the host boots; None where vmkit has not been told.
        vfs: those that it has.
    """

    name: str
    address: str
    model: str
    driver: str | None
    up: bool
    total: int
    persistent: int | None
    vfs: tuple[Vf, ...]


class Sriov:
    """The SR-IOV cards of one host.

    Args:
        connect: returns the open connection to it. Its URI says where they are: on this machine, or behind ssh.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def list(self) -> builtins.list[Pf]:
        """Every physical function, with its virtual functions.

        Raises:
            UnsupportedError: the host is another machine, and the URI does not lead there by ssh.
        """
        seen = see(self._connect())
        uses, kept = seen.uses(), remembered(seen.machine)
        return [_pf(f, seen, uses, kept.get(f.address)) for f in seen.facts.physical()]

    def set(self, pf: str, count: int, *, persist: bool = False, reporter: Reporter = silent) -> Pf:
        """Give a physical function this many virtual functions. Those that it has are removed first if it has others.

        Args:
            pf: its network interface, or its address.
            count: 0 for none.
            persist: do so too at each boot of the host, by a systemd unit of its own; count 0 removes that.
            reporter: told what happens.

        Raises:
            NotFoundError: no such physical function. SpecError: it cannot have so many.
            ConflictError: one of those that it has is in use; the details say by whom. Nothing was touched.
            EffectError: the driver says no.
        """
        seen = see(self._connect())
        function = find_pf(seen.facts, pf)
        if not 0 <= count <= function.total_vfs:
            raise SpecError(
                f"{count} is not between 0 and {function.total_vfs}, the most that {function.address} can have",
                path="COUNT",
            )
        if count != len(function.vfs):
            _check_unused(function, seen)
            _leave(function, seen)
            _make(function, count, seen, reporter)
        if persist:
            (remember if count else forget)(seen.machine, function.address, count)
        again = self._settled(function.address) if count else see(self._connect())
        kept = remembered(again.machine).get(function.address)
        if count and not persist and kept != count:
            reporter(Note("the number is lost when the host boots: --persist keeps it", warning=True))
        return _pf(find_pf(again.facts, function.address), again, again.uses(), kept)

    def _settled(self, pf: str) -> Seen:
        """The host once the card has its link and its functions their drivers, which udev loads; or as it is then."""
        seen: Seen

        def ready() -> bool:
            nonlocal seen
            seen = see(self._connect())
            function = find_pf(seen.facts, pf)
            bound = all(seen.facts.functions[a].driver for a in function.vfs if a in seen.facts.functions)
            return bound and set(function.nets) <= seen.facts.up

        with contextlib.suppress(DeadlineError):  # no cable, or no driver: the answer shows it
            Deadline(SETTLE).wait_for(f"virtual functions of {pf}", ready, interval=0.3)
        return seen


def _check_unused(function: Function, seen: Seen) -> None:
    uses = seen.uses()
    busy = [(a, uses[a]) for a in function.vfs if a in uses and uses[a].kind not in (Kind.FREE, Kind.ORPHAN)]
    if busy:
        raise ConflictError(
            f"{len(busy)} of the {len(function.vfs)} virtual functions of {_name(function)} are in use",
            hint="the number can be changed only when none is: stop those VMs first",
            details=tuple(f"{address}  {use.text}" for address, use in busy),
        )


def _leave(function: Function, seen: Seen) -> None:
    """Virtual functions that were left behind go with the others; their claims must not outlive them."""
    for address in function.vfs:
        if (claim := seen.facts.claims.get(address)) is not None:
            lend.give_back(seen.machine, claim)


def _make(function: Function, count: int, seen: Seen, reporter: Reporter) -> None:
    path = f"{lend.PCI}/devices/{function.address}/sriov_numvfs"
    for net in function.nets:
        if net not in seen.facts.up and count:
            reporter(Note(f"bringing {net} up: its virtual functions are dead before"))
            seen.machine.set_up(net)
    try:
        if function.vfs:
            seen.machine.write(path, "0")
        if count:
            seen.machine.write(path, str(count))
    except EffectError as e:
        raise EffectError(
            f"{_name(function)} does not take {count} virtual functions: {e.message}",
            left="see vmkit sriov list for how many it has now",
            hint=f"the kernel says more: dmesg | grep {function.address}",
        ) from e


def _pf(function: Function, seen: Seen, uses: dict[str, Usage], kept: int | None) -> Pf:
    settings: dict[int, VfSettings] = {}
    if function.vfs and function.nets:
        try:
            settings = seen.machine.vf_settings(function.nets[0])
        except NotFoundError:  # renamed at this moment
            settings = {}
    return Pf(
        name=_name(function),
        address=function.address,
        model=function.name,
        driver=function.driver,
        up=bool(set(function.nets) & seen.facts.up),
        total=function.total_vfs,
        persistent=kept,
        vfs=tuple(
            _vf(seen.facts.functions[a], i, settings.get(i, VfSettings()), uses[a])
            for i, a in enumerate(function.vfs)
            if a in seen.facts.functions
        ),
    )


def _vf(function: Function, number: int, settings: VfSettings, use: Usage) -> Vf:
    return Vf(
        number=number,
        address=function.address,
        mac=None if settings.mac == NO_MAC else settings.mac,
        vlan=settings.vlan or None,
        max_tx_rate=settings.max_tx_rate or None,
        spoofcheck=settings.spoofcheck,
        trust=settings.trust,
        driver=function.driver,
        nets=function.nets,
        use=use.kind,
        used_by=use.text,
        vm=use.who,
    )


def _name(function: Function) -> str:
    return (*function.nets, function.address)[0]
