"""Waiting until a VM is ready, step by step, so that a wait that fails can say where it stands."""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vmkit.errors import CancelledError, DeadlineError, EffectError, VmkitError
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.progress import Finished, Reporter, Started, silent
from vmkit.system.clock import Deadline, stopwatch
from vmkit.system.interrupts import deferred
from vmkit.vm import guest


class Layer(enum.Enum):
    """What can be waited for, in the order in which a VM gets there."""

    RUNNING = "running"
    CONSOLE = "console"
    BOOT = "boot"
    AGENT = "agent"
    ADDRESS = "address"


STUCK = {
    Layer.CONSOLE: "the guest has not written a line to its serial console: no kernel or boot loader came up there",
    Layer.BOOT: "the kernel runs, but user space has not said that it is up",
    Layer.AGENT: "the guest agent does not answer",
    Layer.ADDRESS: "the guest has no IP address",
}


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
    layers: Iterable[Layer],
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
        EffectError: the VM stopped meanwhile.
        CancelledError: Ctrl-C or a signal came. The VM is left as it is.
    """
    with deferred() as interrupted:
        try:
            return _wait(domain, layers, seconds, marker, console, reporter, interrupted)
        except VmkitError as e:
            if by := interrupted():  # which also ends the ssh below a connection: the error is only its echo
                raise CancelledError(
                    f"the wait for {domain.name} was stopped by {by}; the VM is kept", hint=f"vmkit wait {domain.name}"
                ) from e
            raise


def _wait(
    domain: Domain,
    layers: Iterable[Layer],
    seconds: float,
    marker: str | None,
    console: Callable[[], str],
    reporter: Reporter,
    interrupted: Callable[[], str | None],
) -> Ready:
    deadline = Deadline(seconds)
    clock = stopwatch()
    reached: list[Reached] = []
    probes: dict[Layer, Callable[[], str | bool]] = {
        Layer.RUNNING: lambda: domain.state() is DomainState.RUNNING,
        Layer.CONSOLE: lambda: bool(console().strip()),
        Layer.BOOT: lambda: marker is not None and marker in console(),
        Layer.AGENT: lambda: guest.answers(domain),
        Layer.ADDRESS: lambda: next(iter(domain.addresses()), ""),
    }
    for layer in layers:
        reporter(Started(layer.value))
        begin = clock()
        while not (found := probes[layer]()):
            _check_alive(domain, layer, console)
            if interrupted():
                raise CancelledError(f"the wait for '{layer.value}' was stopped")
            if deadline.passed:
                raise _stuck(domain, layer, seconds, console())
            time.sleep(0.1)
        detail = found if isinstance(found, str) else ""
        reached.append(Reached(layer, round(clock(), 3), detail))
        reporter(Finished(layer.value, clock() - begin, detail))
    return Ready(tuple(reached), round(clock(), 3))


def _stuck(domain: Domain, layer: Layer, seconds: float, console: str) -> DeadlineError:
    name = domain.name
    why = f"the domain is {domain.state().value}" if layer is Layer.RUNNING else STUCK[layer]
    return DeadlineError(
        f"{name} is not ready after {seconds:g} s, stuck at '{layer.value}': {why}",
        hint=f"the VM was kept: vmkit console {name}, vmkit log {name}, vmkit wait {name}, or "
        f"vmkit delete --force {name}",
        details=last_lines(console),
    )


def last_lines(text: str, count: int = 8) -> tuple[str, ...]:
    """The last lines of a console, with terminal control sequences taken out."""
    clean = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x09\x0a\x20-\x7e\u00a0-\uffff]", "", text)
    lines = [line.rstrip() for line in clean.splitlines() if line.strip()]
    return tuple(f"console| {line[:200]}" for line in lines[-count:])


def _check_alive(domain: Domain, layer: Layer, console: Callable[[], str]) -> None:
    state = domain.state()
    if layer is not Layer.RUNNING and state in (DomainState.SHUTOFF, DomainState.CRASHED):
        raise EffectError(
            f"{domain.name} stopped while waiting for '{layer.value}'",
            left=f"it is {state.value}",
            hint=f"vmkit log {domain.name}",
            details=last_lines(console()),
        )
