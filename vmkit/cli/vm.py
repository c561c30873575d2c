"""create, list, show and the verbs of a VM's life."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmkit.cli.context import Context
from vmkit.cli.render import Wide, each, emit, note, output_option, progress, show_plan
from vmkit.cli.spec_flags import spec_of, spec_options
from vmkit.cli.wait import ready_text, show_steps
from vmkit.errors import SpecError
from vmkit.values import Bytes, parse_duration

if TYPE_CHECKING:
    from vmkit.vm.machine import Details

names = click.argument("names", nargs=-1, required=True, metavar="NAME...")


@click.command()
@click.argument("name")
@spec_options
@click.option("--wait/--no-wait", default=False, help="Return when the guest is ready.")
@click.option("--deadline", default="90s", show_default=True, help="How long --wait waits.")
@click.option("--no-start", is_flag=True, help="Leave it shut off.")
@click.option("--from-memory", metavar="IMAGE", help="Go on from the memory of an image, in place of booting.")
@click.option("--address", metavar="A/P", help="With --from-memory: address of the first NIC; further VMs count on.")
@click.option("--count", type=int, metavar="N", help="Make N of them: NAME-1, NAME-2, ...")
@click.option("--at-once", type=int, metavar="N", help="VMs made at a time, with --count.  [default: the host's CPUs]")
@click.option("--plan", is_flag=True, help="Print what would be chosen and done, and stop.")
@output_option
@click.pass_obj
def create(
    context: Context,
    /,
    name: str,
    *,
    wait: bool,
    deadline: str,
    no_start: bool,
    from_memory: str | None,
    address: str | None,
    count: int | None,
    at_once: int | None,
    plan: bool,
    output: str,
    **flags: Any,
) -> None:
    """Create a VM from an image and start it; or several that differ in their names alone."""
    from vmkit.cli import clone

    seconds = parse_duration(deadline, path="--deadline")
    common: dict[str, Any] = {
        "at_once": at_once,
        "wait": wait,
        "deadline": seconds,
        "plan": plan,
        "output": output,
        "flags": flags,
    }
    if from_memory is not None:
        if no_start:
            raise SpecError(
                "a VM that goes on from a saved memory runs",
                path="--no-start",
                hint="leave it out; vmkit pause NAME has it stand still",
            )
        clone.create_from_memory(context, name, from_memory, count=count, address=address, **common)
        return
    if address is not None:
        hint = "vmkit create ... --nic NETWORK,address=A/P"
        raise SpecError("only VMs that go on from a saved memory take it", path="--address", hint=hint)
    if count is not None:
        clone.create_many(context, clone.numbered(name, count), start=not no_start, **common)
        return
    spec = spec_of(name, flags)
    vms = context.client().vms
    with progress() as reporter:
        if plan:
            made, shown = None, vms.plan(spec, reporter=reporter)
        else:
            made, shown = vms.create(spec, wait=wait, start=not no_start, deadline=seconds, reporter=reporter), None
    if shown is not None:
        show_plan(shown, output)
        return
    assert made is not None  # noqa: S101 - one of the two was made
    for text in made.plan.warnings:
        note(text, warning=True)
    if output == "table":
        where = "shut off" if no_start else f"running under {made.accelerator}"
        click.echo(f"{name}: {where}{ready_text(made.ready)}")
        if made.password:
            click.echo(f"password: {made.password}  (it is kept nowhere: note it down)")
        show_steps(made.ready)
    else:
        password = {"password": made.password} if made.password else {}
        shown_as = {"name": name, "accelerator": made.accelerator, "ready": made.ready, "plan": made.plan}
        emit({**shown_as, **password}, output=output)


@click.command(name="list")
@output_option
@click.pass_obj
def list_(context: Context, output: str) -> None:
    """List the VMs of a host, whoever made them. With -o wide also their addresses, which takes a little longer."""
    client = context.client()
    rows: list[Any] = list(client.overviews.list() if isinstance(output, Wide) else client.vms.list())
    if output == "table":
        rows = [
            {**_plain(r), "memory": str(Bytes(r.memory)), "image": r.image or ("-" if r.managed else "(foreign)")}
            for r in rows
        ]
    columns = [("NAME", "name"), ("STATE", "state"), ("VCPUS", "vcpus"), ("MEMORY", "memory"), ("IMAGE", "image")]
    more = [
        ("ACCELERATOR", "accelerator"),
        ("ADDRESSES", "addresses"),
        ("AUTOSTART", "autostart"),
        ("LABELS", "labels"),
    ]
    emit(rows, output=output, columns=columns, wide=more)


@click.command()
@click.argument("name")
@output_option
@click.option("--xml", is_flag=True, help="Print the domain's XML as libvirt has it.")
@click.pass_obj
def show(context: Context, name: str, *, output: str, xml: bool) -> None:
    """Show one VM in full."""
    vm = context.client().vms.get(name)
    if xml:
        click.echo(vm.domain.xml(), nl=False)
        return
    details = vm.details()
    emit(_readable(details) if output == "table" else details, output=output)


@click.command()
@names
@click.option("--wait/--no-wait", default=False, help="Return when the guest is ready.")
@click.option("--deadline", default="90s", show_default=True, help="How long --wait waits.")
@click.pass_obj
def start(context: Context, names: tuple[str, ...], *, wait: bool, deadline: str) -> None:
    """Start VMs that are shut off."""
    seconds = parse_duration(deadline, path="--deadline")

    def act(name: str) -> str:
        vm = context.client().vms.get(name)
        with progress() as reporter:
            began = vm.start(reporter=reporter)
            ready = vm.wait(deadline=seconds, reporter=reporter) if wait else None
        return ("running" if began else "runs already") + ready_text(ready)

    each(names, act)


@click.command()
@names
@click.option("--force", is_flag=True, help="Pull the plug.")
@click.option("--deadline", default="60s", show_default=True, help="How long to wait for the guest.")
@click.pass_obj
def stop(context: Context, names: tuple[str, ...], *, force: bool, deadline: str) -> None:
    """Shut VMs down and wait until they are off."""
    seconds = parse_duration(deadline, path="--deadline")

    def act(name: str) -> str:
        done = context.client().vms.get(name).stop(force=force, deadline=seconds)
        return "shut off" if done else "is shut off already"

    each(names, act)


@click.command()
@names
@click.option("--force", is_flag=True, help="Press the reset button.")
@click.option("--wait/--no-wait", default=False, help="Return when the guest is ready again.")
@click.option("--deadline", default="90s", show_default=True, help="How long --wait waits.")
@click.pass_obj
def reboot(context: Context, names: tuple[str, ...], *, force: bool, wait: bool, deadline: str) -> None:
    """Ask guests to reboot."""
    seconds = parse_duration(deadline, path="--deadline")

    def act(name: str) -> str:
        with progress() as reporter:
            ready = context.client().vms.get(name).reboot(force=force, wait=wait, deadline=seconds, reporter=reporter)
        done = "reset" if force else "rebooted" if wait else "asked to reboot"
        return done + ready_text(ready)

    each(names, act)


@click.command()
@names
@click.pass_obj
def pause(context: Context, names: tuple[str, ...]) -> None:
    """Let the vCPUs of VMs stand still."""
    each(names, lambda name: "paused" if context.client().vms.get(name).pause() else "is paused already")


@click.command()
@names
@click.pass_obj
def resume(context: Context, names: tuple[str, ...]) -> None:
    """Let paused VMs run again."""
    each(names, lambda name: "running" if context.client().vms.get(name).resume() else "runs already")


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "every", is_flag=True, help="Every VM that vmkit made on this host; those of other tools stay.")
@click.option("--force", is_flag=True, help="Also if it runs: pull the plug first.")
@click.pass_obj
def delete(context: Context, names: tuple[str, ...], *, every: bool, force: bool) -> None:
    """Delete VMs, with the disks and console logs that vmkit made for them; other disks are left alone."""
    if every == bool(names):
        raise SpecError("name the VMs, or say --all", path="NAME", hint="vmkit delete NAME..., or vmkit delete --all")
    if not every:
        each(names, lambda name: "removed " + ", ".join(context.client().vms.get(name).delete(force=force)))
        return
    with progress() as reporter:
        gone = context.client().vms.delete_all(force=force, reporter=reporter)
    for name, removed in gone.items():
        click.echo(f"{name}: removed {', '.join(removed)}")


def _readable(details: Details) -> dict[str, Any]:
    """Details with sizes, limits and labels in words."""
    from vmkit.vm.limits import rows

    plain = {**_plain(details), "memory": str(Bytes(details.memory))}
    plain["limits"] = {r["limit"]: r["live"] for r in rows(details.limits, None) if r["live"] != "none"}
    if details.isolation is not None:
        plain["isolation"]["labels"] = [f"{x.model} {x.label}" for x in details.isolation.labels]
    return plain


def _plain(row: Any) -> dict[str, Any]:
    from vmkit.values import to_plain

    plain: dict[str, Any] = to_plain(row)
    return plain
