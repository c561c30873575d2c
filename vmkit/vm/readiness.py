"""Waiting until a VM is ready, step by step, so that a wait that fails can say where it stands."""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vmkit.errors import CancelledError, DeadlineError, EffectError, SpecError, VmkitError
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.progress import Finished, Reporter, Started, silent
from vmkit.system.clock import Deadline, stopwatch
from vmkit.system.interrupts import deferred
from vmkit.vm.probes import Probes


class Layer(enum.Enum):
    """What can be waited for, in the order in which a VM gets there."""

    RUNNING = "running"
    CONSOLE = "console"
    BOOT = "boot"
    AGENT = "agent"
    ADDRESS = "ip"
    SSH = "ssh"
    CLOUD_INIT = "cloud-init"
    PORT = "port"


STUCK = {
    Layer.CONSOLE: "the guest has not written a line to its serial console: no kernel or boot loader came up there",
    Layer.BOOT: "the kernel runs, but user space has not said that it is up",
    Layer.AGENT: "the guest agent does not answer",
    Layer.ADDRESS: "no address of the guest is known that answers",
    Layer.SSH: "nothing in the guest answers as an ssh server",
    Layer.CLOUD_INIT: "cloud-init has not come to its end",
    Layer.PORT: "nothing in the guest takes a connection there",
}
BEFORE = {
    Layer.SSH: (Layer.ADDRESS,),
    Layer.PORT: (Layer.ADDRESS,),
}
"""What has to be reached first, and so is waited for first."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A layer to wait for; `port` is the TCP port of Layer.PORT."""

    layer: Layer
    port: int | None = None

    def __str__(self) -> str:
        return f"{self.layer.value}:{self.port}" if self.port else self.layer.value


def parse_goal(text: str, path: str = "--for") -> Goal:
    """Read 'boot', 'ip', 'agent', 'ssh', 'cloud-init', 'port:80', ... ('address' is 'ip').

    Raises:
        SpecError: it is nothing that can be waited for.
    """
    name, colon, number = text.partition(":")
    known = [layer.value for layer in Layer if layer is not Layer.PORT]
    if name == Layer.PORT.value:
        if not (colon and number.isascii() and number.isdecimal() and 0 < int(number[:6]) < 65536):
            raise SpecError(f"'{text}' names no port", path=path, hint="write it like port:80")
        return Goal(Layer.PORT, int(number))
    name = Layer.ADDRESS.value if name == "address" else name
    if colon or name not in known:
        raise SpecError(f"'{text}' is nothing to wait for", path=path, hint=f"one of {', '.join(known)}, port:N")
    return Goal(Layer(name))


def complete(wanted: Iterable[Layer | Goal]) -> tuple[Goal, ...]:
    """Goals in the order in which they are waited for, with what each takes for granted before it."""
    goals: list[Goal] = []
    for one in wanted:
        goal = one if isinstance(one, Goal) else Goal(one)
        if goal.layer is Layer.PORT and goal.port is None:
            raise SpecError("which port?", path="port", hint="write it like port:80")
        goals += [Goal(layer) for layer in BEFORE.get(goal.layer, ())]
        goals.append(goal)
    order = list(Layer)
    return tuple(sorted(dict.fromkeys(goals), key=lambda g: (order.index(g.layer), g.port or 0)))


@dataclass(frozen=True, slots=True)
class Reached:
    """A layer, and how many seconds after the beginning of the wait it was seen; `detail` is the address, say."""

    layer: Layer
    seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """A VM that is ready: the layers in order, and the seconds in all."""

    steps: tuple[Reached, ...]
    seconds: float

    @property
    def address(self) -> str | None:
        """The address that was found, where that was waited for."""
        return next((s.detail for s in self.steps if s.layer is Layer.ADDRESS), None)


def layers_for(*, marker: bool, agent: bool, network: bool, console: bool) -> tuple[Layer, ...]:
    """What 'ready' means for a VM, from what its image promises.

    Args:
        marker: its image names the console line that means 'booted'.
        agent: its image has a guest agent.
        network: it has a network card.
        console: its console is logged.
    """
    wanted = [Layer.RUNNING]
    wanted += [Layer.CONSOLE] if console else []
    wanted += [Layer.BOOT] if console and marker else []
    wanted += [Layer.AGENT] if agent else []
    wanted += [Layer.ADDRESS] if agent and network else []
    return tuple(wanted)


