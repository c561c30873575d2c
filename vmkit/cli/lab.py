"""`vmkit lab`: throw-away hosts."""

from __future__ import annotations

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, output_option, progress

_COLUMNS = [("NAME", "name"), ("KIND", "kind"), ("STATE", "state"), ("ADDRESS", "address"), ("URI", "uri")]


@click.group()
def lab() -> None:
    """Throw-away hosts to try things on."""


@lab.command()
@click.argument("kind", type=click.Choice(["pair"]), default="pair")
@click.option("--name", metavar="NAME", help="Name of the lab; several can be up at a time.  [default: the kind]")
@click.option("--hosts", type=int, default=2, show_default=True, metavar="N", help="How many hosts, 2 to 8.")
@output_option
@click.pass_obj
def up(context: Context, kind: str, name: str | None, hosts: int, output: str) -> None:
    """Bring a lab up: libvirt hosts on this machine, each in namespaces of its own.

    The hosts share a storage pool (vmkit) and a network (lab) with DHCP. Guests are moved between them with
    'vmkit migrate', or with virsh and the URIs that are printed. A lab that is up already is left as it is.
    """
    with progress() as reporter:
        made = context.client().labs.up(kind, name=name, hosts=hosts, reporter=reporter)
    emit(list(made.hosts), output=output, columns=_COLUMNS)


@lab.command("list")
@output_option
@click.pass_obj
def list_(context: Context, output: str) -> None:
    """List the hosts of every lab."""
    emit(context.client().labs.list(), output=output, columns=_COLUMNS)


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_(context: Context, name: str, command: tuple[str, ...]) -> None:
    """Run a program in a lab host, as root: vmkit lab exec pair/h1 -- virsh list.

    NAME is LAB/HOST, or only HOST where that is clear. The terminal, the streams and the exit status are the program's
    own.
    """
    context.client().labs.exec(name, command[1:] if command[0] == "--" else command)


@lab.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Tear every lab down.")
@click.pass_obj
def down(context: Context, name: str | None, everything: bool) -> None:
    """Tear a lab down: its guests, processes, network and files."""
    if (name is None) == (not everything):
        raise click.UsageError("give the NAME of a lab, or --all")
    labs = context.client().labs
    with progress() as reporter:
        if name is None:
            labs.down_all(reporter)
        else:
            labs.down(name, reporter)
