"""vmkit backup."""

from __future__ import annotations

from typing import Any

import click

from vmkit.cli import render
from vmkit.cli.context import Context
from vmkit.values import Bytes, show_duration, to_plain

COLUMNS = [
    ("VM", "vm"),
    ("ID", "id"),
    ("CREATED", "created"),
    ("EXTENT", "extent"),
    ("SIZE", "size"),
    ("DISKS", "disks"),
    ("CONSISTENCY", "consistency"),
    ("PROBLEM", "problem"),
]
at_option = click.option("--at", metavar="ID", help="Which backup, or the beginning of its id.  [default: the newest]")


@click.group()
def backup() -> None:
    """Back up the disks of running VMs to a directory of their host, and make VMs from backups."""


@backup.command()
@click.argument("vm")
@click.argument("directory", metavar="DIR")
@click.option("--full", is_flag=True, help="A full one in any case.")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be chosen and done, and stop.")
@render.output_option
@click.pass_obj
def create(ctx: Context, vm: str, directory: str, *, full: bool, only_plan: bool, output: str) -> None:
    """Back up a running VM to DIR/VM on its host: the first time in full, later what changed since."""
    backups = ctx.client().backups
    if only_plan:
        render.show_plan(backups.plan_create(vm, directory, full=full), output)
        return
    with render.progress() as reporter:
        made = backups.create(vm, directory, full=full, reporter=reporter)
    for text in made.plan.warnings:
        render.note(text, warning=True)
    if output != "table":
        render.emit({"name": made.backup.id, **_plain(made)}, output=output)
        return
    one, why = made.backup, made.plan.choices[0].reason
    size = Bytes(one.size)
    click.echo(f"{vm}: {one.id}, {one.extent} ({why}), {size}, {one.consistency}, {show_duration(made.seconds)}")


@backup.command(name="list")
@click.argument("directory", metavar="DIR")
@click.argument("vm", required=False)
@render.output_option
@click.pass_obj
def list_(ctx: Context, directory: str, vm: str | None, *, output: str) -> None:
    """List the backups in a directory of the host. Half ones do not show: they do not count."""
    rows = ctx.client().backups.list(directory, vm)
    shown: Any = [{**_plain(r), "size": str(Bytes(r.size))} for r in rows] if output == "table" else rows
    if output == "name":
        shown = [{"vm": r.id} for r in rows]
    render.emit(shown, output=output, columns=COLUMNS)


@backup.command()
@click.argument("directory", metavar="DIR")
@click.argument("vm")
@at_option
@render.output_option
@click.pass_obj
def verify(ctx: Context, directory: str, vm: str, *, at: str | None, output: str) -> None:
    """Read every byte of a backup, and of those that it rests upon, and see that it is what was written."""
    with render.progress() as reporter:
        ids = ctx.client().backups.verify(directory, vm, at=at, reporter=reporter)
    if output == "table":
        click.echo(f"{vm}: whole: {', '.join(ids)}")
    else:
        render.emit([{"name": i} for i in ids], output=output)


@backup.command()
@click.argument("directory", metavar="DIR")
@click.argument("vm")
@at_option
@click.option("--as", "name", metavar="NAME", help="Make a VM of this name.  [default: the one in the backup]")
@click.option("--start", is_flag=True, help="Boot it afterwards.")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be done, and stop.")
@render.output_option
@click.pass_obj
def restore(
    ctx: Context,
    directory: str,
    vm: str,
    *,
    at: str | None,
    name: str | None,
    start: bool,
    only_plan: bool,
    output: str,
) -> None:
    """Make a VM from a backup. A VM that exists is never overwritten.

    Every file of the backup is checked first, and every disk compared byte for byte with the backup afterwards.
    """
    backups = ctx.client().backups
    if only_plan:
        render.show_plan(backups.plan_restore(directory, vm, at=at, name=name), output)
        return
    with render.progress() as reporter:
        done = backups.restore(directory, vm, at=at, name=name, start=start, reporter=reporter)
    if output == "table":
        click.echo(f"{done.name}: restored from {done.backup}, compared byte for byte, {done.state}")
    else:
        render.emit(done, output=output)


@backup.command()
@click.argument("directory", metavar="DIR")
@click.argument("vm")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@render.output_option
@click.pass_obj
def delete(ctx: Context, directory: str, vm: str, ids: tuple[str, ...], *, output: str) -> None:
    """Delete backups that no other one rests upon."""
    gone = ctx.client().backups.delete(directory, vm, ids)
    if output == "table":
        click.echo(f"{vm}: deleted {', '.join(gone)}")
    else:
        render.emit([{"name": i} for i in gone], output=output)


def _plain(value: object) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(value)
    return plain
