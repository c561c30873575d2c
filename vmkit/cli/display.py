"""`vmkit display` and `vmkit screenshot`: the screens of VMs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, note, output_option


@click.command()
@click.argument("name")
@output_option
@click.pass_obj
def display(context: Context, name: str, output: str) -> None:
    """Say where a VM's screen is looked at, by VNC or SPICE.

    A VM has one if it was made with --display vnc or spice (display: in its spec). The address is one of its host; from
    another machine the printed ssh command brings it here.
    """
    shown = context.client().screens.list(name)
    emit(
        shown, output=output, columns=[("NAME", "name"), ("KIND", "kind"), ("VIEWER", "uri"), ("PASSWORD", "password")]
    )
    if output == "table":
        for screen in shown:
            if screen.tunnel:
                note(f"from this machine, while this runs: {screen.tunnel}")


@click.command()
@click.argument("name")
@click.argument("file", required=False, metavar="[FILE]", type=click.Path(dir_okay=False))
@click.option("--screen", type=click.IntRange(0, 15), default=0, show_default=True, help="Which of its screens.")
@click.pass_obj
def screenshot(context: Context, name: str, file: str | None, screen: int) -> None:
    """Write what a VM's screen shows to a PNG file: NAME.png here, or FILE; - is standard output."""
    from vmkit.system.files import write_atomic
    from vmkit.vm.screens import check_file

    target = check_file(file or f"{name}.png")
    if target == "-" and sys.stdout.isatty():
        raise click.UsageError("a picture is not written to a terminal: name a FILE, or send it on")
    picture = context.client().screens.picture(name, screen=screen)
    if target == "-":
        click.echo(picture, nl=False)
    else:
        write_atomic(Path(target), picture)
        click.echo(target)
