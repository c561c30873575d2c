"""vmkit wait and vmkit ip."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, note, output_option, progress
from vmkit.errors import NotFoundError
from vmkit.values import parse_duration, show_duration

if TYPE_CHECKING:
    from vmkit.vm.readiness import Ready


@click.command()
@click.argument("name")
@click.option(
    "--for",
    "goals",
    multiple=True,
    metavar="LAYER",
    help="running, console, boot, agent, ip, ssh, cloud-init or port:N. Repeat for more.  "
    "[default: all that the image promises]",
)
@click.option("--deadline", default="90s", show_default=True, help="How long to wait.")
@output_option
@click.pass_obj
def wait(context: Context, name: str, *, goals: tuple[str, ...], deadline: str, output: str) -> None:
    """Wait until a VM is ready; says which layer is stuck if it is not in time.

    \b
    running     the domain runs
    console     something was written to the serial console
    boot        user space is up, by the line on the console that the image names
    agent       the guest agent answers
    ip          an address of the guest is known, and the guest has it now
    ssh         an ssh server sends its greeting
    cloud-init  cloud-init has come to its end
    port:N      a TCP port of the guest takes connections
    """  # noqa: D301 - click's mark for lines that are not joined
    from vmkit.vm.readiness import parse_goal

    wanted = [parse_goal(text) for text in goals]
    seconds = parse_duration(deadline, path="--deadline")
    vm = context.client().vms.get(name)
    with progress() as reporter:
        ready = vm.wait(layers=wanted, deadline=seconds, reporter=reporter)
    if output == "table":
        click.echo(f"{name}:{ready_text(ready).lstrip(',')}")
        show_steps(ready)
    else:
        emit(name if output == "name" else ready, output=output)


@click.command()
@click.argument("name")
@click.option("--all", "everything", is_flag=True, help="Also what is out of date, or of the guest's own making.")
@output_option
@click.pass_obj
def ip(context: Context, name: str, *, everything: bool, output: str) -> None:
    """Show the IP addresses of a VM, the best first, and who says so.

    Sources are the guest agent, libvirt's DHCP servers, the host's ARP table, reservations of networks, and fixed
    addresses in the VM's spec. `-o name` prints the addresses alone.
    """
    found = context.client().vms.get(name).addresses()
    rows = [a for a in found.addresses if everything or (a.network and not a.doubtful)]
    if not rows:
        why = tuple(f"{source.value}: {text}" for source, text in found.silent.items())
        raise NotFoundError(f"no address of {name} is known", hint=f"vmkit wait {name} --for ip", details=why)
    if output == "table" and not any(a.reachable for a in rows):
        note("on a user network nobody reaches the guest, but through port forwards: vmkit show says which it has")
    emit(
        rows, output=output, columns=[("ADDRESS", "ip"), ("MAC", "mac"), ("NETWORK", "network"), ("SAID BY", "sources")]
    )


def ready_text(ready: Ready | None) -> str:
    """', ready after 3.2 s', or nothing where nobody waited."""
    return "" if ready is None else f", ready after {show_duration(ready.seconds)}"


def show_steps(ready: Ready | None) -> None:
    """Each layer and when it was reached; not on a terminal, where the progress display has just shown them."""
    if sys.stderr.isatty():
        return
    for step in ready.steps if ready else ():
        click.echo(f"  {step.seconds:7.2f} s  {step.layer.value}" + (f"  {step.detail}" if step.detail else ""))
