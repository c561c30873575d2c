"""Sitting at a VM's serial console."""

from __future__ import annotations

from vmkit.errors import ConflictError
from vmkit.hypervisor.console import ConsoleStream
from vmkit.hypervisor.host import Host
from vmkit.system import terminal
from vmkit.vm.machine import Vm


def attach(host: Host, name: str, *, force: bool = False, history: bool = True) -> str:
    """Connect this terminal with the console of a VM until Ctrl-].

    Args:
        host: opened with `events=True`.
        name: the VM.
        force: throw out whoever is attached.
        history: first print what was written to the console before.

    Returns:
        How it ended: 'detached', 'end of input' or 'closed'.

    Raises:
        ConflictError: the VM is shut off, or somebody is attached.
    """
    vm = Vm(host.domain(name))
    if not vm.state.active:
        raise ConflictError(f"{name} is {vm.state.value}", hint=f"vmkit start {name}")
    memory = vm.remembered()
    with ConsoleStream(vm.domain, terminal.write_out, force=force) as console:
        if history and memory and memory.console_log:
            terminal.write_out(vm.log().replace("\r\n", "\n").replace("\n", "\r\n").encode())
        return terminal.pass_through(console.send, console.closed.is_set)
