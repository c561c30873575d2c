"""Which functions a VM gets, and whether it may have them. Pure: wishes and facts in, functions or a refusal out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vmkit.device.facts import ADDRESS, DeviceFacts, Function
from vmkit.device.usage import Kind, Usage
from vmkit.errors import ConflictError, NotFoundError, RefusedError, SpecError, UnsupportedError
from vmkit.system.vf import WORDS, VfSettings
from vmkit.values import quoted

TAKE_FROM_HOST: Final = "--take-from-host"
"""The option that gives away what the host itself uses."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A function that a VM is to have.

    Attributes:
        subject: the field it comes from, as in 'nics[0]'.
        address: this function, and no other; None for any virtual function that is free.
        pf: network interface or address of the physical function that it has to belong to; None for any.
        prefer: the virtual function to take if it is free: the one that the VM had before.
        settings: what its physical function is to hold of it; None to leave that alone.
        from_host: also if the host itself uses it.
    """

    subject: str
    address: str | None = None
    pf: str | None = None
    prefer: str | None = None
    settings: VfSettings | None = None
    from_host: bool = False


@dataclass(frozen=True, slots=True)
class Pick:
    """A wish, and the function that fulfils it.

    Attributes:
        wish: what was wished for.
        function: what is taken.
        pf: its physical function, if it is a virtual one.
        reason: why this one.
        left_behind: it is claimed by something that no longer runs, and has to be given back first.
    """

    wish: Wish
    function: Function
    pf: Function | None
    reason: str
    left_behind: bool = False


def check_address(text: str, *, path: str = "address") -> str:
    """The address of a PCI function in lower case, with the domain that people leave out.

    Raises:
        SpecError: it is not one.
    """
    address = text.strip().lower()
    address = f"0000:{address}" if address.count(":") == 1 else address
    if not ADDRESS.match(address):
        raise SpecError(
            f"{quoted(text)} is not a PCI address", path=path, hint="write it like 0000:01:00.0; see vmkit device list"
        )
    return address


def function_at(facts: DeviceFacts, address: str) -> Function:
    """The function at an address.

    Raises:
        NotFoundError: there is none.
    """
    if (found := facts.functions.get(address)) is None:
        raise NotFoundError(f"no PCI function {address} on {facts.host}", hint="see what there is: vmkit device list")
    return found


def find_pf(facts: DeviceFacts, text: str) -> Function:
    """The physical function with this network interface or address.

    Raises:
        NotFoundError: there is none; the hint names those that there are.
    """
    for function in facts.physical():
        if text in function.nets or text.lower() in (function.address, function.address.removeprefix("0000:")):
            return function
    there = [", ".join([*f.nets, f.address]) for f in facts.physical()]
    hint = f"there is: {'; '.join(there)}" if there else "no device of this host has SR-IOV"
    raise NotFoundError(f"no physical function {quoted(text)} on {facts.host}", hint=hint)


def choose(
    facts: DeviceFacts, uses: Mapping[str, Usage], wishes: Sequence[Wish], *, vm: str, uuid: str | None = None
) -> tuple[Pick, ...]:
    """A function for each wish; all of them, or none.

    Args:
        facts: the host's functions.
        uses: who uses each.
        wishes: what the VM is to have.
        vm: its name, for messages.
        uuid: its identity; what it left behind itself is its own to take again.

    Raises:
        NotFoundError: no such function, or no virtual function at all. ConflictError: it is in use, or none is free.
        RefusedError: its group holds more, or the host itself uses it. UnsupportedError: there is no IOMMU, or the
            driver does not have a setting that was asked for.
    """
    fixed: set[str | None] = {w.address for w in wishes if w.address}
    taken = {a for a in fixed if a}
    picks = []
    for wish in wishes:
        if wish.address:
            pick = _given(facts, uses, wish, fixed, uuid)
        else:
            pick = _from_pool(facts, uses, wish, taken, vm, uuid)
            taken.add(pick.function.address)
        picks.append(pick)
    return tuple(picks)


def _given(
    facts: DeviceFacts, uses: Mapping[str, Usage], wish: Wish, together: set[str | None], uuid: str | None
) -> Pick:
    function = function_at(facts, wish.address or "")
    use, own = uses[function.address], _own(facts, function, uuid)
    if use.kind in (Kind.VM, Kind.PROCESS, Kind.PENDING):
        raise ConflictError(
            f"{wish.subject}: {function.address} is in use: {use.text}",
            hint="take it from there first, or see what is free: vmkit device list",
        )
    if use.kind is Kind.ORPHAN and not own:
        raise ConflictError(
            f"{wish.subject}: {function.address} was left behind ({use.text})",
            hint=f"give it back to its host first: vmkit device release {function.address}",
        )
    check_assignable(facts, function, together, wish.subject)
    if use.kind is Kind.HOST and not wish.from_host:
        why = use.text.removeprefix("host: ")
        raise RefusedError(
            f"{wish.subject}: the host itself uses {function.address}: {why}",
            hint=f"if it may lose that, attach it by hand: vmkit device attach {TAKE_FROM_HOST} VM {function.address}",
        )
    return Pick(wish, function, facts.functions.get(function.pf or ""), "asked for", left_behind=own)


def check_assignable(facts: DeviceFacts, function: Function, together: set[str | None], subject: str) -> None:
    """Refuse what the IOMMU cannot keep apart from other functions, and what is never given away.

    Raises:
        UnsupportedError: no IOMMU is in use. RefusedError: the group holds more; the details list it.
    """
    if function.stays:
        raise RefusedError(
            f"{subject}: {function.address} is a bridge ({function.name or function.id})",
            hint="give the devices behind it: vmkit device list",
        )
    if function.vfs:
        raise ConflictError(
            f"{subject}: {function.address} has {len(function.vfs)} virtual functions, which would go with it",
            hint=f"take one of them, or remove them: vmkit sriov set {function.address} 0",
        )
    if function.group is None:
        raise UnsupportedError(
            f"{subject}: no device of {facts.host} can be given to a guest: no IOMMU is in use",
            hint="vmkit doctor says how to switch it on",
        )
    others = [f for f in facts.group(function.group) if not f.stays and f.address not in {function.address, *together}]
    if others:
        raise RefusedError(
            f"{subject}: {function.address} shares IOMMU group {function.group} with "
            f"{', '.join(f.address for f in others)}: the guest could reach them too",
            hint="give the VM all of them, or put the card into another slot",
            details=tuple(f"{f.address}  {f.name or f.id}  (driver {f.driver or 'none'})" for f in others),
        )


def _own(facts: DeviceFacts, function: Function, uuid: str | None) -> bool:
    claim = facts.claims.get(function.address)
    return claim is not None and uuid is not None and claim.uuid == uuid


def _from_pool(
    facts: DeviceFacts, uses: Mapping[str, Usage], wish: Wish, taken: set[str], vm: str, uuid: str | None
) -> Pick:
    pools = [find_pf(facts, wish.pf)] if wish.pf else sorted(facts.physical(), key=lambda f: _order(facts, uses, f))
    pools = [p for p in pools if p.kind == "network" and p.nets]  # the settings are made by way of the interface
    found: list[tuple[tuple[bool, bool, int], Function, Function]] = []
    for i, pf in enumerate(pools):
        for address in pf.vfs:
            vf = facts.functions.get(address)
            if vf is None or address in taken or len(facts.group(vf.group or "")) != 1:
                continue
            use, own = uses[address], _own(facts, vf, uuid)
            left = use.kind is Kind.ORPHAN and address in facts.claims
            if use.kind is Kind.FREE or left:
                found.append(((address != wish.prefer, left and not own, i), vf, pf))
    if not found:
        raise _no_vf(facts, uses, pools, wish, vm)
    (other, left_by_others, _), vf, pf = min(found, key=lambda c: c[0])
    claimed = vf.address in facts.claims
    name = (*pf.nets, pf.address)[0]
    reason = f"a free virtual function of {name}"
    if left_by_others:
        reason = f"virtual function of {name} that was left behind; it is given back first"
    elif not other:
        reason = f"virtual function of {name} that it had before"
    return Pick(wish, vf, pf, reason, left_behind=claimed)


def _order(facts: DeviceFacts, uses: Mapping[str, Usage], pf: Function) -> tuple[bool, int, str]:
    """Physical functions whose link is up first, then those with most virtual functions free."""
    free = sum(uses[v].kind is Kind.FREE for v in pf.vfs if v in uses)
    return not set(pf.nets) & facts.up, -free, pf.address


def _no_vf(
    facts: DeviceFacts, uses: Mapping[str, Usage], pools: Sequence[Function], wish: Wish, vm: str
) -> NotFoundError | ConflictError:
    if not pools:
        return NotFoundError(f"{wish.subject}: no network card of {facts.host} has SR-IOV", hint="use io: virtio")
    made = [v for p in pools for v in p.vfs]
    if not made:
        first = pools[0]
        name = (*first.nets, first.address)[0]
        return NotFoundError(
            f"{wish.subject}: {name} has no virtual functions yet, and could have {first.total_vfs}",
            hint=f"vmkit sriov set {name} {first.total_vfs}",
        )
    lines = tuple(f"{a}  {uses[a].text or 'shares its IOMMU group'}" for a in made if a in uses)
    more = next((p for p in pools if len(p.vfs) < p.total_vfs), None)
    hint = "stop a VM that has one"
    if more:
        hint += f"; {(*more.nets, more.address)[0]} has {len(more.vfs)} of {more.total_vfs}: vmkit sriov set"
    return ConflictError(f"{wish.subject}: no virtual function is free for {vm}", hint=hint, details=lines)


def changes_for(wanted: VfSettings, now: VfSettings, *, subject: str, driver: str | None) -> dict[str, Any]:
    """What has to be set to bring a virtual function from `now` to `wanted`.

    A setting that the driver does not tell (None in `now`) cannot be set either; that matters only where the wish
    differs from what such cards do by themselves: no limit, no VLAN, no trust, and a spoof check if they have one.

    Raises:
        UnsupportedError: the driver lacks a setting that was asked for.
    """
    changes = {}
    for name, value in wanted.beyond(now).items():
        if getattr(now, name) is None:
            if name in ("max_tx_rate", "vlan", "trust") and value:
                raise UnsupportedError(
                    f"{subject}: {WORDS[name]} cannot be set: the driver {driver} does not have it", hint="leave it out"
                )
            continue
        changes[name] = value
    if "vlan" in changes or "qos" in changes:  # one request carries both
        changes["vlan"] = wanted.vlan if wanted.vlan is not None else now.vlan
        changes["qos"] = wanted.qos if wanted.qos is not None else 0
    return changes


def stable_mac(uuid: str, index: int) -> str:
    """A MAC address that a VM's NIC has at every start: of the range 52:54:00 that QEMU's own addresses are in."""
    digest = hashlib.sha256(f"{uuid}/{index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{b:02x}" for b in digest[:3])
