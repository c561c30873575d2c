"""`vmkit hotfix`."""

from __future__ import annotations

from pathlib import Path

import click

from vmkit.cli import render
from vmkit.cli.context import Context

_SOURCE = click.argument("source", metavar="PATCHFILE|ID")
_PLAN = click.option("--plan", "only_plan", is_flag=True, help="Make every check, print the plan and stop.")


@click.group()
def hotfix() -> None:
    """Patch the code of running QEMU processes, and take it back.

    A patch concerns a whole host: every QEMU process of its running VMs is patched, or none. The bytes change in the
    memory of these processes alone, so a VM that is started later is not patched until `apply` is run again. It has to
    run on the host itself, as root.
    """


@hotfix.command()
@click.option("--binary", type=click.Path(path_type=Path), required=True, help="The executable that runs.")
@click.option("--find", metavar="HEX", required=True, help="Bytes at one place of its code; ?? is any byte.")
@click.option("--replace", metavar="HEX", required=True, help="What goes there; at most as long.")
@click.option("--id", "patch_id", metavar="ID", required=True, help="Name of the patch.")
@click.option("--title", help="One line that says what it is for.")
@click.option("--cve", default="", metavar="CVE-...", help="The CVE number that it mends.")
@click.option(
    "--context",
    type=click.IntRange(0, 1024),
    default=16,
    show_default=True,
    help="Bytes before and after that have to be there too.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write [default: standard output]")
@click.pass_obj
def make(
    obj: Context,
    binary: Path,
    find: str,
    replace: str,
    patch_id: str,
    title: str | None,
    cve: str,
    context: int,
    out: Path | None,
) -> None:
    """Make a patch file from bytes in an executable. The executable is only read.

    \b
    vmkit hotfix make --binary /usr/bin/qemu-system-x86_64 --find 'b8 ed 00 00 01' \\
        --replace 'b8 ed 00 00 02' --id edu-id -o edu-id.toml
    """  # noqa: D301 - click's \b keeps the lines of the example
    made = obj.client().hotfixes.make(
        binary, find=find, replace=replace, id=patch_id, title=title, cve=cve, context=context, path=out
    )
    if made.path is None:
        click.echo(made.text, nl=False)
    else:
        render.note(f"wrote {made.path}; see what it would do: vmkit hotfix check {made.path}")


@hotfix.command()
@_SOURCE
@render.output_option
@click.pass_obj
def check(obj: Context, source: str, output: str) -> None:
    """See whether a patch can be applied here: builds, bytes, processes. Nothing is paused or written."""
    report = obj.client().hotfixes.check(source)
    if output == "table":
        render.show_plan(report.plan)
        render.note(f"{report.id}: {report.state}")
    else:
        render.emit(report, output=output, columns=[("ID", "id")] if output == "name" else None)


@hotfix.command()
@_SOURCE
@_PLAN
@render.output_option
@click.pass_obj
def apply(obj: Context, source: str, only_plan: bool, output: str) -> None:
    """Patch every QEMU process of the host's running VMs. Each guest is paused for some milliseconds."""
    _run(obj, "apply", source, only_plan=only_plan, output=output)


@hotfix.command()
@_SOURCE
@_PLAN
@render.output_option
@click.pass_obj
def revert(obj: Context, source: str, only_plan: bool, output: str) -> None:
    """Put back what a patch replaced, wherever it is applied on the host."""
    _run(obj, "revert", source, only_plan=only_plan, output=output)


@hotfix.command()
@render.output_option
@click.pass_obj
def status(obj: Context, output: str) -> None:
    """Show which processes carry which patch, read from their memory. VMs started later are not patched."""
    rows = obj.client().hotfixes.status()
    columns = [("PATCH", "id"), ("VM", "guest"), ("PID", "pid"), ("STATE", "state"), ("DETAIL", "detail")]
    render.emit(rows, output=output, columns=columns)


def _run(obj: Context, action: str, source: str, *, only_plan: bool, output: str) -> None:
    hotfixes = obj.client().hotfixes
    if only_plan:
        from vmkit.hotfix.plans import Action

        render.show_plan(hotfixes.plan(source, Action(action)), output)
        return
    with render.progress() as reporter:
        report = (
            hotfixes.apply(source, reporter=reporter)
            if action == "apply"
            else hotfixes.revert(source, reporter=reporter)
        )
    if output == "table":
        rows = [
            {
                "guest": p.guest,
                "pid": p.pid,
                "pause": None if p.pause_ms is None else round(p.pause_ms, 1),
                "writes": [f"{w.address}: {w.old} -> {w.new}" for w in p.writes],
            }
            for p in report.processes
        ]
        render.emit(rows, columns=[("VM", "guest"), ("PID", "pid"), ("PAUSE MS", "pause"), ("CHANGED", "writes")])
        render.note(f"{report.id}: {report.state}")
    else:
        render.emit(report, output=output, columns=[("ID", "id")] if output == "name" else None)
