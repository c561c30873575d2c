"""vmkit snapshot, save and restore."""

from __future__ import annotations

import click

from vmkit.cli import render
from vmkit.cli.context import Context
from vmkit.values import show_duration

COLUMNS = [
    ("NAME", "name"),
    ("CREATED", "created"),
    ("STATE", "state"),
    ("MEMORY", "memory"),
    ("KIND", "kind"),
    ("CURRENT", "current"),
    ("PARENT", "parent"),
    ("DESCRIPTION", "description"),
]


@click.group()
def snapshot() -> None:
    """Keep the state of a VM, with its memory, and go back to it."""


@snapshot.command()
@click.argument("vm")
@click.argument("name", required=False)
@click.option("--memory/--no-memory", default=True, help="Keep the memory of a VM that is on.  [default: --memory]")
@click.option("--description", default="", metavar="TEXT", help="One line to know it by.")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be chosen and done, and stop.")
@render.output_option
@click.pass_obj
def create(
    ctx: Context, vm: str, name: str | None, *, memory: bool, description: str, only_plan: bool, output: str
) -> None:
    """Take a snapshot. Without NAME it is called snap1, snap2, ...

    Whether it lies inside the disks or in files beside them is chosen by what the disks, the firmware and libvirt can
    do; --plan says why.
    """
    snapshots = ctx.client().snapshots
    if only_plan:
        render.show_plan(snapshots.plan_create(vm, name, memory=memory, description=description), output)
        return
    with render.progress() as reporter:
        taken = snapshots.create(vm, name, memory=memory, description=description, reporter=reporter)
    for text in taken.plan.warnings:
        render.note(text, warning=True)
    if output != "table":
        render.emit({"name": taken.snapshot.name, **_plain(taken)}, output=output)
        return
    made, choice = taken.snapshot, taken.plan.choices[0]
    what = "disks and memory" if made.memory else "disks"
    click.echo(f"{vm}: {made.name}, {what}, {choice.value} ({choice.reason}), {show_duration(taken.seconds)}")


@snapshot.command(name="list")
@click.argument("vm")
@click.option("--tree", is_flag=True, help="Draw which came after which, and where the VM is now.")
@render.output_option
@click.pass_obj
def list_(ctx: Context, vm: str, *, tree: bool, output: str) -> None:
    """List the snapshots of a VM."""
    snapshots = ctx.client().snapshots
    if tree and output == "table":
        for line in snapshots.tree(vm):
            click.echo(line)
        return
    render.emit(snapshots.list(vm), output=output, columns=COLUMNS)


@snapshot.command()
@click.argument("vm")
@click.argument("name")
@click.option("--start", is_flag=True, help="Boot it, where the snapshot holds no memory.")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be done, and stop.")
@render.output_option
@click.pass_obj
def revert(ctx: Context, vm: str, name: str, *, start: bool, only_plan: bool, output: str) -> None:
    """Bring a VM back to a snapshot. What happened since is lost.

    Afterwards it is looked whether the VM stands on the snapshot: its state, its memory, the files of its disks.
    """
    snapshots = ctx.client().snapshots
    if only_plan:
        render.show_plan(snapshots.plan_revert(vm, name, start=start), output)
        return
    with render.progress() as reporter:
        done = snapshots.revert(vm, name, start=start, reporter=reporter)
    if output != "table":
        render.emit({"name": vm, **_plain(done)}, output=output)
        return
    click.echo(f"{vm}: is as it was at {name}, {done.state}, {show_duration(done.seconds)}")
    click.echo(f"verified: {'; '.join(done.verified)}")


@snapshot.command()
@click.argument("vm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--children", is_flag=True, help="Also all that came after them.")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be done, and stop.")
@render.output_option
@click.pass_obj
def delete(ctx: Context, vm: str, names: tuple[str, ...], *, children: bool, only_plan: bool, output: str) -> None:
    """Delete snapshots. The VM stays as it is, and so do the snapshots that came after them."""
    snapshots = ctx.client().snapshots
    if only_plan:
        render.show_plan(snapshots.plan_delete(vm, names, children=children), output)
        return
    with render.progress() as reporter:
        gone = snapshots.delete(vm, names, children=children, reporter=reporter)
    if output == "table":
        click.echo(f"{vm}: deleted {', '.join(gone)}")
    else:
        render.emit([{"name": name} for name in gone], output=output)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--drop", is_flag=True, help="Throw the saved memory away instead: the next start is a boot.")
@click.pass_obj
def save(ctx: Context, names: tuple[str, ...], *, drop: bool) -> None:
    """Write the memory of VMs to disk and end them; `vmkit restore`, or the next start, goes on from there."""

    def act(name: str) -> str:
        snapshots = ctx.client().snapshots
        if drop:
            return "the saved memory is thrown away" if snapshots.drop_saved(name) else "has no saved memory"
        with render.progress() as reporter:
            return f"saved, {show_duration(snapshots.save(name, reporter=reporter))}"

    render.each(names, act)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def restore(ctx: Context, names: tuple[str, ...]) -> None:
    """Let VMs that were saved go on where they were."""

    def act(name: str) -> str:
        with render.progress() as reporter:
            seconds = ctx.client().snapshots.restore(name, reporter=reporter)
        return f"{ctx.client().vms.get(name).state.value}, {show_duration(seconds)}"

    render.each(names, act)


def _plain(value: object) -> dict[str, object]:
    from vmkit.values import to_plain

    plain: dict[str, object] = to_plain(value)
    return plain
