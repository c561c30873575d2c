"""Taking a function from the host's driver and giving it back. What these functions do, a claim on the host recalls.

The order is what makes a crash harmless: claim, then settings as they were into the claim, then the driver, then the
settings; and back in the reverse order, the claim last. Each step may be done twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from vmkit.device.claim import FOLDER, Claim, Process, to_text
from vmkit.device.facts import VFIO, DeviceFacts, Function, parse
from vmkit.device.plan import Pick, changes_for
from vmkit.errors import ConflictError, EffectError, NotFoundError, UnsupportedError, VmkitError
from vmkit.progress import Note, Reporter, silent
from vmkit.system.devices import DeviceHost, process_lives, this_process
from vmkit.system.templates import template
from vmkit.system.vf import VfSettings

PCI = "/sys/bus/pci"


def look(host: DeviceHost) -> DeviceFacts:
    """The functions of a machine now. Raises as the machine's shell does."""
    return parse(host.capture(template("devices.sh").read_text()))


def lives(process: Process) -> bool | None:
    """Whether the process that wrote a claim still runs; None where that cannot be told from here."""
    return process_lives(process.boot, process.namespace, process.pid, process.start)


def claim_for(function: Function, *, vm: str, uuid: str, work: str) -> Claim:
    """A new claim of the calling process on a function."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Claim(function.address, vm, uuid, work, Process(*this_process()), now, driver=function.driver)


@contextlib.contextmanager
def lent(
    host: DeviceHost,
    picks: Sequence[Pick],
    facts: DeviceFacts,
    *,
    vm: str,
    uuid: str,
    work: str,
    reporter: Reporter = silent,
) -> Iterator[tuple[Claim, ...]]:
    """Take functions for a VM and hold them while the block starts it; then they are the VM's.

    If taking one fails, or the block does, all are given back. What cannot be given back keeps its claim, and
    `vmkit device list` names it.

    Raises:
        ConflictError: somebody else has just taken one. UnsupportedError, EffectError: a step failed.
    """
    claims: list[Claim] = []
    try:
        for pick in picks:
            if pick.left_behind and (old := facts.claims.get(pick.function.address)):
                reporter(Note(f"{old.address} was left behind by vmkit {old.work}; giving it back first"))
                _give_back_now(host, old)
                pick = replace(pick, function=replace(pick.function, driver=old.driver))
            claims.append(take(host, pick, vm=vm, uuid=uuid, work=work))
        yield tuple(claims)
    except BaseException:
        _give_all_back(host, claims)
        raise
    for claim in claims:
        host.swap(_file(claim.address), to_text(claim), to_text(claim.now_lent()))


def _give_all_back(host: DeviceHost, claims: Sequence[Claim]) -> None:
    """After a failure. What a process has open by now is left: taking it away would wait until that process ends."""
    if not claims:
        return
    with contextlib.suppress(VmkitError):
        facts = look(host)
        for claim in reversed(claims):
            function = facts.functions.get(claim.address)
            if function is not None and function.group in facts.holders:
                continue
            with contextlib.suppress(VmkitError):  # the claim stays, and tells of it
                give_back(host, claim)


def take(host: DeviceHost, pick: Pick, *, vm: str, uuid: str, work: str) -> Claim:
    """Claim a function, bind it to VFIO, and have its physical function set it up. After a failure it is as before.

    Raises:
        ConflictError: somebody else has just taken it. UnsupportedError, EffectError: a step failed.
    """
    function, pf = pick.function, pick.pf
    claim = claim_for(function, vm=vm, uuid=uuid, work=work)
    if not host.swap(_file(claim.address), None, to_text(claim)):
        raise ConflictError(f"{function.address} has just been taken by somebody else", hint="try again")
    try:
        changes: Mapping[str, object] = {}
        if pf is not None and pf.nets and function.number is not None and pick.wish.settings is not None:
            host.set_up(pf.nets[0])  # its virtual functions are dead before
            before = _settings(host, pf.nets[0], function.number)
            changes = changes_for(pick.wish.settings, before, subject=pick.wish.subject, driver=pf.driver)
            claim = _rewrite(
                host, claim, replace(claim, pf=pf.address, net=pf.nets[0], number=function.number, before=before)
            )
        bind_vfio(host, function)
        if changes and claim.net is not None and claim.number is not None:
            host.change_vf(claim.net, claim.number, changes)
    except BaseException:
        with contextlib.suppress(VmkitError):  # the claim stays, and tells of it
            give_back(host, claim)
        raise
    return claim


def give_back(host: DeviceHost, claim: Claim) -> str:
    """Restore a function's settings and driver, and forget the claim. Returns in words what it is now.

    Raises:
        EffectError: its driver does not take it, or a setting cannot be restored; the claim stays.
    """
    text = _give_back_now(host, claim)
    return f"{claim.address}: {text}"


def _give_back_now(host: DeviceHost, claim: Claim) -> str:
    me = Process(*this_process())
    if claim.by != me or claim.lent:  # so that no two processes do this at once
        claim = _rewrite(host, claim, replace(claim, by=me, lent=False, work=f"device release {claim.address}"))
    base = f"{PCI}/devices/{claim.address}"
    if host.link(base) is None:
        _forget(host, claim)
        return "is not there any more"
    driver = host.link(f"{base}/driver")
    changes: Mapping[str, object] = {}
    if claim.before is not None and claim.net is not None and claim.number is not None:
        changes = claim.before.beyond(_settings(host, claim.net, claim.number))
    # A driver reads its address once, when it takes the function: so it comes after the settings.
    if driver is not None and (driver == VFIO != claim.driver or changes):
        _unbind(host, claim.address)
        driver = None
    failed: list[VmkitError] = []
    for name, value in changes.items():
        with _collected(failed):
            host.change_vf(claim.net or "", claim.number or 0, {name: value})
    _set_override(host, claim.address, None if claim.driver != VFIO else VFIO)
    if claim.driver is not None and driver != claim.driver:
        host.write(f"{PCI}/drivers_probe", claim.address)
        driver = host.link(f"{base}/driver")
        if driver != claim.driver:
            raise EffectError(
                f"{claim.address}: the driver {claim.driver} does not take it back",
                left=f"it has {driver or 'no driver'}",
                hint=f"modprobe {claim.driver}, then: vmkit device release {claim.address}",
            )
    if failed:
        raise EffectError(
            f"{claim.address}: not all of its settings could be restored: {failed[0].message}",
            left=f"its driver is {driver or 'none'}",
            hint=f"once that is mended: vmkit device release {claim.address}",
        )
    _forget(host, claim)
    return f"back on its driver {driver}" if driver else "back without a driver, as it was"


def bind_vfio(host: DeviceHost, function: Function) -> None:
    """Have vfio-pci drive a function, and nothing else.

    Raises:
        UnsupportedError: the host has no vfio-pci. EffectError: it does not take the function.
    """
    if host.link(f"{PCI}/devices/{function.address}/driver") == VFIO:
        return
    if host.link(f"{PCI}/drivers/{VFIO}/module") is None:
        done = host.run(["modprobe", VFIO])
        if done.status:
            raise UnsupportedError(
                f"{host.where} cannot load vfio-pci: {' '.join(done.stderr.split())}", hint="vmkit doctor says more"
            )
    _set_override(host, function.address, VFIO)
    if function.driver is not None:
        _unbind(host, function.address)
    host.write(f"{PCI}/drivers_probe", function.address)
    if (driver := host.link(f"{PCI}/devices/{function.address}/driver")) != VFIO:
        raise EffectError(
            f"vfio-pci does not take {function.address}; it has {driver or 'no driver'}",
            hint=f"the kernel may say why: dmesg | grep {function.address}",
        )


def release_unclaimed(host: DeviceHost, function: Function) -> str:
    """Give a function that is bound to vfio-pci to whatever driver of the host knows it. Returns in words what it has.

    Raises:
        EffectError: the kernel says no.
    """
    _unbind(host, function.address)
    _set_override(host, function.address, None)
    if function.modalias:
        host.run(["modprobe", "-q", "--", function.modalias])
    host.write(f"{PCI}/drivers_probe", function.address)
    driver = host.link(f"{PCI}/devices/{function.address}/driver")
    return f"{function.address}: {f'on its driver {driver}' if driver else 'no driver of the host knows it'}"


def _settings(host: DeviceHost, net: str, number: int) -> VfSettings:
    try:
        return host.vf_settings(net)[number]
    except KeyError:
        raise NotFoundError(
            f"{net} has no virtual function {number}", hint="see what there is: vmkit sriov list"
        ) from None


def _unbind(host: DeviceHost, address: str) -> None:
    with contextlib.suppress(NotFoundError):  # nothing drives it
        host.write(f"{PCI}/devices/{address}/driver/unbind", address)


def _set_override(host: DeviceHost, address: str, driver: str | None) -> None:
    host.write(f"{PCI}/devices/{address}/driver_override", f"{driver or ''}\n")


def _rewrite(host: DeviceHost, old: Claim, new: Claim) -> Claim:
    if not host.swap(_file(old.address), to_text(old), to_text(new)):
        raise ConflictError(f"the claim on {old.address} was changed by somebody else", hint="vmkit device list")
    return new


def _forget(host: DeviceHost, claim: Claim) -> None:
    host.swap(_file(claim.address), to_text(claim), None)


def _file(address: str) -> str:
    return f"{FOLDER}/{address}.json"


@contextlib.contextmanager
def _collected(errors: list[VmkitError]) -> Iterator[None]:
    try:
        yield
    except VmkitError as e:
        errors.append(e)
