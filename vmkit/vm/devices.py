"""Functions of the host's cards in the life of a VM: lent at its start as its spec has it, given back at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vmkit.errors import UnsupportedError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.host import Host
from vmkit.plan import Choice, Plan, Step
from vmkit.progress import Reporter, silent
from vmkit.system.vf import VfSettings

if TYPE_CHECKING:
    from vmkit.device.memory import Lendings
    from vmkit.device.plan import Pick, Wish
    from vmkit.vm.design import Design
    from vmkit.vm.spec import VmSpec


def wishes_of(spec: VmSpec, design: Design) -> tuple[Wish, ...]:
    """The functions that a VM is to have: virtual functions of its NICs, and devices that it gets whole."""
    from vmkit.device.plan import Wish

    found = []
    for nic in design.nics:
        subject = f"nics[{nic.index}]"
        if nic.kind == "pci":
            found.append(Wish(f"{subject}.device", address=nic.source))
        elif nic.kind == "vf":
            asked = spec.nics[nic.index]
            settings = VfSettings(
                mac=nic.mac,
                vlan=nic.vlan or 0,
                qos=0,
                max_tx_rate=asked.max_tx_rate or 0,
                spoofcheck=asked.spoofcheck,
                trust=asked.trust,
            )
            found.append(Wish(subject, pf=asked.pf, settings=settings))
    return (*found, *(Wish(f"devices[{i}]", address=a) for i, a in enumerate(design.devices)))


def lendings_for(wishes: Sequence[Wish]) -> Lendings:
    """What has to be remembered of wishes, so that each start of the VM fulfils them again."""
    from vmkit.device.memory import Lendings, VfMemory

    vfs = {str(w.settings.mac): VfMemory(w.pf, w.settings) for w in wishes if w.settings is not None}
    return Lendings(vfs, tuple(w.address for w in wishes if w.address is not None and w.settings is None))


def remember(domain: Domain, wishes: Sequence[Wish]) -> None:
    """Keep in the domain's metadata what it is to have at each start."""
    from vmkit.device.attach import remember as keep

    keep(domain, lendings_for(wishes))


def planned(host: Host, spec: VmSpec, design: Design, plan: Plan) -> Plan:
    """The plan with the functions that would be taken now. Raises as vmkit.device.plan.choose; nothing is touched."""
    wishes = wishes_of(spec, design)
    if not wishes:
        return plan
    picks, up = _choose(host, wishes, spec.name, None)
    choices = [Choice(p.wish.subject, p.function.address, f"{p.reason}; {_named(p)}") for p in picks]
    steps = [Step("lend", f"{p.function.address} to {spec.name}", _settings(p)) for p in picks]
    at = next((i for i, step in enumerate(plan.steps) if step.verb == "define"), len(plan.steps))
    return replace(
        plan,
        choices=(*plan.choices, *choices),
        steps=(*plan.steps[:at], *steps, *plan.steps[at:]),
        warnings=(*plan.warnings, *_warnings(picks, up, autostart=spec.autostart)),
    )


def _warnings(picks: Sequence[Pick], up: frozenset[str], *, autostart: bool) -> list[str]:
    down = sorted({n for p in picks if p.pf is not None for n in p.pf.nets[:1] if n not in up})
    found = [f"{n} is down: it is brought up, since its virtual functions are dead before" for n in down]
    if autostart and any(p.wish.settings is not None for p in picks):
        found.append(
            "started with the host, it is libvirt that starts it: MAC address and VLAN are set then, rate limit, "
            "spoof check and trust are not; vmkit sriov set --persist keeps its virtual function there"
        )
    return found


@contextlib.contextmanager
def lent(
    host: Host,
    wishes: Sequence[Wish],
    *,
    vm: str,
    uuid: str,
    work: str,
    start: bool = True,
    reporter: Reporter = silent,
) -> Iterator[tuple[Pick, ...]]:
    """Fulfil wishes, and hold the functions while the block starts the VM. If it fails they go back to the host.

    With `start` False nothing is taken: the functions are only found, for a definition that names them.
    """
    from vmkit.device import lend
    from vmkit.device.api import see
    from vmkit.device.plan import choose

    if not wishes:
        yield ()
        return
    _check_driver(host)
    seen = see(host)
    picks = choose(seen.facts, seen.uses(), wishes, vm=vm, uuid=uuid)
    if not start:
        yield picks
        return
    with lend.lent(seen.machine, picks, seen.facts, vm=vm, uuid=uuid, work=work, reporter=reporter):
        yield picks


