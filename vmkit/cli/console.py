"""console and log: what a guest writes."""

from __future__ import annotations

import click

from vmkit.cli.context import Context
from vmkit.cli.render import note


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Throw out whoever is attached.")
@click.option("--history/--no-history", default=True, help="Print first what was written before.  [default: history]")
@click.pass_obj
def console(context: Context, name: str, *, force: bool, history: bool) -> None:
    """Attach to the serial console of a VM. Ctrl-] detaches.

    It begins with what the guest has written since it was started, from the first byte; vmkit log prints that alone.
    """

    def attached() -> None:
        # Behind the history, where it is seen. The terminal is raw, and may be anywhere in a line.
        note(f"\r\n--- console of {name}: Ctrl-] detaches, Enter wakes a shell ---\r")

    how = context.client().console(name, force=force, history=history, attached=attached)
    note(f"\r\n--- {how} ---")


@click.command()
@click.argument("name")
@click.option("-n", "--lines", type=click.IntRange(min=1), help="Only the last LINES lines.")
@click.pass_obj
def log(context: Context, name: str, lines: int | None) -> None:
    """Print what a VM wrote to its serial console since it was started."""
    text = context.client().vms.get(name).log()
    if lines is not None:
        text = "\n".join(text.splitlines()[-lines:]) + "\n"
    click.echo(text, nl=False)
