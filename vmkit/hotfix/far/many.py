"""Hotfixes of several hosts: host by host, up to the first failure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vmkit.errors import IndeterminateError, SpecError, VmkitError
from vmkit.hotfix.api import Hotfixes
from vmkit.hotfix.far.api import hotfixes_of
from vmkit.hotfix.plans import Action
from vmkit.hypervisor.host import Host
from vmkit.plan import Plan
from vmkit.progress import Reporter, silent


@dataclass(frozen=True, slots=True)
class HostReport:
    """What became of one host.

    Attributes:
        host: its URI.
        state: as HotfixReport.state; 'failed', 'unknown' (it could not be told) or 'not begun'.
        vms: QEMU processes that were written to.
        pause_ms: the longest pause of a guest; None where nothing was done.
        detail: why it failed.
        error: the failure.
    """

    host: str
    state: str
    vms: int = 0
    pause_ms: float | None = None
    detail: str = ""
    error: VmkitError | None = None


class HotfixHosts:
    """What can be done with patches on several hosts.

    Args:
        uris: of their libvirts, in the order in which they get their turn.
        allow_unsigned: see Hotfixes.
        carried: see FarHotfixes.

    Raises:
        SpecError: a host is named twice, or none.
    """

    def __init__(self, uris: Sequence[str], *, allow_unsigned: bool = False, carried: bool = False) -> None:
        if not uris or len(set(uris)) != len(uris):
            raise SpecError(
                "each host has to be named once", path="--host", hint="one is like qemu+ssh://root@HOST/system"
            )
        self._uris = tuple(uris)
        self._allow_unsigned = allow_unsigned
        self._carried = carried

    def plan(self, source: str | Path, action: Action = Action.APPLY) -> Plan:
        """What would be done, after every check on every host; nothing is paused or written.

        Raises: as Hotfixes.plan, for the first host that it cannot be done on.
        """
        with ExitStack() as stack:
            plans = [
                self._hotfixes(u, stack).plan(source, action, allow_unsigned=self._allow_unsigned) for u in self._uris
            ]
        return Plan(
            f"{action.value} on {len(plans)} hosts, one after the other",
            tuple(c for p in plans for c in p.choices),
            tuple(s for p in plans for s in p.steps),
            tuple(dict.fromkeys(w for p in plans for w in p.warnings)),
        )

    def carry_out(
        self, action: Action, source: str | Path, *, max_pause: float | None = None, reporter: Reporter = silent
    ) -> list[HostReport]:
        """Check every host, then do it on one after the other; where one fails the rest is not begun.

        Always returns a report for each host once the first was begun.

        Raises: as `plan`, and then nothing was touched anywhere.
        """
        self.plan(source, action)
        done: list[HostReport] = []
        for uri in self._uris:
            if done and done[-1].error is not None:
                break
            with ExitStack() as stack:
                done.append(
                    _one(self._hotfixes(uri, stack), uri, action, source, max_pause, reporter, self._allow_unsigned)
                )
        return [*done, *(HostReport(u, "not begun") for u in self._uris[len(done) :])]

    def _hotfixes(self, uri: str, stack: ExitStack) -> Hotfixes:
        return hotfixes_of(uri, partial(_connected, uri, stack), carried=self._carried)


def _connected(uri: str, stack: ExitStack) -> Host:
    return stack.enter_context(Host.connect(uri))


def _one(
    hotfixes: Hotfixes,
    uri: str,
    action: Action,
    source: str | Path,
    max_pause: float | None,
    reporter: Reporter,
    allow_unsigned: bool,
) -> HostReport:
    try:
        if action is Action.APPLY:
            report = hotfixes.apply(source, allow_unsigned=allow_unsigned, max_pause=max_pause, reporter=reporter)
        else:
            report = hotfixes.revert(source, max_pause=max_pause, reporter=reporter)
    except VmkitError as e:
        state = "unknown" if isinstance(e, IndeterminateError) else "failed"
        return HostReport(uri, state, detail=e.message, error=e)
    return HostReport(
        uri, report.state, sum(bool(p.writes and p.uuid) for p in report.processes), round(report.pause_ms, 1)
    )
