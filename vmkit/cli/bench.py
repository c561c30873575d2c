"""`vmkit bench`: how fast guests are on a host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, note, progress

if TYPE_CHECKING:
    from vmkit.host.measured import Measured

_COLUMNS = [
    ("WORKLOAD", "workload"),
    ("MODE", "mode"),
    ("MEDIAN", "value"),
    ("SPREAD", "spread"),
    ("OF HOST", "native"),
    ("CLASSIC", "classic"),
]


@click.group()
def bench() -> None:
    """Measure how fast guests are on a host."""


@bench.command()
@click.option("--modes", metavar="MODE,...", help="native, kvm-nested, kvm-shadow, tcg, virtio, vhost, emulated, vf.")
@click.option("--workloads", metavar="NAME,...", help="Areas (cpu, memory, disk, network) or single workloads.")
@click.option("--seconds", type=int, help="Length of one sample.  [default: 5]")
@click.option("--repeats", type=int, help="Samples of each.  [default: 3]")
@click.option("--quick", is_flag=True, help="One sample of 1 s of each: shows the order of size, not more.")
@click.option(
    "--shadow", is_flag=True, help="Load KVM's module again with shadow paging, while no VM runs, and back afterwards."
)
@click.option("--picture", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Draw it: .svg, .png.")
@click.option("--last", is_flag=True, help="Show the last run; measure nothing.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print the result.",
)
@click.pass_obj
def host(
    context: Context,
    modes: str | None,
    workloads: str | None,
    seconds: int | None,
    repeats: int | None,
    quick: bool,
    shadow: bool,
    picture: Path | None,
    last: bool,
    output: str,
) -> None:
    """Measure this machine, and guests on it in each way that it can run them.

    CPU, memory, disk and network with sysbench, stress-ng, fio and iperf3, the same files on the host and in the
    guests: KVM with nested (EPT, NPT) and with shadow page tables, TCG, virtio with and without vhost, emulated
    devices, a virtual function of a network card. Guests have one virtual CPU, and are deleted afterwards. What cannot
    be measured is named, with the reason.

    A card with SR-IOV lends a free virtual function, or gets one for that time if nobody uses the card; its switch
    carries what host and guest send to each other. The host's end gets an address of 169.254.0.0/16 meanwhile.

    The figures are kept; 'vmkit explain' shows them.
    """
    api = context.client().bench
    if picture:
        api.check_picture(picture)  # not after minutes of measuring
    if last:
        found = api.last()
        if found is None:
            raise click.UsageError("nothing was measured here so far: vmkit bench host")
    else:
        with progress() as reporter:
            found = api.host(
                modes=_words(modes),
                workloads=_words(workloads),
                seconds=seconds or (1 if quick else 5),
                repeats=repeats or (1 if quick else 3),
                shadow=shadow,
                reporter=reporter,
            )
    if picture:
        api.picture(found, picture)
    if output == "table":
        _show(found)
    else:
        from vmkit.host.measured import to_plain

        emit(to_plain(found), output=output)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(w.strip() for w in text.split(",") if w.strip()) if text else ()


def _show(found: Measured) -> None:
    from vmkit.bench.report import TITLES, rows, summary, where

    click.echo(where(found))
    click.echo()
    emit([*rows(found), *summary(found)], columns=_COLUMNS)
    for skipped in found.skipped:
        area = f" ({skipped.area.value})" if skipped.area else ""
        note(f"not measured: {TITLES[skipped.mode]}{area}: {skipped.reason}")
