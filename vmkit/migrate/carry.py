"""Transport in deed: what stands against the one that was chosen, and the tunnel for it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmkit.errors import RefusedError, VmkitError
from vmkit.migrate import certificates
from vmkit.migrate.preflight import Case, Finding, Level, Preflight
from vmkit.migrate.transport import Carriage, Transport
from vmkit.system.shell import Shell
from vmkit.system.tunnel import Road, check_congestion, check_route, swept

if TYPE_CHECKING:
    from vmkit.hypervisor.migration import Options

STREAMS = ("memory", "disks")


def examined(report: Preflight, carriage: Carriage, case: Case) -> Preflight:
    """The report, with what there is to say of the transport. Both hosts are looked at by ssh for `tls`."""
    match carriage.taken:
        case Transport.TLS:
            held = [certificates.look(h.uri) for h in (case.source, case.target)]
            found = certificates.judge(held[0], held[1], case.target.hostname)
        case Transport.SSH:
            found = (_tunnel(carriage, case.source.uri, case.target.uri),)
        case _:
            return report
    return replace(report, findings=(*report.findings, *found))


def _tunnel(carriage: Carriage, source: str, target: str) -> Finding:
    try:
        ends = [Shell.of_uri(uri) for uri in (source, target)]
        if carriage.congestion:
            check_congestion(carriage.congestion)
            for uri in (uri for uri, end in zip((source, target), ends, strict=True) if end.remote):
                check_route(uri)
    except RefusedError as e:
        return Finding("transport", Level.REFUSED, e.message, e.hint)
    if not any(e.remote for e in ends):
        return Finding("transport", Level.REFUSED, "both hosts are this machine", "leave --transport out")
    by_here = all(e.remote for e in ends)
    text = "from the source to this machine and on to the target" if by_here else "between the two hosts"
    if by_here and carriage.congestion:
        text += f"; {carriage.congestion} is for the way from here on, and what the source sends has its own default"
        return Finding("transport", Level.WARNING, f"a tunnel of ssh, {text}")
    return Finding("transport", Level.OK, f"a tunnel of ssh, {text}")


@contextlib.contextmanager
def road_for(carriage: Carriage, source: str, target: str) -> Iterator[Road | None]:
    """The tunnel that is to be; what is left of it afterwards is removed. None where there is none to be.

    Raises:
        RefusedError: there can be none between these hosts.
    """
    if carriage.taken is not Transport.SSH:
        yield None
        return
    road = Road.between(source, target, secrets.token_hex(6), STREAMS, carriage.congestion)
    try:
        yield road
    finally:
        with contextlib.suppress(VmkitError):
            swept(road)


def directed(options: Options, carriage: Carriage, road: Road | None) -> Options:
    """The options of a transfer that takes this transport."""
    if road is not None:
        return replace(options, uri=f"unix://{road.path('memory')}", disks_uri=f"unix://{road.path('disks')}")
    return replace(options, tls=True) if carriage.taken is Transport.TLS else options


def plain(road: Road | None) -> dict[str, object] | None:
    """As a journal entry keeps it."""
    return None if road is None else road.plain()


def sweep(data: dict[str, Any]) -> None:
    """Remove what the tunnel of a journalled migration has left."""
    if data.get("road"):
        with contextlib.suppress(VmkitError):
            swept(Road.parse(data["road"]))
