"""What goes on inside a guest, through its agent."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any

from vmkit.errors import DeadlineError, EffectError, VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.system.clock import Deadline
from vmkit.system.process import Completed

_PATIENCE = 60
"""Seconds that the agent has for an answer: a guest that is busy, or on an emulator of an emulator, takes a while."""

_LINE = 5.0
"""Seconds for an agent to be on the line before it is said to be absent."""

_OFF_THE_LINE = "guest agent is not connected"
"""What libvirt says where nobody has opened the agent's channel (src/qemu/qemu_domain.c); nothing was sent then."""


def answers(domain: Domain) -> bool:
    """Whether the guest agent answers a ping within a second or two."""
    try:
        domain.agent("guest-ping", timeout=2)
    except VmkitError:
        return False
    return True


def call(domain: Domain, command: str, arguments: dict[str, Any], *, timeout: int = _PATIENCE) -> Any:
    """What the agent returns to a command; waits a moment for an agent that is not on the line.

    libvirt learns a moment after a VM went on from memory (restored, reverted, moved) that its agent is there.

    Args:
        domain: the VM.
        command: as in the QEMU guest agent protocol reference.
        arguments: its arguments.
        timeout: whole seconds for the answer.

    Raises:
        UnreachableError, EffectError: the agent is not there, does not answer, or refuses.
    """
    deadline = Deadline(_LINE)
    while True:
        try:
            return domain.agent(command, arguments, timeout=timeout)
        except EffectError as e:
            if deadline.passed or _OFF_THE_LINE not in e.message:
                raise
            time.sleep(0.02)


def run(
    domain: Domain,
    argv: Sequence[str],
    *,
    timeout: float = 60.0,
    stdin: bytes | None = None,
    patience: int = _PATIENCE,
) -> Completed:
    """Run a program in the guest, without a shell, to its end.

    Args:
        domain: the VM.
        argv: program and arguments.
        timeout: seconds until it has to have ended.
        stdin: what it reads.
        patience: whole seconds that the agent has for each answer.

    Raises:
        EffectError: the agent does not answer, or cannot start the program.
        DeadlineError: it has not ended in time; it goes on in the guest.
    """
    arguments = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
    if stdin is not None:
        arguments["input-data"] = base64.b64encode(stdin).decode()
    try:
        pid = call(domain, "guest-exec", arguments, timeout=patience)["pid"]
    except VmkitError as e:
        raise EffectError(
            f"cannot run '{argv[0]}' in {domain.name}: {e.message}",
            hint=f"does its guest agent run? vmkit wait {domain.name} --for agent",
        ) from e
    began, deadline = time.monotonic(), Deadline(timeout)
    while True:
        status = domain.agent("guest-exec-status", {"pid": pid}, timeout=patience)
        if status["exited"]:
            break
        if deadline.passed:
            raise DeadlineError(
                f"'{argv[0]}' in {domain.name} has not ended within {timeout:g} s; it goes on there",
                hint="wait longer: --timeout SECONDS",
            )
        # Answering is work for the guest; so is being late for whoever waits: a tenth of the time that it has run.
        time.sleep(min(0.5, max(0.02, (time.monotonic() - began) / 10)))
    code = status.get("exitcode", -status.get("signal", 1))
    return Completed(code, _decoded(status.get("out-data")), _decoded(status.get("err-data")))


def _decoded(data: str | None) -> str:
    return base64.b64decode(data or "").decode(errors="replace")
