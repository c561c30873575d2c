"""Carrying a plan of many moves out: migrations side by side, as many as fit, each by a session of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmkit.errors import CancelledError, EffectError, IndeterminateError, RefusedError, VmkitError
from vmkit.migrate.api import Migrations
from vmkit.migrate.many.facts import Observed
from vmkit.migrate.many.solve import Limits, Move, may_start
from vmkit.migrate.plan import How
from vmkit.migrate.report import MigrationReport
from vmkit.migrate.settle import CONNECT_S, bounded
from vmkit.progress import Event, Note, Reporter

if TYPE_CHECKING:
    from vmkit.system.journal import Entry


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one move.

    Attributes:
        vm: name.
        total_ms, downtime_ms: as in its report; None if it did not move.
        error: why it did not; None if it did.
    """

    vm: str
    source: str
    target: str
    total_ms: int | None = None
    downtime_ms: int | None = None
    error: VmkitError | None = None


def perform(seen: Observed, moves: Sequence[Move], limits: Limits, how: How, reporter: Reporter) -> list[Done]:
    """Carry the moves out, in their order and as many at once as may be. Always returns, with what became of each.

    While it runs, SIGINT, SIGTERM and SIGHUP end what is under way in order, if this is the main thread. After that,
    and after a migration of which it is not known where the VM is, nothing more is begun. Where one failed, others go
    on.
    """
    from vmkit.system.interrupts import deferred

    fleet, waiting, under_way = seen.fleet, list(moves), list[Move]()
    ended: queue.Queue[tuple[Move, Done]] = queue.Queue()
    done: list[Done] = []
    halted: str | None = None
    with deferred() as signalled:
        while waiting or under_way:
            if halted is None and (signal := signalled()) is not None:
                halted = f"cancelled by {signal}"
            while waiting and halted is None and may_start(fleet, waiting[0], under_way, limits):
                move = waiting.pop(0)
                under_way.append(move)
                threading.Thread(target=_one, args=(seen, move, how, reporter, ended), daemon=True).start()
            if not under_way:
                done.append(_left_out(seen, waiting.pop(0), halted))
                continue
            try:
                move, result = ended.get(timeout=0.5)
            except queue.Empty:
                continue
            under_way.remove(move)
            done.append(result)
            if result.error is None:
                vm = next(v for v in fleet.at[move.source] if v.name == move.vm)
                fleet = fleet.moved(vm, move.source, move.target)
            elif isinstance(result.error, IndeterminateError):
                halted = f"it is not known where {result.vm} is"
    return done


def _left_out(seen: Observed, move: Move, halted: str | None) -> Done:
    """One that was not begun."""
    error: VmkitError
    if halted is None:
        error = RefusedError(f"no room for it on {move.target}, since another VM did not move")
    elif halted.startswith("cancelled"):
        error = CancelledError(f"not begun: {halted}")
    else:
        error = EffectError(f"not begun: {halted}")
    return Done(seen.names[move.vm], move.source, move.target, error=error)


def _one(seen: Observed, move: Move, how: How, reporter: Reporter, ended: queue.Queue[tuple[Move, Done]]) -> None:
    """One migration, in a thread of its own."""
    from vmkit.hypervisor.host import Host

    name = seen.names[move.vm]
    result = Done(name, move.source, move.target)
    try:
        with bounded(lambda: Host.connect(move.source, events=True), CONNECT_S, move.source) as host:
            report: MigrationReport = Migrations(lambda: host).migrate(
                move.vm, move.target, reporter=_named(name, reporter), **how
            )
        result = replace(result, total_ms=report.total_ms, downtime_ms=report.downtime_ms)
    except VmkitError as e:
        result = replace(result, error=e)
    except BaseException as e:
        result = replace(result, error=IndeterminateError(f"{name}: {type(e).__name__}: {e}", hint="see: vmkit jobs"))
    finally:
        ended.put((move, result))


def _named(name: str, reporter: Reporter) -> Reporter:
    """Events of one migration among several."""

    def tell(event: Event) -> None:
        if isinstance(event, Note):
            reporter(replace(event, text=f"{name}: {event.text}"))
        else:
            reporter(replace(event, step=f"{name}: {event.step}"))

    return tell


def recover(entry: Entry, reporter: Reporter) -> str:
    """What there is to say of a plan whose vmkit was killed: each migration has a journal entry of its own."""
    del reporter
    again = entry.record.data.get("again", "vmkit jobs")
    return f"'{entry.record.subject}' was cut off; each VM is at one end or the other: go on with: {again}"
