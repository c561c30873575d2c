"""Sitting at a VM's serial console."""

from __future__ import annotations

from collections.abc import Callable

from vmkit.errors import ConflictError
from vmkit.hypervisor.console import ConsoleStream
from vmkit.hypervisor.host import Host
from vmkit.system import terminal
from vmkit.vm.console_join import Joined
from vmkit.vm.console_log import read_bytes
from vmkit.vm.machine import Vm


def attach(
    host: Host, name: str, *, force: bool = False, history: bool = True, attached: Callable[[], None] = lambda: None
) -> str:
    """Connect this terminal with the console of a VM until Ctrl-].

    What is shown is what the guest wrote since it was started, from its first byte, and what it goes on to write;
    nothing between the two is missing.

    Args:
        host: opened with `events=True`.
        name: the VM.
        force: throw out whoever is attached.
        history: begin with what was written before; VMs that vmkit did not make have none.
        attached: called when the history was written, before the first key is read.

    Returns:
        How it ended: 'detached', 'end of input' or 'closed'.

    Raises:
        ConflictError: the VM is shut off, or somebody is attached.
    """
    vm = Vm(host.domain(name))
    if not vm.state.active:
        raise ConflictError(f"{name} is {vm.state.value}", hint=f"vmkit start {name}")
    memory = vm.remembered()
    log = memory.console_log if memory else None
    joined = Joined(lambda: read_bytes(host, log) if log else b"", terminal.write_out)
    with ConsoleStream(vm.domain, joined.feed, force=force) as console, terminal.raw():
        if history and log:
            joined.begin()
        else:
            joined.skip()
        attached()
        return terminal.pass_through(console.send, console.closed.is_set, idle=joined.look)