def addresses(picks: Sequence[Pick], design: Design) -> Mapping[int, str]:
    """The address of the virtual function of each NIC, by the NIC's number in the spec."""
    by_subject = {p.wish.subject: p.function.address for p in picks}
    return {n.index: by_subject[f"nics[{n.index}]"] for n in design.nics if n.kind == "vf" and by_subject}


@contextlib.contextmanager
def lent_for_start(domain: Domain, reporter: Reporter = silent) -> Iterator[None]:
    """Lend a defined VM again what it had; the block starts it. Costs one question to libvirt where it has nothing.

    A virtual function that is with somebody else by now is replaced by another one, also in the definition.
    """
    from vmkit.device.attach import lendings_of
    from vmkit.device.plan import Wish
    from vmkit.device.xml import assigned, moved

    lendings = lendings_of(domain)
    if not lendings:
        yield
        return
    xml = domain.xml(inactive=True, secure=True)
    there = {a.mac: a.address for a in assigned(xml) if a.mac}
    wishes = [
        *(
            Wish(f"NIC {mac}", pf=memory.pf, prefer=there[mac], settings=memory.settings)
            for mac, memory in lendings.vfs.items()
            if mac in there
        ),
        *(Wish(f"device {a}", address=a, from_host=True) for a in lendings.functions),
    ]
    work = f"start {domain.name}"
    with lent(domain.host, wishes, vm=domain.name, uuid=domain.uuid, work=work, reporter=reporter) as picks:
        now = {str(p.wish.settings.mac): p.function.address for p in picks if p.wish.settings is not None}
        if moves := {mac: address for mac, address in now.items() if there[mac] != address}:
            domain.host.define(moved(xml, moves))
        yield


def has_lendings(domain: Domain) -> bool:
    """Whether vmkit lends functions to this VM. One question to libvirt."""
    from vmkit.device.attach import lendings_of

    return bool(lendings_of(domain))


def take_back(host: Host, uuid: str) -> None:
    """Give what was lent to a VM that is off, or gone, back to the host, with drivers and settings as they were.

    Raises:
        EffectError: a driver does not take its function back; `vmkit device list` names it.
    """
    from vmkit.device.api import see
    from vmkit.device.attach import take_back as give

    give(see(host), uuid)


def _choose(host: Host, wishes: Sequence[Wish], vm: str, uuid: str | None) -> tuple[tuple[Pick, ...], frozenset[str]]:
    from vmkit.device.api import see
    from vmkit.device.plan import choose

    _check_driver(host)
    seen = see(host)
    return choose(seen.facts, seen.uses(), wishes, vm=vm, uuid=uuid), seen.facts.up


def _check_driver(host: Host) -> None:
    if host.driver != "QEMU":
        raise UnsupportedError(
            f"{host.uri} is driven by {host.driver}; vmkit lends devices to QEMU's guests only", hint="use io: virtio"
        )


def _named(pick: Pick) -> str:
    function = pick.function
    return f"{function.name or function.id}, alone in IOMMU group {function.group}" if function.group else function.name


def _settings(pick: Pick) -> str:
    wanted = pick.wish.settings
    if wanted is None:
        return "bound to vfio-pci; back to its driver when the VM ends"
    words = [f"MAC address {wanted.mac}"]
    words += [f"VLAN {wanted.vlan}"] if wanted.vlan else []
    words += [f"at most {wanted.max_tx_rate} Mbit/s"] if wanted.max_tx_rate else []
    words += [f"spoof check {'on' if wanted.spoofcheck else 'off'}", f"trust {'on' if wanted.trust else 'off'}"]
    return f"set by its card: {', '.join(words)}; all as before when the VM ends"
