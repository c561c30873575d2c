"""Emptying a host and evening several out: what a program (or the command line) calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Unpack

from vmkit.errors import CancelledError, EffectError, RefusedError, SpecError
from vmkit.migrate.api import Migrations
from vmkit.migrate.many.facts import OVERCOMMIT, Observed, observe
from vmkit.migrate.many.perform import Done, perform
from vmkit.migrate.many.solve import Fleet, Limits, Move, drain, rebalance, stuck
from vmkit.migrate.plan import How
from vmkit.migrate.settle import CONNECT_S, bounded
from vmkit.plan import Choice, Plan, Step
from vmkit.progress import Reporter, silent
from vmkit.values import Bytes

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host

LIMITS: Final = Limits()
TOLERANCE: Final = 0.1
"""Shares of hosts that are no further apart than this are even."""


@dataclass(frozen=True, slots=True)
class Planned:
    """Moves in their order, and what they rest on.

    Attributes:
        title: what they are for.
        again: the command that goes on with it.
        refused: what stands against some (VM, host), as text.
    """

    title: str
    again: str
    seen: Observed
    moves: tuple[Move, ...]
    refused: tuple[str, ...]
    stays: tuple[str, ...] = ()

    def plan(self, limits: Limits) -> Plan:
        """For a person. Pure."""
        names = self.seen.names
        steps = [Step("migrate", f"{names[m.vm]} from {m.source} to {m.target}", m.why) for m in self.moves]
        after = self.seen.fleet
        for m in self.moves:
            after = after.moved(next(v for v in after.at[m.source] if v.name == m.vm), m.source, m.target)
        hosts = [
            Choice(
                f"host {uri}",
                f"{self.seen.fleet.share(uri):.0%} full, then {after.share(uri):.0%}",
                f"{_taken(self.seen.fleet, uri)}; then {_taken(after, uri)}",
            )
            for uri in after.rooms
        ]
        at_once = Choice("at once", f"{limits.host} per host, {limits.link} per link", "and never more than fits")
        none = () if self.moves else ("nothing has to move",)
        return Plan(self.title, (at_once, *hosts), tuple(steps), (*none, *self.refused, *self.stays))


def _taken(fleet: Fleet, host: str) -> str:
    used, has = fleet.used(host), fleet.rooms[host]
    return f"{Bytes(used.memory)} of {Bytes(has.memory)}, {used.vcpus} of {has.vcpus} vCPUs"


class Hosts:
    """Many VMs, moved between hosts by as few migrations as will do."""

    def plan_drain(
        self,
        host: str,
        to: Sequence[str],
        *,
        limits: Limits = LIMITS,
        overcommit: float = OVERCOMMIT,
        **how: Unpack[How],
    ) -> Plan:
        """What `drain` would do with the same arguments. Every pair of VM and target in it has passed preflight.

        Raises:
            SpecError, UnreachableError, RefusedError: as `drain`.
        """
        with _connected([host, *to]) as hosts:
            return _drained(hosts, overcommit, how).plan(_checked(limits))

    def drain(
        self,
        host: str,
        to: Sequence[str],
        *,
        limits: Limits = LIMITS,
        overcommit: float = OVERCOMMIT,
        reporter: Reporter = silent,
        **how: Unpack[How],
    ) -> list[Done]:
        """Move every running VM of a host away. VMs that are shut off stay.

        Called again after it was cut off, or after a part of it failed, it goes on with what is left.

        Args:
            host: libvirt URI of the host to empty.
            to: libvirt URIs of where its VMs may go.
            limits: how many migrations at once.
            overcommit: vCPUs for each CPU that a host may have.
            reporter: hears of every migration.
            how: of each migration; see `How`.

        Raises:
            SpecError: a URI is not one, or names the same host again.
            UnreachableError: a host does not answer.
            RefusedError: the VMs find no room; nothing was touched.
            EffectError: some did not move; each of them is where it was.
            CancelledError: Ctrl-C; what was under way was ended in order.
            IndeterminateError: of one it is not known where it is.
        """
        with _connected([host, *to]) as hosts:
            return _carried(_drained(hosts, overcommit, how), _checked(limits), how, reporter)

    def plan_rebalance(
        self,
        uris: Sequence[str],
        *,
        tolerance: float = TOLERANCE,
        limits: Limits = LIMITS,
        overcommit: float = OVERCOMMIT,
        **how: Unpack[How],
    ) -> Plan:
        """What `rebalance` would do with the same arguments.

        Raises:
            SpecError, UnreachableError: as `rebalance`.
        """
        with _connected(uris) as hosts:
            return _evened(hosts, tolerance, overcommit, how).plan(_checked(limits))

    def rebalance(
        self,
        uris: Sequence[str],
        *,
        tolerance: float = TOLERANCE,
        limits: Limits = LIMITS,
        overcommit: float = OVERCOMMIT,
        reporter: Reporter = silent,
        **how: Unpack[How],
    ) -> list[Done]:
        """Move VMs from full hosts to empty ones until they are within `tolerance` of each other, or nothing helps.

        A host is as full as the larger one of the parts of its memory and of its vCPUs that its VMs may have.

        Raises:
            SpecError, UnreachableError, EffectError, CancelledError, IndeterminateError: as `drain`.
        """
        with _connected(uris) as hosts:
            return _carried(_evened(hosts, tolerance, overcommit, how), _checked(limits), how, reporter)


def _checked(limits: Limits) -> Limits:
    for value, path in ((limits.host, "--parallel"), (limits.link, "--per-link")):
        if not 1 <= value <= 64:
            raise SpecError("has to be between 1 and 64", path=path)
    return limits


@contextlib.contextmanager
def _connected(uris: Sequence[str]) -> Iterator[list[Host]]:
    from vmkit.hypervisor.host import Host
    from vmkit.hypervisor.migration import host_uuid

    if len(uris) < 2:
        raise SpecError("at least one host to move VMs to is needed", path="--to")
    with contextlib.ExitStack() as stack:
        known: dict[str, str] = {}
        hosts = []
        for uri in uris:
            host = stack.enter_context(bounded(lambda uri=uri: Host.connect(uri), CONNECT_S, uri))  # type: ignore[misc]
            if (uuid := host_uuid(host) or uri) in known:
                raise SpecError(f"{uri} is the same host as {known[uuid]}", path="--to", hint="name each host once")
            known[uuid] = uri
            hosts.append(host)
        yield hosts


def _drained(hosts: Sequence[Host], overcommit: float, how: How) -> Planned:
    source = hosts[0].uri
    others = " ".join(f"--to '{h.uri}'" for h in hosts[1:])
    again = f"vmkit host drain '{source}' {others}"
    seen, moves, refused = _agreed(hosts, overcommit, how, lambda fleet: drain(fleet, source))
    if moves is None:
        fleet = seen.fleet
        alone = stuck(fleet, source)
        names = ", ".join(
            f"{seen.names[v.name]} ({Bytes(v.memory)}, {v.vcpus} vCPUs)" for v in alone or fleet.at[source]
        )
        text = f"{names} can go to none of the others" if alone else f"no way was found to fit {names} on the others"
        free = tuple(f"{h.uri}: {_taken(fleet, h.uri)}" for h in hosts[1:])
        raise RefusedError(
            f"{source} cannot be emptied: {text}", hint="name another host with --to", details=(*free, *refused)
        )
    off = seen.asleep[source]
    stays = (f"shut off, and stays: {', '.join(off)}",) if off else ()
    return Planned(f"Move all running VMs away from {source}", again, seen, moves, refused, stays)


def _evened(hosts: Sequence[Host], tolerance: float, overcommit: float, how: How) -> Planned:
    if not 0 < tolerance < 1:
        raise SpecError("has to be between 0 and 1", path="--tolerance", hint="write it like 0.1")
    again = "vmkit host rebalance " + " ".join(f"'{h.uri}'" for h in hosts)
    seen, moves, refused = _agreed(hosts, overcommit, how, lambda fleet: rebalance(fleet, tolerance))
    return Planned(f"Even out {len(hosts)} hosts", again, seen, moves or (), refused)


def _agreed(
    hosts: Sequence[Host], overcommit: float, how: How, solve: Callable[[Fleet], tuple[Move, ...] | None]
) -> tuple[Observed, tuple[Move, ...] | None, tuple[str, ...]]:
    """Moves that preflight has nothing against; where it has, another way is looked for."""
    seen = observe(hosts, overcommit)
    by_uri = {h.uri: h for h in hosts}
    passed: set[tuple[str, str]] = set()
    refused: list[str] = []
    while True:
        moves = solve(seen.fleet)
        new = [m for m in moves or () if (m.vm, m.target) not in passed]
        bans: set[tuple[str, str]] = set()
        for m in new:
            report = Migrations(lambda m=m: by_uri[m.source]).preflight(m.vm, m.target, **how)  # type: ignore[misc]
            # room is this plan's own business: at its turn there may be more of it than now
            against = [f for f in report.refused if f.check != "room"]
            if against:
                bans.add((m.vm, m.target))
                refused.append(f"{seen.names[m.vm]} cannot go to {m.target}: {against[0].text}")
            else:
                passed.add((m.vm, m.target))
        if not bans:
            return seen, moves, tuple(refused)
        seen = replace(seen, fleet=replace(seen.fleet, bans=seen.fleet.bans | bans))


def _carried(planned: Planned, limits: Limits, how: How, reporter: Reporter) -> list[Done]:
    from vmkit.system.journal import journalled

    if not planned.moves:
        return []
    with journalled("moves", planned.title, "moving", again=planned.again):
        done = perform(planned.seen, planned.moves, limits, how, reporter)
    failed = [d for d in done if d.error is not None]
    if not failed:
        return done
    lines = tuple(f"{d.vm}: {d.error.message}" for d in failed if d.error is not None)
    moved = len(done) - len(failed)
    text = f"{len(failed)} of {len(done)} VMs did not move"
    if any(isinstance(d.error, CancelledError) for d in failed):
        raise CancelledError(f"{text}: cancelled", hint=planned.again, details=lines)
    worst = max((d.error for d in failed if d.error is not None), key=lambda e: e.exit_code == 6)
    if worst.exit_code == 6:
        raise type(worst)(worst.message, hint=worst.hint, details=lines)
    raise EffectError(text, left=f"{moved} moved", hint=f"see why, then go on: {planned.again}", details=lines)
