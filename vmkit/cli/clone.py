"""`vmkit clone`, `vmkit image from-vm`, and several VMs at once with `vmkit create`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, note, output_option, progress, show_plan
from vmkit.cli.spec_flags import spec_of
from vmkit.errors import SpecError
from vmkit.values import check_name, parse_duration, show_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmkit.vm.clone.api import Copied

COUNT_LIMIT: Final = 1000
COLUMNS: Final = [("NAME", "name"), ("KIND", "kind"), ("STATE", "state"), ("READY_S", "seconds")]


@click.command()
@click.argument("name")
@click.argument("names", metavar="NEW...", nargs=-1, required=True)
@click.option("--full", is_flag=True, help="Disks that stand alone, in place of sharing the image's file.")
@click.option(
    "--address",
    metavar="A/P",
    help="Address of the first NIC: dhcp, none or ADDRESS/PREFIX[,gateway=ADDRESS]; further copies count on from it.",
)
@click.option("--to", metavar="URI", help="Host for the copies, if not that of NAME: qemu+ssh://root@host/system")
@click.option("--no-start", is_flag=True, help="Leave a copy of a VM that is shut off shut off, too.")
@click.option("--wait/--no-wait", default=False, help="Return when the copies are ready.")
@click.option("--deadline", default="90s", show_default=True, help="How long --wait waits for each.")
@click.option("--at-once", type=int, metavar="N", help="Copies made at a time.  [default: the host's CPUs]")
@click.option("--plan", is_flag=True, help="Print what would be done, and stop.")
@output_option
@click.pass_obj
def clone(
    context: Context,
    /,
    name: str,
    names: tuple[str, ...],
    *,
    full: bool,
    address: str | None,
    to: str | None,
    no_start: bool,
    wait: bool,
    deadline: str,
    at_once: int | None,
    plan: bool,
    output: str,
) -> None:
    """Copy the VM NAME, as often as new names are given.

    A running VM is copied with its memory: it runs on, and the copies go on from the same moment. One that is shut off
    is copied with its disks. Each copy gets a name, uuid, MAC addresses, machine-id and ssh host keys of its own, and
    is on the network only when it has them.
    """
    clones = context.client().clones
    seconds = parse_duration(deadline, path="--deadline")
    if plan:
        show_plan(clones.plan(name, names, full=full, address=address, to=to), output)
        return
    with progress() as reporter:
        made = clones.clone(
            name,
            names,
            full=full,
            address=address,
            to=to,
            start=not no_start,
            wait=wait,
            deadline=seconds,
            workers=at_once,
            reporter=reporter,
        )
    _show(made, output)


@click.command("from-vm")
@click.argument("vm", metavar="VM")
@click.option("--name", required=True, help="What to call the image.")
@click.option("--force", is_flag=True, help="Replace the image of that name.")
@click.option(
    "-c",
    "--connect",
    metavar="URI",
    expose_value=False,
    callback=lambda ctx, _param, value: setattr(ctx.find_object(Context), "uri", value) if value else None,
    help="Host to work on; the same as before the command.",
)
@click.pass_obj
def from_vm(context: Context, /, *, vm: str, name: str, force: bool) -> None:
    """Make an image of a running VM, with its memory, from which others go on.

    VMs of 'vmkit create --from-memory IMAGE' are ready without a boot: they go on from the moment of the image, each
    with a name, MAC addresses, machine-id and ssh host keys of its own. The VM runs on. The image holds whatever was
    in the VM's memory, so it is readable for its owner alone.
    """
    with progress() as reporter:
        made = context.client().clones.keep(vm, name, force=force, reporter=reporter)
    click.echo(f"made {made.name}: {made.size}, {made.source}")


def numbered(name: str, count: int | None) -> list[str]:
    """Names of `count` VMs: NAME-1, NAME-2, ...; NAME itself where no count is given."""
    if count is None:
        return [name]
    if not 1 <= count <= COUNT_LIMIT:
        raise SpecError(f"{count} is not between 1 and {COUNT_LIMIT}", path="--count")
    return [check_name(f"{name}-{i}") for i in range(1, count + 1)]


def create_from_memory(
    context: Context,
    name: str,
    image: str,
    *,
    count: int | None,
    address: str | None,
    at_once: int | None,
    wait: bool,
    deadline: float,
    plan: bool,
    output: str,
    flags: dict[str, Any],
) -> None:
    """`vmkit create --from-memory`."""
    if given := sorted(spec_of(name, flags).keys() - {"name"}):
        raise SpecError(
            f"a VM that goes on from the memory of '{image}' is as the image has it",
            path=f"--{given[0].replace('_', '-')}",
            hint=f"vmkit create {name} --from-memory {image}",
        )
    clones = context.client().clones
    names = numbered(name, count)
    if plan:
        show_plan(clones.plan_from_memory(image, names, address=address), output)
        return
    with progress() as reporter:
        made = clones.from_memory(
            image, names, address=address, wait=wait, deadline=deadline, workers=at_once, reporter=reporter
        )
    _show(made, output)


def create_many(
    context: Context,
    names: Sequence[str],
    flags: dict[str, Any],
    *,
    at_once: int | None,
    wait: bool,
    start: bool,
    deadline: float,
    plan: bool,
    output: str,
) -> None:
    """`vmkit create --count`."""
    vms = context.client().vms
    specs = [spec_of(name, flags) for name in names]
    if plan:
        for spec in specs:
            show_plan(vms.plan(spec), output)
        return
    with progress() as reporter:
        made = vms.create_many(specs, wait=wait, start=start, deadline=deadline, workers=at_once, reporter=reporter)
    for text in dict.fromkeys(w for one in made for w in one.plan.warnings):
        note(text, warning=True)
    rows = [
        {
            "name": one.vm.name,
            "kind": "cold",
            "state": "running" if start else "shut off",
            "seconds": one.ready.seconds if one.ready else None,
            **({"password": one.password} if one.password else {}),
        }
        for one in made
    ]
    columns = [*COLUMNS, ("PASSWORD", "password")] if any("password" in r for r in rows) else COLUMNS
    emit(rows, output=output, columns=columns)


def _show(made: Sequence[Copied], output: str) -> None:
    rows = [{"name": m.name, "kind": m.kind, "state": m.state, "seconds": m.seconds if m.ready else None} for m in made]
    if output == "table" and len(made) == 1:
        ready = f", ready after {show_duration(made[0].seconds)}" if made[0].ready else ""
        click.echo(f"{made[0].name}: {made[0].kind} copy, {made[0].state}{ready}")
        return
    emit(rows if output == "table" else made, output=output, columns=COLUMNS)
