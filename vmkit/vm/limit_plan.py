"""Deciding about a change of limits: what will be set where, or why it cannot be. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkit.errors import ConflictError, SpecError, UnsupportedError
from vmkit.hypervisor.errors import CGROUP_ADVICE
from vmkit.plan import Plan, Step
from vmkit.values import Bytes
from vmkit.vm.limits import SHAPED, Change, Limits, OfNic, Setting, least_cap, merge, settings, without_defaults
from vmkit.vm.spec_parts import LimitsSpec

if TYPE_CHECKING:
    from vmkit.hypervisor.tuning import Controllers


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """A VM whose limits shall change.

    Attributes:
        name: of the VM.
        uri: of its host.
        session: the host's libvirt is a user's own one (qemu:///session).
        memory: bytes that the guest may have.
        vcpus: number of its virtual CPUs.
        accelerator: 'kvm', 'tcg', ...
        live: limits of what runs now; None if it does not run.
        config: limits of the definition, which the next start uses; None if it has none.
        controllers: what can be limited of it while it runs; None if it does not run.
    """

    name: str
    uri: str
    session: bool
    memory: int
    vcpus: int
    accelerator: str
    live: Limits | None
    config: Limits | None
    controllers: Controllers | None


@dataclass(frozen=True, slots=True)
class Decision:
    """The plan, and the limits that shall hold: of what runs, and of the definition. None: that is not touched."""

    plan: Plan
    live: Limits | None
    config: Limits | None


def decide(facts: LimitFacts, change: Change, *, live: bool = False, config: bool = False) -> Decision:
    """Decide on a change.

    Args:
        facts: the VM.
        change: what shall be different.
        live: change what runs.
        config: change the definition. Neither of the two: both, as far as they are there.

    Raises:
        ConflictError: it does not run, or has no definition. NotFoundError: it has no such disk or NIC.
        SpecError: a value is out of range. UnsupportedError: the host cannot hold such a limit.
    """
    if live and facts.live is None:
        raise ConflictError(f"{facts.name} does not run", hint=f"vmkit limit --config {facts.name} ...")
    if config and facts.config is None:
        raise ConflictError(f"{facts.name} has no definition", hint=f"vmkit limit --live {facts.name} ...")
    both = live == config
    after_live = merge(facts.live, change) if facts.live is not None and (live or both) else None
    if after_live is not None and facts.controllers is not None:
        after_live = without_defaults(after_live, facts.controllers.weight)
    after_config = merge(facts.config, change) if facts.config is not None and (config or both) else None
    now = settings(facts.live, after_live) if facts.live and after_live else ()
    later = settings(facts.config, after_config) if facts.config and after_config else ()
    for setting in now:
        _judge_live(facts, setting)
    for setting in {s.subject: s for s in (*now, *later)}.values():
        _judge(facts, setting)
    plan = Plan(f"limits of {facts.name} on {facts.uri}", (), _steps(now, later), tuple(_warnings(facts, now, later)))
    return Decision(plan, after_live if now else None, after_config if later else None)


def judge_cap(cap: Bytes | None, memory: int, path: str) -> None:
    """Refuse a memory cap under which the kernel would kill the QEMU process.

    Raises:
        SpecError: it is too low for a guest of `memory` bytes.
    """
    least = least_cap(memory)
    if cap is not None and cap < least:
        raise SpecError(
            f"{cap} is too little for a guest of {Bytes(memory)}: the kernel would kill its QEMU process",
            path=path,
            hint=f"{least} or more: the guest's memory, its page tables, and what QEMU needs itself",
        )


def judge_nic(nic: OfNic, path: str) -> None:
    """Refuse a rate for a NIC that the host has no hand on.

    Raises:
        UnsupportedError: says which kind of NIC it is.
    """
    rates = nic.limits
    if nic.kind in SHAPED or (rates.inbound is None and rates.outbound is None):
        return
    why = {
        "user": ("QEMU's own NAT has no tap that tc could shape", "put the NIC on a libvirt network or a bridge"),
        "hostdev": ("its packets do not pass the host", "max_tx_rate of the spec has the card itself hold a rate"),
    }
    what, hint = why.get(
        nic.kind, (f"libvirt cannot shape a NIC of the kind '{nic.kind}'", "use a network or a bridge")
    )
    raise UnsupportedError(f"{path}: {what}", hint=hint)


def _judge_live(facts: LimitFacts, setting: Setting) -> None:
    have = facts.controllers
    there = {"cpus": "cpu", "cpu-shares": "cpu", "memory-cap": "memory", "io-weight": "io"}
    name = there.get(setting.subject)
    if name and have is not None and not getattr(have, name):
        because = f": {have.why_not}" if have.why_not else ""
        raise UnsupportedError(
            f"the host of {facts.name} has no cgroup controller '{name}' for it{because}", hint=CGROUP_ADVICE
        )


def _judge(facts: LimitFacts, setting: Setting) -> None:
    new = setting.new
    if isinstance(new, LimitsSpec):
        if facts.session:
            raise UnsupportedError(
                f"{setting.subject}: {facts.uri} is a user's own libvirt, which has no cgroups", hint=CGROUP_ADVICE
            )
        if setting.subject == "memory-cap":
            judge_cap(new.memory, facts.memory, "memory-cap")
    elif isinstance(new, OfNic):
        judge_nic(new, f"nic {new.index} of {facts.name}")


def _steps(now: tuple[Setting, ...], later: tuple[Setting, ...]) -> tuple[Step, ...]:
    found = []
    same = {s.text for s in now} & {s.text for s in later}
    for setting in now:
        where = "in what runs and in the definition" if setting.text in same else "in what runs"
        found.append(Step("set", setting.text, where))
    found += [Step("set", s.text, "in the definition, for the next start") for s in later if s.text not in same]
    return tuple(found)


def _warnings(facts: LimitFacts, now: tuple[Setting, ...], later: tuple[Setting, ...]) -> list[str]:
    found: list[str] = []
    changed = {s.subject: s.new for s in (*later, *now)}
    vm = next((s for s in changed.values() if isinstance(s, LimitsSpec)), None)
    if vm is None:
        return found
    if "cpus" in changed and vm.cpu_quota is not None and vm.cpu_quota > facts.vcpus:
        found.append(f"{vm.cpu_quota:g} CPUs are more than {facts.vcpus} vCPUs use: it will hardly be felt")
    if "memory-cap" in changed and vm.memory is not None and facts.accelerator == "tcg":
        found.append("an emulated guest's translated code is in the cap too: up to 1G (QEMU's tb-size)")
    if facts.live is None and not facts.session:
        found.append(f"{facts.name} does not run: whether its host can hold the limit shows at the next start")
    return found
