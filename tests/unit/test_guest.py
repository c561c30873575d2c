"""Calls to a guest's agent, where it comes on the line late, or not at all."""

from __future__ import annotations

from typing import Any, cast

import pytest

from vmkit.errors import EffectError
from vmkit.hypervisor.domain import Domain
from vmkit.vm import guest

OFF = "guest agent (guest-exec) of v: Guest agent is not responding: QEMU guest agent is not connected"


class Line:
    """Answers like an agent, after so many failures."""

    name = "v"

    def __init__(self, failures: int, message: str = OFF) -> None:
        self.failures, self.message, self.calls = failures, message, 0

    def agent(self, command: str, arguments: dict[str, Any], *, timeout: int) -> Any:
        self.calls += 1
        if self.calls <= self.failures:
            raise EffectError(self.message)
        return {"command": command, "arguments": arguments, "timeout": timeout}


def call(line: Line) -> Any:
    return guest.call(cast("Domain", line), "guest-exec", {"path": "true"}, timeout=7)


def test_an_agent_that_comes_a_moment_late_is_waited_for() -> None:
    line = Line(3)
    assert call(line) == {"command": "guest-exec", "arguments": {"path": "true"}, "timeout": 7}
    assert line.calls == 4


def test_an_agent_that_does_not_come_is_said_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "_LINE", 0.1)
    line = Line(10**6)
    with pytest.raises(EffectError, match="not connected"):
        call(line)
    assert line.calls > 1


def test_what_the_agent_was_sent_is_not_sent_twice() -> None:
    line = Line(1, "guest agent (guest-exec) of v: Guest agent is not responding: guest agent command timed out")
    with pytest.raises(EffectError, match="timed out"):
        call(line)
    assert line.calls == 1
