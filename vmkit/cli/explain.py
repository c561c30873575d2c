"""`vmkit explain`: how a VM is virtualised, why, what was not taken, and what that costs."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, note, progress
from vmkit.cli.spec_flags import spec_of, spec_options

if TYPE_CHECKING:
    from vmkit.plan import Choice, Plan

_WIDTH = 110


@click.command()
@click.argument("name", required=False)
@click.option("-f", "--file", "path", metavar="FILE", help="Explain the VMs of a YAML file; - reads standard input.")
@spec_options
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
@click.pass_obj
def explain(context: Context, /, name: str | None, *, path: str | None, output: str, **flags: Any) -> None:
    """Say how a VM is or would be virtualised: each choice, why, what was not taken, and what it costs.

    With NAME alone the VM of that name is explained from what runs. With flags, as vmkit create takes them, or with a
    file, it is said what would be made; nothing is touched.
    """
    spec = spec_of(name or "explained", flags)
    wanted = len(spec) > 1
    if path and (name or wanted):
        raise click.UsageError("-f goes with neither NAME nor flags that describe a VM")
    vms = context.client().vms
    with progress() as reporter:
        if path:
            from vmkit.vm.spec import load

            plans = [vms.explain(one, reporter=reporter) for one in load(path if path == "-" else Path(path))]
        elif name and not wanted:
            plans = [vms.explain_vm(name)]
        else:
            plans = [vms.explain(spec, reporter=reporter)]
    if output != "table":
        emit(plans[0] if len(plans) == 1 else plans, output=output)
        return
    for i, plan in enumerate(plans):
        if i:
            click.echo()
        _show(plan)


def _show(plan: Plan) -> None:
    width = min(_WIDTH, max(60, shutil.get_terminal_size((_WIDTH, 24)).columns))
    click.echo(click.style(plan.title, bold=True))
    margin = max((len(c.subject) for c in plan.choices), default=0) + 2
    said: set[str] = set()
    for choice in plan.choices:
        _show_choice(choice, margin, width, said)
    for text in plan.warnings:
        note(text, warning=True)


def _show_choice(choice: Choice, margin: int, width: int, said: set[str]) -> None:
    """Print a choice. A figure that was printed before (`said`) is not printed again."""
    indent = " " * margin
    head = click.style(f"{choice.subject:<{margin}}", bold=True)
    click.echo(head + _wrapped(f"{choice.value}: {choice.reason}", width, indent))
    for other in choice.rejected:
        _line("not", f"{other.value}: {other.reason}", indent, width)
    if choice.expected and choice.expected not in said:
        said.add(choice.expected)
        _line("expect", choice.expected, indent, width)
    if choice.measured:
        _line("measured", choice.measured, indent, width)


def _line(label: str, text: str, indent: str, width: int) -> None:
    under = indent + " " * 10
    click.echo(indent + click.style(f"{label:<10}", dim=True) + _wrapped(text, width, under))


def _wrapped(text: str, width: int, indent: str) -> str:
    lines = textwrap.wrap(text, max(30, width - len(indent)), break_long_words=False, break_on_hyphens=False)
    return f"\n{indent}".join(lines)
