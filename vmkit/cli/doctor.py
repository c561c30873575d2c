"""`vmkit doctor`: what a host can do, what it lacks, and what mends that."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, progress

if TYPE_CHECKING:
    from vmkit.host.doctor import Report
    from vmkit.host.finding import Finding

_COLOURS = {"problem": "red", "gap": "yellow", "note": "cyan", "ok": "green"}
_WIDTH = 100


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print the report.",
)
@click.option("--ssh", metavar="[USER@]HOST[:PORT]", help="Look at another host, over ssh.")
@click.option(
    "--identity", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Private key for --ssh."
)
@click.option("--no-probe", is_flag=True, help="Start no probe guest, and put nothing on the host.")
@click.pass_obj
def doctor(context: Context, output: str, ssh: str | None, identity: Path | None, no_probe: bool) -> None:
    """Say what a host can do, what it lacks, what that costs and what mends it.

    The host is this machine, the one of -c if that is reached by ssh, or the one of --ssh. Nothing is installed there.
    Whether KVM works is settled by a small guest, once until the host boots again.

    Problems are part of the report: the exit code is 0 whenever the host could be looked at, and 3 if not.
    """
    if identity and not ssh:
        raise click.UsageError("--identity goes with --ssh")
    with progress() as reporter:
        report = context.client().doctor(ssh=ssh, identity=identity, probe=not no_probe, reporter=reporter)
    if output == "table":
        _show(report)
    else:
        emit(report, output=output)


def _show(report: Report) -> None:
    width = min(_WIDTH, max(60, shutil.get_terminal_size((_WIDTH, 24)).columns))
    lines = report.summary()
    margin = max(len(label) for label, _ in lines) + 2
    for label, text in lines:
        click.echo(click.style(f"{label:<{margin}}", bold=True) + _wrapped(text, width, " " * margin))
    counts = {level: sum(f.level.value == level for f in report.findings) for level in _COLOURS}
    click.echo()
    click.echo(", ".join(f"{n} {level if n == 1 or level == 'ok' else level + 's'}" for level, n in counts.items()))
    before = None
    for finding in report.findings:
        if finding.level.value != "ok" or before != "ok":
            click.echo()
        _show_finding(finding, width)
        before = finding.level.value


def _show_finding(finding: Finding, width: int) -> None:
    level = finding.level.value
    indent = " " * 9
    under = indent + " " * len("cost: ")
    click.echo(
        click.style(f"{level:<9}", fg=_COLOURS[level], bold=level == "problem") + _wrapped(finding.what, width, indent)
    )
    if finding.cost:
        click.echo(f"{indent}cost: {_wrapped(finding.cost, width, under)}")
    if finding.source:
        click.echo(click.style(under + _wrapped(f"[{finding.source}]", width, under), dim=True))
    for i, line in enumerate(finding.fix):
        # Not wrapped: a command is to be copied as it stands.
        click.echo(f"{indent}{'fix:  ' if i == 0 else '      '}{click.style(line, fg='green')}")


def _wrapped(text: str, width: int, indent: str) -> str:
    """The text in lines, of which all but the first are indented; the first has `indent` before it already."""
    lines = textwrap.wrap(text, width - len(indent), break_long_words=False, break_on_hyphens=False)
    return f"\n{indent}".join(lines)
