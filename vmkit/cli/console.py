"""console, log and exec: reaching into a guest."""

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
        # Behind the history, where it is seen; and in case the terminal is raw and at the end of a line.
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


@click.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for its end.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PROGRAM [ARGUMENT]...")
@click.pass_context
def exec_(ctx: click.Context, name: str, timeout: float, argv: tuple[str, ...]) -> None:
    """Run a program inside a VM through its guest agent, and pass on its output and exit status."""
    done = ctx.obj.client().vms.get(name).guest_exec(argv, timeout=timeout)
    click.echo(done.stdout, nl=False)
    click.echo(done.stderr, nl=False, err=True)
    ctx.exit(done.status if done.status >= 0 else 128 - done.status)
