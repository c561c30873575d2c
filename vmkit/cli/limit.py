"""vmkit limit."""

from __future__ import annotations

import click

from vmkit.cli import render
from vmkit.cli.context import Context


@click.command()
@click.argument("name")
@click.option("--cpus", metavar="N", help="CPUs that the VM may use, as in 1.5.")
@click.option("--cpu-shares", type=int, metavar="N", help="Weight while CPUs are scarce, 2 to 10000; others have 100.")
@click.option("--memory-cap", metavar="SIZE", help="Memory of the whole QEMU process, as in 1G.")
@click.option("--io-weight", type=int, metavar="N", help="Weight while disks are busy, 10 to 1000; others have 100.")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="DEV:KEY=VALUE,...",
    help="A disk: read-, write-, total-bps= and -iops=, as in vda:read-iops=200,write-bps=20M. Repeat for more.",
)
@click.option("--nic", "nics", multiple=True, metavar="N:in=RATE,out=RATE", help="A NIC, bytes a second: 0:in=10M.")
@click.option(
    "--none",
    multiple=True,
    metavar="KIND",
    help="Take limits away: cpus, cpu-shares, memory-cap, io-weight, disk[:DEV], nic[:N] or all. Repeat for more.",
)
@click.option("--live", is_flag=True, help="Change what runs.")
@click.option("--config", is_flag=True, help="Change the definition, for the next start.  [default: both]")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be changed, and stop.")
@render.output_option
@click.pass_obj
def limit(
    ctx: Context,
    name: str,
    cpus: str | None,
    cpu_shares: int | None,
    memory_cap: str | None,
    io_weight: int | None,
    disks: tuple[str, ...],
    nics: tuple[str, ...],
    none: tuple[str, ...],
    live: bool,
    config: bool,
    only_plan: bool,
    output: str,
) -> None:
    """Show what a VM may take from its host, or change it while it runs.

    All that is asked for is done, or nothing: if a part fails, what was changed is set back.
    """
    from vmkit.vm.limits import parse_change, rows

    change = parse_change(
        cpus=cpus,
        cpu_shares=cpu_shares,
        memory_cap=memory_cap,
        io_weight=io_weight,
        disks=disks,
        nics=nics,
        none=none,
    )
    vm = ctx.client().vms.get(name)
    if only_plan:
        render.show_plan(vm.plan_limit(change, live=live, config=config), output)
        return
    shown = vm.limit(change, live=live, config=config) if change else vm.limits()
    for text in shown.warnings:
        render.note(text, warning=True)
    if output != "table":
        render.emit(shown, output=output)
    elif change:
        click.echo(f"{name}: {', '.join(shown.changed) or 'nothing to change'}")
    else:
        columns = [("LIMIT", "limit"), ("RUNNING", "live"), ("DEFINITION", "config")]
        render.emit(rows(shown.live, shown.config), columns=columns)
