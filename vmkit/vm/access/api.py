"""Getting into guests, as the Python API and the command line see it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vmkit.errors import ConflictError, RefusedError, VmkitError
from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter, silent
from vmkit.vm.machine import Vm

if TYPE_CHECKING:
    from vmkit.system.openssh import Server
    from vmkit.system.process import Completed
    from vmkit.vm.access.copy import Copied
    from vmkit.vm.access.ways import Way


class By(enum.Enum):
    """The way into a guest. 'auto' is the agent where one answers, else ssh."""

    AUTO = "auto"
    AGENT = "agent"
    SSH = "ssh"


class Guests:
    """What goes on inside the guests of one host.

    Args:
        connect: returns the open connection to it.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def ssh(
        self,
        name: str,
        *,
        user: str | None = None,
        keys: Sequence[Path] = (),
        port: int | None = None,
        deadline: float = 60.0,
        reporter: Reporter = silent,
    ) -> Server:
        """The ssh server of a VM, with the user that its seed let in and the key that goes with it.

        `Server.argv()` is the command line of ssh(1) that logs in.

        Raises:
            NotFoundError, ConflictError: there is no such VM, or it does not run.
            RefusedError: there is no way to it, or no user is known.
            DeadlineError: no ssh server greets within `deadline` seconds.
        """
        from vmkit.vm.access import login

        vm = Vm(self._connect().domain(name))
        return login.find(vm, user=user, keys=keys, port=port, deadline=deadline, reporter=reporter)

    def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        by: By = By.AUTO,
        user: str | None = None,
        timeout: float = 60.0,
        stdin: bytes | None = None,
        reporter: Reporter = silent,
    ) -> Completed:
        """Run a program in a guest to its end: by the agent as root, by ssh as its user. Never through a shell.

        Raises:
            EffectError: the program cannot be started.
            UnreachableError: ssh does not get in.
            DeadlineError: it has not ended within `timeout` seconds; it goes on there.
        """
        if not argv:
            raise RefusedError("no program to run", hint=f"vmkit exec {name} -- PROGRAM")
        return self._way(name, by, user, reporter).run(argv, timeout=timeout, stdin=stdin)

    def copy(
        self,
        sources: Sequence[str],
        target: str,
        *,
        by: By = By.AUTO,
        user: str | None = None,
        reporter: Reporter = silent,
    ) -> list[Copied]:
        """Copy files and folders between this machine and a guest; a path in a guest is written NAME:PATH.

        Raises:
            SpecError: not exactly one side is a guest.
            NotFoundError, RefusedError: a path is not there, or is of another kind. Nothing was written.
            EffectError: it failed; a file is there whole or not at all, a folder may be there in part.
        """
        from vmkit.vm.access import copy

        name, paths, there, inward = copy.ends(sources, target)
        way = self._way(name, by, user, reporter)
        if inward:
            return copy.to_guest(way, [Path(p) for p in paths], there, reporter)
        return copy.from_guest(way, paths, Path(there), reporter)

    def _way(self, name: str, by: By, user: str | None, reporter: Reporter) -> Way:
        from vmkit.vm.access.ways import ByAgent, BySsh

        vm = Vm(self._connect().domain(name))
        if not vm.state.active:
            raise ConflictError(f"{vm.name} is {vm.state.value}", hint=f"vmkit start {vm.name}")
        if user and by is By.AGENT:
            raise RefusedError("the guest agent runs programs as root", hint="leave --user out, or take --by ssh")
        if by is By.AGENT or (by is By.AUTO and not user and _agent_serves(vm)):
            return ByAgent(vm.domain)
        try:
            return BySsh(self.ssh(name, user=user, deadline=15.0 if by is By.AUTO else 60.0, reporter=reporter), name)
        except VmkitError as e:
            if by is By.AUTO:
                e.message = f"no guest agent answers in {vm.name}, and by ssh: {e.message}"
            raise


def _agent_serves(vm: Vm) -> bool:
    """Whether the agent answers, and is allowed to run programs (some distributions forbid that)."""
    from vmkit.vm.access.login import agent_connected

    if not agent_connected(vm.domain.xml()):
        return False
    try:
        commands = vm.domain.agent("guest-info", timeout=10)["supported_commands"]
    except VmkitError:
        return False
    enabled = {c["name"] for c in commands if c["enabled"]}
    return {"guest-exec", "guest-exec-status", "guest-file-open"} <= enabled
