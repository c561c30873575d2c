"""vmkit migrate."""

from __future__ import annotations

import click

from vmkit.cli import render
from vmkit.cli.context import Context
from vmkit.values import Bytes, parse_duration

_REPORT = [
    ("VM", "vm"),
    ("FROM", "source"),
    ("TO", "target"),
    ("RUNNING COPIES", "running_copies"),
    ("TOTAL (ms)", "total_ms"),
    ("DOWNTIME (ms)", "downtime_ms"),
    ("GAP SEEN BY PROBE (ms)", "guest_gap_ms"),
    ("PROBES LOST", "probe.lost"),
    ("ROUNDS", "rounds"),
    ("BYTES SENT", "bytes_sent"),
]


@click.command()
@click.argument("vm")
@click.option("--to", metavar="URI", required=True, help="The host to move it to: qemu+ssh://root@host/system")
@click.option("--deadline", metavar="TIME", default="120s", show_default=True, help="Give the transfer up after this.")
@click.option("--bandwidth", metavar="SIZE", help="Bytes a second to send at most: 100M. Rounded up to whole MiB.")
@click.option("--max-downtime", metavar="TIME", help="Let the guest stand still this long at the end: 300ms.")
@click.option("--probe", metavar="ADDRESS[:PORT]", help="Measure the gap that the guest's UDP echo shows outside.")
@click.option("--plan", "only_plan", is_flag=True, help="Check both hosts, print what would be done, and stop.")
@render.output_option
@click.pass_obj
def migrate(
    ctx: Context,
    vm: str,
    to: str,
    deadline: str,
    bandwidth: str | None,
    max_downtime: str | None,
    probe: str | None,
    only_plan: bool,
    output: str,
) -> None:
    """Move a running VM to another host while it runs.

    Both hosts are checked before anything is touched, and asked afterwards how many copies run. Ctrl-C, the deadline,
    or 'vmkit jobs cancel' in another terminal end the transfer, and the VM runs on where it is.
    """
    seconds = parse_duration(deadline, path="--deadline")
    limit = None if bandwidth is None else Bytes.parse(bandwidth, path="--bandwidth")
    pause = None if max_downtime is None else parse_duration(max_downtime, path="--max-downtime")
    migrations = ctx.client().migrations
    if only_plan:
        plan = migrations.plan(vm, to, deadline=seconds, bandwidth=limit, max_downtime=pause, probe=probe)
        render.show_plan(plan, output)
        return
    with render.progress() as reporter:
        report = migrations.migrate(
            vm, to, deadline=seconds, bandwidth=limit, max_downtime=pause, probe=probe, reporter=reporter
        )
    render.emit(report, output=output, columns=_REPORT)
