"""vmkit host drain, vmkit host rebalance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmkit.cli import render
from vmkit.cli.context import Context
from vmkit.values import Bytes, parse_duration

if TYPE_CHECKING:
    from vmkit.migrate.plan import How

_DONE = [
    ("VM", "vm"),
    ("FROM", "source"),
    ("TO", "target"),
    ("TOTAL (ms)", "total_ms"),
    ("DOWNTIME (ms)", "downtime_ms"),
]


def _options(command: Any) -> Any:
    """What both commands take."""
    for option in reversed(
        (
            click.option("--plan", "only_plan", is_flag=True, help="Check all hosts, print what would be done, stop."),
            click.option("--parallel", metavar="N", type=int, default=2, show_default=True, help="At once per host."),
            click.option(
                "--per-link", metavar="N", type=int, default=2, show_default=True, help="At once from host to host."
            ),
            click.option(
                "--overcommit", metavar="X", type=float, default=4.0, show_default=True, help="vCPUs for each CPU."
            ),
            click.option("--deadline", metavar="TIME", default="120s", show_default=True, help="Of each migration."),
            click.option("--bandwidth", metavar="SIZE", help="Bytes a second of each migration at most: 100M."),
            click.option("--max-downtime", metavar="TIME", help="Let a guest stand still this long at the end: 300ms."),
            click.option(
                "--mode",
                type=click.Choice(["auto", "pre-copy", "stop-copy", "post-copy", "hybrid"]),
                default="auto",
                show_default=True,
                help="How the memory goes across.",
            ),
            click.option(
                "--transport",
                type=click.Choice(["auto", "direct", "tls", "ssh"]),
                default="auto",
                show_default=True,
                help="What carries it.",
            ),
            render.output_option,
        )
    ):
        command = option(command)
    return command


def _how(given: dict[str, Any]) -> How:
    bandwidth, downtime = given["bandwidth"], given["max_downtime"]
    return {
        "deadline": parse_duration(given["deadline"], path="--deadline"),
        "bandwidth": None if bandwidth is None else Bytes.parse(bandwidth, path="--bandwidth"),
        "max_downtime": None if downtime is None else parse_duration(downtime, path="--max-downtime"),
        "mode": given["mode"],
        "transport": given["transport"],
    }


def _run(plan: Any, act: Any, given: dict[str, Any]) -> None:
    from vmkit.migrate.many.solve import Limits

    limits, how = Limits(given["parallel"], given["per_link"]), _how(given)
    common = {"limits": limits, "overcommit": given["overcommit"], **how}
    if given["only_plan"]:
        render.show_plan(plan(**common), given["output"])
        return
    with render.progress() as reporter:
        done = act(reporter=reporter, **common)
    render.emit(done, output=given["output"], columns=_DONE)


@click.group()
def host() -> None:
    """Move many VMs: empty a host, or even several out."""


@host.command()
@click.argument("uri")
@click.option("--to", metavar="URI", multiple=True, required=True, help="Where VMs may go; may be given several times.")
@_options
@click.pass_obj
def drain(ctx: Context, /, uri: str, to: tuple[str, ...], **given: Any) -> None:
    """Move every running VM of the host URI to others.

    As few migrations as will do, side by side as far as --parallel and --per-link allow, and never more on a host than
    fits, counting a VM on both hosts while it moves. Given again after it was cut off, it goes on.
    """
    from functools import partial

    hosts = ctx.client().hosts
    _run(partial(hosts.plan_drain, uri, to), partial(hosts.drain, uri, to), given)


@host.command()
@click.argument("uris", metavar="URI URI...", nargs=-1, required=True)
@click.option(
    "--tolerance", metavar="PART", type=float, default=0.1, show_default=True, help="Hosts this far apart are even."
)
@_options
@click.pass_obj
def rebalance(ctx: Context, /, uris: tuple[str, ...], tolerance: float, **given: Any) -> None:
    """Move VMs from full hosts to empty ones until they are even.

    A host is as full as the larger one of the parts of its memory and of its vCPUs that its VMs may have.
    """
    from functools import partial

    hosts = ctx.client().hosts
    _run(
        partial(hosts.plan_rebalance, uris, tolerance=tolerance),
        partial(hosts.rebalance, uris, tolerance=tolerance),
        given,
    )