def wait(
    domain: Domain,
    layers: Iterable[Layer | Goal],
    *,
    seconds: float,
    marker: str | None,
    console: Callable[[], str],
    reporter: Reporter = silent,
) -> Ready:
    """Wait for each layer in turn.

    Args:
        domain: the VM.
        layers: what to wait for, in order.
        seconds: deadline for all of them together.
        marker: text on the console that means 'booted'.
        console: returns what the guest has written to its console so far.
        reporter: told of each layer.

    Raises:
        DeadlineError: says which layer is stuck and shows the last console lines. The VM is left as it is.
        EffectError: the VM stopped meanwhile, or cloud-init ended with errors.
        NotFoundError, UnsupportedError: what is waited for can never come: the guest has no cloud-init, say.
        CancelledError: Ctrl-C or a signal came. The VM is left as it is.
    """
    goals = complete(layers)
    with deferred() as interrupted:
        try:
            return _wait(domain, goals, seconds, Probes(domain, marker, console), reporter, interrupted)
        except VmkitError as e:
            if by := interrupted():  # which also ends the ssh below a connection: the error is only its echo
                raise CancelledError(
                    f"the wait for {domain.name} was stopped by {by}; the VM is kept", hint=f"vmkit wait {domain.name}"
                ) from e
            raise


def _wait(
    domain: Domain,
    goals: Iterable[Goal],
    seconds: float,
    probes: Probes,
    reporter: Reporter,
    interrupted: Callable[[], str | None],
) -> Ready:
    deadline = Deadline(seconds)
    clock = stopwatch()
    reached: list[Reached] = []
    ask: dict[Layer, Callable[[Goal], str | bool]] = {
        Layer.RUNNING: lambda _: domain.state() is DomainState.RUNNING,
        Layer.CONSOLE: lambda _: bool(probes.console().strip()),
        Layer.BOOT: lambda _: probes.marker is not None and probes.marker in probes.console(),
        Layer.AGENT: lambda _: probes.agent(),
        Layer.ADDRESS: lambda _: probes.address(),
        Layer.SSH: lambda _: probes.ssh(),
        Layer.CLOUD_INIT: lambda _: probes.cloud_init(),
        Layer.PORT: lambda goal: probes.port(goal.port or 0),
    }
    for goal in goals:
        reporter(Started(str(goal)))
        begin = clock()
        while not (found := ask[goal.layer](goal)):
            _check_alive(domain, goal, probes.console)
            if interrupted():
                raise CancelledError(f"the wait for '{goal}' was stopped")
            if deadline.passed:
                raise _stuck(domain, goal, seconds, probes)
            time.sleep(min(probes.pause, max(0.05, deadline.left)))
        detail = found if isinstance(found, str) else str(goal.port or "")
        reached.append(Reached(goal.layer, round(clock(), 3), detail))
        reporter(Finished(str(goal), clock() - begin, detail))
    return Ready(tuple(reached), round(clock(), 3))


def _stuck(domain: Domain, goal: Goal, seconds: float, probes: Probes) -> DeadlineError:
    name = domain.name
    why = f"the domain is {domain.state().value}" if goal.layer is Layer.RUNNING else STUCK[goal.layer]
    tail = last_lines(probes.console())
    return DeadlineError(
        f"{name} is not ready after {seconds:g} s, stuck at '{goal}': {why}",
        hint=f"the VM was kept: vmkit console {name}, vmkit log {name}, vmkit wait {name}, or "
        f"vmkit delete --force {name}",
        details=(*probes.said(), *tail),
    )


def last_lines(text: str, count: int = 8) -> tuple[str, ...]:
    """The last lines of a console, with terminal control sequences taken out."""
    clean = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x09\x0a\x20-\x7e\u00a0-\uffff]", "", text)
    lines = [line.rstrip() for line in clean.splitlines() if line.strip()]
    return tuple(f"console| {line[:200]}" for line in lines[-count:])


def _check_alive(domain: Domain, goal: Goal, console: Callable[[], str]) -> None:
    state = domain.state()
    if goal.layer is not Layer.RUNNING and state in (DomainState.SHUTOFF, DomainState.CRASHED):
        log = f"vmkit log {domain.name}"
        crashed = "crashed" in (domain.info().reason, state.value)
        raise EffectError(
            f"{domain.name} {'crashed' if crashed else 'stopped'} while waiting for '{goal}'",
            left=f"it is {state.value}",
            hint=f"what QEMU said is in /var/log/libvirt/qemu/{domain.name}.log of its host" if crashed else log,
            details=last_lines(console()),
        )
