"""Hotfixes of a host that is reached by ssh."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

from vmkit.errors import UnsupportedError
from vmkit.hotfix import manifest
from vmkit.hotfix.api import CheckReport, Hotfixes, HotfixReport, StatusRow, is_id, open_patch
from vmkit.hotfix.far.line import Line
from vmkit.hotfix.far.session import change, read
from vmkit.hotfix.history import Event
from vmkit.hotfix.plans import Action
from vmkit.hypervisor.host import Host, default_uri
from vmkit.plan import Plan
from vmkit.progress import Reporter, silent
from vmkit.system.shell import SshWay

T = TypeVar("T")

KILL_VARIABLE: Final = "VMKIT_TEST_HOTFIX_FAR_KILL"
"""For tests only: as transaction.KILL_VARIABLE, for what is carried to the host."""


class FarHotfixes(Hotfixes):
    """What can be done with patches on a host that ssh leads to.

    What does it is carried there, run, and removed; the host needs python3 (3.11 or newer), libvirt's own library, and
    root. Undo records, journal and history are that host's, in its /var/lib/vmkit. Where the processes of the host are
    those of this machine (a lab's, say), all is done from here, as on this machine.

    Args:
        uri: of the host's libvirt.
        connect: see Hotfixes.
        carried: have it carried there in any case.
    """

    def __init__(
        self, uri: str, connect: Callable[[], Host], *, carried: bool = False, allow_unsigned: bool = False
    ) -> None:
        super().__init__(connect, allow_unsigned=allow_unsigned)
        self._uri = uri
        self._carried = carried

    @cached_property
    def _line(self) -> Line:
        return Line(self._uri)

    @cached_property
    def _near(self) -> bool:
        return not self._carried and self._line.leads_here()

    def plan(self, source: str | Path, action: Action = Action.APPLY, *, allow_unsigned: bool | None = None) -> Plan:
        """As Hotfixes.plan."""
        if self._near:
            return super().plan(source, action, allow_unsigned=allow_unsigned)
        _, request = self._request(action, source, allow_unsigned)
        return self._read(Plan, {**request, "what": "plan", "action": action.value})

    def check(self, source: str | Path, *, allow_unsigned: bool | None = None) -> CheckReport:
        """As Hotfixes.check."""
        if self._near:
            return super().check(source, allow_unsigned=allow_unsigned)
        _, request = self._request(Action.APPLY, source, allow_unsigned)
        return self._read(CheckReport, {**request, "what": "check"})

    def status(self) -> list[StatusRow]:
        """As Hotfixes.status, of what is known on that host."""
        return super().status() if self._near else self._read(list[StatusRow], {"what": "status"})

    def history(self) -> list[Event]:
        """As Hotfixes.history, of that host."""
        return super().history() if self._near else self._read(list[Event], {"what": "history"})

    def watch(self, reporter: Reporter = silent) -> str:
        """As Hotfixes.watch. Raises UnsupportedError if the processes of the host cannot be seen from here."""
        if not self._near:
            raise UnsupportedError(
                f"a service cannot be carried to {self._line.where}: it has to be there for good",
                hint="install vmkit there, and run there: vmkit hotfix watch --unit",
            )
        return super().watch(reporter)

    def _carry_out(
        self,
        action: Action,
        source: str | Path,
        reporter: Reporter,
        max_pause: float | None,
        allow_unsigned: bool | None = None,
    ) -> HotfixReport:
        """Also raises IndeterminateError: the connection broke, and the host does not say how it ended."""
        if self._near:
            return super()._carry_out(action, source, reporter, max_pause, allow_unsigned)
        import msgspec

        subject, request = self._request(action, source, allow_unsigned)
        request |= {"what": action.value, "max_pause": max_pause, "kill": os.environ.get(KILL_VARIABLE, "")}
        value = change(self._line, self._uri, subject, request, reporter)
        return msgspec.convert(value, HotfixReport)

    def _request(self, action: Action, source: str | Path, allow_unsigned: bool | None) -> tuple[str, dict[str, Any]]:
        """The id of the patch, and what says it there. Its signature is looked at here, by the keys trusted here."""
        if action is Action.REVERT and is_id(source):
            return str(source), {"id": str(source)}
        if action is Action.REVERT:
            text = manifest.read(Path(source))
            return manifest.parse(text).id, {"text": text}
        patch, text = open_patch(source, action)
        self._trust(action, patch, text, allow_unsigned)
        return patch.id, {"text": text}

    def _read(self, kind: type[T], request: dict[str, Any]) -> T:
        import msgspec

        return msgspec.convert(read(self._line, request), kind)


def hotfixes_of(uri: str | None, connect: Callable[[], Host], *, carried: bool = False) -> Hotfixes:
    """The hotfixes of a host, however it is reached. For `carried` see FarHotfixes."""
    uri = uri or default_uri()
    try:
        by_ssh = SshWay.of(uri) is not None
    except ValueError:
        by_ssh = False  # connecting says what is wrong with it
    return FarHotfixes(uri, connect, carried=carried) if by_ssh else Hotfixes(connect)
