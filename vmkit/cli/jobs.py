"""vmkit jobs."""

from __future__ import annotations

import click

from vmkit.cli import render
from vmkit.cli.context import Context

_COLUMNS = [
    ("ID", "id"),
    ("KIND", "kind"),
    ("SUBJECT", "subject"),
    ("PHASE", "phase"),
    ("STATE", "state"),
    ("STARTED", "started"),
    ("PID", "pid"),
    ("PROGRESS", "detail"),
]


@click.group(invoke_without_command=True)
@render.output_option
@click.pass_context
def jobs(click_context: click.Context, output: str) -> None:
    """See and cancel long operations, also from another terminal."""
    if click_context.invoked_subcommand is None:
        ctx = click_context.ensure_object(Context)
        render.emit(ctx.client().jobs.list(), output=output, columns=_COLUMNS)


@jobs.command("list")
@render.output_option
@click.pass_obj
def list_(ctx: Context, output: str) -> None:
    """List the operations that run, or were cut off."""
    render.emit(ctx.client().jobs.list(), output=output, columns=_COLUMNS)


@jobs.command()
@click.argument("what", metavar="ID|VM")
@click.pass_obj
def cancel(ctx: Context, what: str) -> None:
    """Ask an operation to end. A migration leaves the VM running where it is."""
    job = ctx.client().jobs.cancel(what)
    render.note(f"asked {job.id} ({job.kind} of {job.subject}) to end")


@jobs.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.pass_obj
def resolve(ctx: Context, job_id: str | None) -> None:
    """Finish or undo operations whose process is gone."""
    with render.progress() as reporter:
        lines = ctx.client().jobs.resolve(job_id, reporter)
    for line in lines:
        render.note(line)
    if not lines:
        render.note("nothing was left to settle")
