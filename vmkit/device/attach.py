"""Giving a function to a VM that exists, and taking it away again."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from vmkit.device import lend
from vmkit.device.api import Seen, see
from vmkit.device.facts import Function
from vmkit.device.memory import NAMESPACE, PREFIX, Lendings, VfMemory, read_element, to_element
from vmkit.device.plan import Pick, Wish, check_address, choose, stable_mac
from vmkit.device.xml import Assigned, assigned, hostdev, interface
from vmkit.errors import ConflictError, DeadlineError, NotFoundError, SpecError
from vmkit.hypervisor import hotplug
from vmkit.hypervisor.domain import Domain
from vmkit.progress import Reporter, silent
from vmkit.system.clock import Deadline
from vmkit.system.vf import VfSettings
from vmkit.values import check_mac

UNPLUG: Final = 60.0
"""Seconds for a guest to let go of a function: Linux takes about one, and does not listen while it boots."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What `attach` did: where the function is from now on. `mac` is None for a function that is no network VF."""

    vm: str
    address: str
    mac: str | None
    now: bool
    at_start: bool


@dataclass(frozen=True, slots=True)
class Network:
    """Settings of a virtual function as a user gives them; None leaves it as the card has it."""

    mac: str | None = None
    vlan: int | None = None
    max_tx_rate: int | None = None
    spoofcheck: bool = True
    trust: bool = False

    def checked(self) -> Network:
        """The same, with the MAC address in lower case.

        Raises:
            SpecError: a value is out of range.
        """
        if self.vlan is not None and not 1 <= self.vlan <= 4094:
            raise SpecError(f"{self.vlan} is not between 1 and 4094", path="--vlan", hint="leave it out for none")
        if self.max_tx_rate is not None and self.max_tx_rate < 1:
            raise SpecError(f"{self.max_tx_rate} is not a rate", path="--max-tx-rate", hint="in Mbit/s")
        return replace(self, mac=check_mac(self.mac, path="--mac") if self.mac else None)

    def settings(self, mac: str) -> VfSettings:
        """As the physical function takes them."""
        return VfSettings(
            mac=mac,
            vlan=self.vlan or 0,
            qos=0,
            max_tx_rate=self.max_tx_rate or 0,
            spoofcheck=self.spoofcheck,
            trust=self.trust,
        )


def lendings_of(domain: Domain) -> Lendings:
    """What vmkit lends to a domain, from its metadata."""
    return read_element(domain.metadata(NAMESPACE))


def remember(domain: Domain, lendings: Lendings) -> None:
    """Keep in a domain's metadata what vmkit lends to it."""
    hotplug.set_metadata(domain, to_element(lendings) if lendings else None, prefix=PREFIX, namespace=NAMESPACE)


def attach(
    domain: Domain,
    device: str,
    *,
    network: Network | None = None,
    from_host: bool = False,
    reporter: Reporter = silent,
) -> Attached:
    """Give a function to a VM: at once if it runs, and at each start if it has a definition.

    Args:
        domain: the VM.
        device: PCI address; 'vf' for any network VF that is free, 'vf:NAME' for one of that physical function.
        network: settings, for a virtual function of a network card.
        from_host: also if the host itself uses the function.
        reporter: told what happens.

    Raises:
        ConflictError, RefusedError, NotFoundError, UnsupportedError: as plan.choose; nothing was touched.
        EffectError: libvirt or the driver says no; the function is with its host again.
    """
    given = (network or Network()).checked()
    active, persistent = domain.state().active, domain.persistent
    seen = see(domain.host)
    before = lendings_of(domain)
    mac = given.mac or _free_mac(domain.uuid, before)
    pick = _pick(seen, device, given.settings(mac), domain, from_host)
    function = pick.function
    if pick.wish.settings is None and network is not None and network != Network():
        raise SpecError(
            f"{function.address} is no virtual function of a network card; it takes no such settings",
            hint="leave them out: --mac, --vlan, --max-tx-rate, --spoofcheck and --trust are for virtual functions",
        )
    is_vf = pick.wish.settings is not None
    if is_vf:
        element = interface(function.address, mac, given.vlan)
        pf = device.partition(":")[2] if device.startswith("vf:") else None
        after = before.with_vf(
            VfMemory(pf or (pick.pf.address if device != "vf" and pick.pf else None), given.settings(mac))
        )
    else:
        element, after = hostdev(function.address), before.with_function(function.address)
    if active:
        work = f"device attach {domain.name}"
        with lend.lent(
            seen.machine, [pick], seen.facts, vm=domain.name, uuid=domain.uuid, work=work, reporter=reporter
        ):
            hotplug.attach(domain, element, live=True, config=persistent)
    else:
        hotplug.attach(domain, element, live=False, config=True)
    remember(domain, after)
    return Attached(domain.name, function.address, mac if is_vf else None, active, persistent)


