"""The way to a host by ssh, for what is carried there."""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import shlex
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from vmkit import errors
from vmkit.errors import EffectError, RefusedError, UnreachableError, UnsupportedError, VmkitError
from vmkit.hotfix.far.bundle import bundle
from vmkit.system.boot import boot_id
from vmkit.system.namespaces import pid_namespaces
from vmkit.system.process import run
from vmkit.system.shell import Shell
from vmkit.system.templates import template

ASK_SECONDS: Final = 60.0
RUN_SECONDS: Final = 1800.0
"""Longest wait for an answer. What was carried there is not ended by it."""
_READ_DOOR: Final = "import sys; i = sys.stdin.buffer; exec(i.read(int(i.readline())))"
_SSH_FAILED: Final = 255
_WHICH: Final = "cat /proc/sys/kernel/random/boot_id; stat -L -c %i /proc/self/ns/pid"


@dataclass(frozen=True, slots=True)
class Stand:
    """How a run stands: 'ended', 'runs', 'cut' (what carried it out was killed) or 'nothing' (it never begins).

    `result` is what came out of one that has ended.
    """

    state: str
    result: dict[str, Any]


class Line:
    """The way to one host.

    Args:
        uri: of its libvirt, by way of ssh.

    Raises:
        SpecError, UnsupportedError: the URI does not lead through ssh.
    """

    def __init__(self, uri: str) -> None:
        self._shell = Shell.of_uri(uri)
        self.where = self._shell.where
        parts = urlsplit(uri)
        self.far_uri = f"{parts.scheme.partition('+')[0]}://{parts.path}"
        """What the host itself calls its libvirt."""

    def leads_here(self) -> bool:
        """Whether the processes there can be seen from here: those of a lab's host on this machine, say.

        Raises:
            UnreachableError: ssh does not get in.
        """
        lines = self._shell.run_script(_WHICH, timeout=ASK_SECONDS).stdout.split()
        return len(lines) == 2 and lines[0] == boot_id() and int(lines[1]) in pid_namespaces()

    def run(self, name: str, request: dict[str, Any], *, forget: bool = False) -> Stand:
        """Have a request carried out there (see hotfix.far.agent), and wait for the end.

        With `forget` nothing of it stays there; else its result does, until `done` is called.

        Raises:
            RefusedError: the host does not take it; nothing was begun.
            VmkitError: the connection broke, or it takes too long: `ask` tells how it stands.
        """
        data = bundle()
        asked = {
            "do": "run",
            "run": name,
            "forget": forget,
            "length": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "machine": platform.machine(),
            "request": {**request, "uri": self.far_uri},
        }
        return self._stand(asked, data, RUN_SECONDS)

    def ask(self, name: str) -> Stand:
        """How a run stands; one that has not begun by now never will. Raises as `run` does."""
        return self._stand({"do": "ask", "run": name, "machine": platform.machine()}, b"", ASK_SECONDS)

    def done(self, name: str) -> None:
        """Have what is left of a run removed, its result with it. Raises as `run` does."""
        self._stand({"do": "done", "run": name, "machine": platform.machine()}, b"", ASK_SECONDS)

    def _stand(self, asked: dict[str, Any], data: bytes, seconds: float) -> Stand:
        door = template("hotfix-door.py").read_bytes()
        stdin = b"%d\n%s%s\n%s" % (len(door), door, json.dumps(asked).encode(), data)
        command = shlex.join(["python3", "-I", "-c", _READ_DOOR])
        done = run([*self._shell.argv[:-1], command], stdin=stdin, timeout=seconds, check=False)
        tail = tuple(done.stderr.strip().splitlines()[-4:])
        if done.status == _SSH_FAILED:
            raise UnreachableError(
                f"ssh to {self.where}: {tail[-1].strip() if tail else 'the connection broke'}", details=tail[:-1]
            )
        if done.status == 127:
            raise UnsupportedError(f"{self.where} has no python3", hint="install it there: apt-get install python3")
        try:
            answer = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            raise EffectError(
                f"python3 on {self.where} ended with status {done.status} and no answer", details=tail
            ) from None
        if refused := answer.get("refused"):
            raise RefusedError(f"{self.where} cannot take a hotfix: {refused}")
        return Stand(answer["state"], answer.get("result", {}))


def new_name() -> str:
    """The name of a run, unlike any other."""
    return f"run-{secrets.token_hex(8)}"


def value_of(result: dict[str, Any], where: str) -> Any:
    """What a request returned there. Raises the error that it ended with, with the name of the host."""
    if (error := result.get("error")) is None:
        return result["value"]
    kind = getattr(errors, error["kind"], None)
    raise (kind if isinstance(kind, type) and issubclass(kind, VmkitError) else EffectError)(
        f"{where}: {error['message']}", hint=error["hint"], details=tuple(error["details"])
    )
