"""What `vmkit.lab.kinds.Kind` asks of a kind, for pairs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vmkit.errors import SpecError
from vmkit.lab.layout import Layout, check_folder
from vmkit.lab.model import LabHost, Ssh
from vmkit.lab.pair import config
from vmkit.lab.pair.blueprint import Blueprint, HostPlan, check_hosts
from vmkit.lab.pair.reality import HostReality, running_hosts
from vmkit.lab.state import LabState, Phase
from vmkit.progress import Reporter

# Hosts have file systems of their own here, so a lab's folder below one of them would be out of their sight.
_HIDDEN = ("/run", "/sys", "/proc", "/var/run", "/var/log", "/var/lib/libvirt", "/var/cache/libvirt")


def needs_root() -> str:
    """Why only root may handle such a lab."""
    return "a lab is made of namespaces and daemons that only root may start"


def wish(hosts: int | None, options: object) -> int:
    """The number of hosts.

    Raises:
        SpecError: it cannot be, or there are options, of which a pair has none.
    """
    if options is not None:
        raise SpecError("a pair has no such options", path="options", hint="nested hosts do: vmkit lab up kvm")
    return check_hosts(2 if hosts is None else hosts)


def check_place(layout: Layout) -> None:
    """See that a lab can live in its folder.

    Raises:
        RefusedError: it cannot.
    """
    check_folder(layout.folder, _HIDDEN)


def check_same(state: LabState, wished: int) -> None:
    """A pair that is up will do, however many hosts were asked for."""
    del state, wished


def build(layout: Layout, state: LabState, wished: int, reporter: Reporter) -> None:
    """Make all of a lab whose folder holds nothing but its state; the caller tears down after an error."""
    from vmkit.lab.pair import build as making

    making.build(layout, state, wished, reporter)


def entering(layout: Layout, host: LabHost, argv: Sequence[str], terminal: bool) -> Sequence[str]:
    """The command that runs a program in a host."""
    del layout, terminal
    enter = ["nsenter", f"--target={host.pid}", "--net", "--mount", "--uts", "--pid", "--"]
    # These would lead virsh and vmkit in the host to some other host.
    return [*enter, "env", "-u", "LIBVIRT_DEFAULT_URI", "-u", "VMKIT_CONNECT", f"HOME={config.HOME}", *argv]


def describe(layout: Layout, state: LabState) -> tuple[LabHost, ...]:
    """The hosts as they are now."""
    if state.plan is None:
        return ()
    plan = Blueprint.parse(state.plan)
    hosts, switch = running_hosts(layout, plan)
    return tuple(_row(layout, state, plan, h, hosts.get(h.name), switch) for h in plan.hosts)


def _row(
    layout: Layout, state: LabState, plan: Blueprint, host: HostPlan, reality: HostReality | None, switch: bool
) -> LabHost:
    problems = []
    if state.phase is not Phase.UP:
        problems.append(f"the lab is {state.phase.value}")
    if os.geteuid() != 0:
        problems.append("only root can see whether it runs")
    elif reality is None:
        problems.append("it does not run")
    elif reality.missing:
        problems.append(f"{' and '.join(reality.missing)} has ended")
    if not switch and os.geteuid() == 0:
        problems.append("the lab's switch does not run")
    return LabHost(
        name=f"{layout.name}/{host.name}",
        lab=layout.name,
        hostname=host.name,
        kind=state.kind,
        state=_state(reality, problems),
        problem=", ".join(problems),
        uri=config.uri(layout, host),
        ssh=Ssh(host.address, 22, "root", layout.key, layout.known_hosts),
        address=host.address,
        subnet=str(plan.subnet),
        gateway=plan.gateway,
        dhcp=plan.dhcp,
        static=plan.static,
        pid=reality.init if reality else None,
    )


def _state(reality: HostReality | None, problems: Sequence[str]) -> str:
    if os.geteuid() != 0:
        return "unknown"
    if not problems:
        return "up"
    return "down" if reality is None else "broken"