def detach(domain: Domain, device: str, *, deadline: float = UNPLUG) -> Attached:
    """Take a function from a VM, now and for its next starts, and give it back to the host.

    Args:
        domain: the VM.
        device: PCI address of the host, or the MAC address of the VM's NIC.
        deadline: seconds for the guest to let go of it.

    Raises:
        NotFoundError: the VM has no such function. DeadlineError: the guest keeps it; it is gone from the definition.
    """
    active = domain.state().active
    live = assigned(domain.xml()) if active else ()
    config = assigned(domain.xml(inactive=True)) if domain.persistent else ()
    wanted = device.lower() if device.count(":") == 5 else check_address(device)
    in_live, in_config = _find(live, wanted), _find(config, wanted)
    found = in_live or in_config
    if found is None:
        there = ", ".join(sorted({a.address for a in (*live, *config)})) or "none"
        raise NotFoundError(f"{domain.name} has no function {wanted} of its host", hint=f"it has: {there}")
    if in_config is not None:
        hotplug.detach(domain, in_config.xml, live=False, config=True)
    remember(domain, lendings_of(domain).without(mac=found.mac, address=found.address))
    if in_live is not None:
        _unplug(domain, in_live, deadline)
    take_back(see(domain.host), domain.uuid, only=found.address)
    return Attached(domain.name, found.address, found.mac, active and in_live is not None, in_config is not None)


def take_back(seen: Seen, uuid: str, *, only: str | None = None) -> None:
    """Give what was lent to a domain, which may be gone by now, and is not in use any more back to the host.

    Raises:
        EffectError: a driver does not take its function back; its claim stays.
    """
    running = {a for g in seen.guests if g.uuid == uuid and g.active for a in g.running}
    for claim in seen.facts.claims.values():
        if claim.uuid == uuid and claim.address not in running and only in (None, claim.address):
            lend.give_back(seen.machine, claim)


def _pick(seen: Seen, device: str, settings: VfSettings, domain: Domain, from_host: bool) -> Pick:
    if device == "vf" or device.startswith("vf:"):
        wish = Wish(domain.name, pf=device.partition(":")[2] or None, settings=settings)
    else:
        address = check_address(device, path="DEVICE")
        function = seen.facts.functions.get(address)
        settled = settings if _network_vf(function, seen) else None
        wish = Wish(domain.name, address=address, settings=settled)
        wish = replace(wish, from_host=from_host)
    if device != "vf" and any(a.address == wish.address for a in assigned(domain.xml())):
        raise ConflictError(f"{domain.name} has {wish.address} already", hint=f"vmkit show {domain.name}")
    (pick,) = choose(seen.facts, seen.uses(), [wish], vm=domain.name, uuid=domain.uuid)
    return pick


def _network_vf(function: Function | None, seen: Seen) -> bool:
    """Whether a physical function with an interface of its own can set this one up."""
    if function is None or function.pf is None or function.kind != "network":
        return False
    pf = seen.facts.functions.get(function.pf)
    return pf is not None and bool(pf.nets)


def _free_mac(uuid: str, lendings: Lendings) -> str:
    return next(m for i in range(256, 512) if (m := stable_mac(uuid, i)) not in lendings.vfs)


def _find(all_of: Sequence[Assigned], wanted: str) -> Assigned | None:
    return next((a for a in all_of if wanted in (a.address, a.mac)), None)


def _unplug(domain: Domain, found: Assigned, seconds: float) -> None:
    """Ask the guest to let go, again from time to time: a request is lost while it boots."""
    limit = Deadline(seconds)
    while True:
        with contextlib.suppress(ConflictError):  # libvirt: the last request is still under way
            hotplug.detach(domain, found.xml, live=True, config=False)
        try:
            Deadline(min(10.0, limit.left)).wait_for(
                "unplug", lambda: _find(assigned(domain.xml()), found.address) is None, interval=0.2
            )
        except DeadlineError:
            if not limit.passed:
                continue
            raise DeadlineError(
                f"the guest of {domain.name} did not let go of {found.address} within {seconds:g} s; it still has it",
                hint=f"it is gone from the definition: vmkit stop {domain.name} gives it back",
            ) from None
        return
