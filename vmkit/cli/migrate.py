"""vmkit migrate, and beside it `vmkit migrate stats` and `vmkit migrate replay`."""

from __future__ import annotations

from pathlib import Path

import click

from vmkit.cli import render
from vmkit.cli.context import Context
from vmkit.values import Bytes, parse_duration

_REPORT = [
    ("VM", "vm"),
    ("FROM", "source"),
    ("TO", "target"),
    ("RUNNING COPIES", "running_copies"),
    ("TECHNIQUE", "technique"),
    ("TOTAL (ms)", "total_ms"),
    ("DOWNTIME (ms)", "downtime_ms"),
    ("GAP SEEN BY PROBE (ms)", "guest_gap_ms"),
    ("PROBES LOST", "probe.lost"),
    ("ROUNDS", "rounds"),
    ("BYTES SENT", "bytes_sent"),
    ("OF DISKS BEFORE (ms)", "disk_ms"),
    ("BYTES OF DISKS", "disk_bytes"),
    ("EXPECTED", "predicted.why"),
]
_ACCURACY = [
    ("MIGRATIONS ON RECORD", "migrations"),
    ("COMPARED", "compared"),
    ("TOTAL TIME, MEDIAN ERROR (%)", "total_error"),
    ("TOTAL TIME, 90TH PERCENTILE (%)", "total_error_p90"),
    ("DOWNTIME, MEDIAN ERROR (ms)", "downtime_error_ms"),
    ("DOWNTIME, 90TH PERCENTILE (ms)", "downtime_error_p90_ms"),
    ("BYTES, MEDIAN ERROR (%)", "bytes_error"),
    ("TOTAL TIME WITHIN ITS RANGE (%)", "in_range"),
    ("VERDICTS", "verdicts"),
    ("VERDICTS THAT CAME TRUE (%)", "verdicts_right"),
]
_REPLAYED = [
    ("POLICY", "policy"),
    ("END", "end"),
    ("AFTER (s)", "t"),
    ("STOP (ms)", "downtime_ms"),
    ("DECISIONS", "decisions"),
    ("BECAUSE", "why"),
]
_MOVE = "vm"


class _Migrate(click.Group):
    """`vmkit migrate NAME --to URI` is a command, and a few words beside it are commands of their own.

    A VM may have such a word as its name: with --to it is meant as one.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = any(a == "--to" or a.startswith("--to=") for a in args)
        if names or not args or args[0] not in self.commands or args[0] == _MOVE:
            args = [_MOVE, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == _MOVE else name), command, rest  # its own usage line then reads 'vmkit migrate'


class _Move(click.Command):
    """The command behind `vmkit migrate NAME`; its usage line is to say so."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path.rstrip(), " ".join(self.collect_usage_pieces(ctx)))


@click.group(cls=_Migrate, add_help_option=False)
def migrate() -> None:
    """Move a VM to another host: while it runs, or shut off."""


@migrate.command(_MOVE, cls=_Move, epilog="See also: vmkit migrate stats, vmkit migrate replay FILE.")
@click.argument("vm")
@click.option("--to", metavar="URI", required=True, help="The host to move it to: qemu+ssh://root@host/system")
@click.option(
    "--mode",
    type=click.Choice(["auto", "pre-copy", "stop-copy", "post-copy", "hybrid"]),
    default="auto",
    show_default=True,
    help="How the memory goes across.",
)
@click.option("--deadline", metavar="TIME", show_default="120s", help="Give the transfer up after this.")
@click.option("--bandwidth", metavar="SIZE", help="Bytes a second to send at most: 100M. Rounded up to whole MiB.")
@click.option("--max-downtime", metavar="TIME", help="Let the guest stand still this long at the end: 300ms.")
@click.option("--auto-converge", is_flag=True, help="Slow the guest down if it changes memory faster than it is sent.")
@click.option("--parallel", metavar="N", type=int, help="Send over so many connections.")
@click.option("--zero-copy", is_flag=True, help="With --parallel: send the pages from where they are, uncopied.")
@click.option("--compress", metavar="HOW", help="xbzrle; with --parallel: zstd or zlib.")
@click.option(
    "--transport",
    type=click.Choice(["auto", "direct", "tls", "ssh"]),
    default="auto",
    show_default=True,
    help="What carries it: auto is direct; ssh is a tunnel that needs no port but ssh's.",
)
@click.option("--congestion", metavar="NAME", help="With --transport ssh: TCP congestion control, as bbr or cubic.")
@click.option("--probe", metavar="ADDRESS[:PORT]", help="Measure the gap that the guest's UDP echo shows outside.")
@click.option("--plan", "only_plan", is_flag=True, help="Check both hosts, print what would be done, and stop.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Draw what it went through: .html, .svg, .png."
)
@click.option("--record", "recording", type=click.Path(path_type=Path, dir_okay=False), help="Write a recording there.")
@render.output_option
@click.pass_obj
def move(
    ctx: Context,
    vm: str,
    to: str,
    mode: str,
    deadline: str | None,
    bandwidth: str | None,
    max_downtime: str | None,
    auto_converge: bool,
    parallel: int | None,
    zero_copy: bool,
    compress: str | None,
    transport: str,
    congestion: str | None,
    probe: str | None,
    only_plan: bool,
    report: Path | None,
    recording: Path | None,
    output: str,
) -> None:
    """Move a VM to another host: while it runs, or shut off.

    Both hosts are checked before anything is touched, and asked afterwards how many copies run. Ctrl-C, the deadline,
    or 'vmkit jobs cancel' in another terminal end the transfer, and the VM runs on where it is.

    A guest that changes its memory faster than it can be sent is stopped for as long as --max-downtime allows, or moved
    by post-copy if --mode allows, or the transfer is given up as soon as that is certain.

    Of a VM that is shut off its disks are copied and its definition moves; what is about memory is refused.
    """
    from vmkit.migrate.plan import How

    how: How = {
        "bandwidth": None if bandwidth is None else Bytes.parse(bandwidth, path="--bandwidth"),
        "max_downtime": None if max_downtime is None else parse_duration(max_downtime, path="--max-downtime"),
        "probe": probe,
        "mode": mode,
        "auto_converge": auto_converge,
        "compression": compress,
        "parallel": parallel,
        "zero_copy": zero_copy,
        "recording": recording,
        "report": report,
        "transport": transport,
        "congestion": congestion,
    }
    if deadline is not None:
        how["deadline"] = parse_duration(deadline, path="--deadline")
    migrations = ctx.client().migrations
    if only_plan:
        render.show_plan(migrations.plan(vm, to, **how), output)
        return
    with render.progress() as reporter:
        done = migrations.migrate(vm, to, reporter=reporter, **how)
    render.emit(done, output=output, columns=_REPORT)


@migrate.command()
@render.output_option
@click.pass_obj
def stats(ctx: Context, output: str) -> None:
    """Say how good the predictions of earlier migrations have been."""
    render.emit(ctx.client().migrations.stats(), output=output, columns=_ACCURACY)


@migrate.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Draw the recording: .html, .svg, .png."
)
@render.output_option
@click.pass_obj
def replay(ctx: Context, file: Path, report: Path | None, output: str) -> None:
    """Show what each known policy would have decided in a recorded migration."""
    render.emit(ctx.client().migrations.replay(file, report=report), output=output, columns=_REPLAYED)
