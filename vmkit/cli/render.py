"""How data, plans, errors and progress look. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vmkit.errors import VmkitError
from vmkit.progress import Advanced, Event, Finished, Note, Reporter, Started
from vmkit.values import show_duration, to_plain

if TYPE_CHECKING:
    from vmkit.plan import Plan

Command = TypeVar("Command", bound=Callable[..., Any])
Columns = Sequence[tuple[str, str]]


class Wide(str):
    """The value of `-o wide`. It equals 'table', so that whoever prepares rows for a table does so here too."""

    __slots__ = ()


def _output(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    return Wide("table") if value == "wide" else value


def output_of(*formats: str) -> Callable[[Command], Command]:
    """The option `-o/--output`, with these formats."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(formats),
        default="table",
        show_default=True,
        callback=_output,
        help="How to print the result.",
    )


output_option = output_of("table", "wide", "json", "yaml", "name")


def emit(data: Any, *, output: str = "table", columns: Columns | None = None, wide: Columns | None = None) -> None:
    """Print one thing or a list of things.

    Args:
        data: dataclasses, structs or dicts; a list of them prints as rows, one as keys and values.
        output: 'table', 'wide', 'json', 'yaml' or 'name' (only the first column, or the field `name`).
        columns: heading and field of each column; a field may be dotted ('job.progress'). Default: all fields.
        wide: columns that 'wide' has beside them. Default: every other field that is one word or number.
    """
    plain = to_plain(data)
    if output == "json":
        import json

        click.echo(json.dumps(plain, indent=2))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), nl=False)
    elif output == "name":
        _names(plain, columns[0][1] if columns else "name")
    elif isinstance(plain, list):
        shown = [*(columns or _all(plain))]
        if isinstance(output, Wide) and columns:
            shown += wide if wide is not None else _others(plain, columns)
        _table([h for h, _ in shown], [[_cell(_at(row, field)) for _, field in shown] for row in plain])
    else:
        pairs = [(h, _at(plain, f)) for h, f in columns] if columns else list(_flatten(plain))
        width = max((len(k) for k, _ in pairs), default=0)
        for key, value in pairs:
            for i, line in enumerate(_cell(value).splitlines() or [""]):
                click.echo(f"{key if i == 0 else '':<{width}}  {line}".rstrip())


def _names(plain: Any, field: str) -> None:
    """The name of each; of what has none the first field that is one word or number."""
    for row in plain if isinstance(plain, list) else [plain]:
        name = _at(row, field) if isinstance(row, dict) else row
        if name is None and isinstance(row, dict):
            name = next((v for v in row.values() if v is not None and not isinstance(v, dict | list)), None)
        click.echo(_cell(name))


def colour() -> bool | None:
    """False where no output may be coloured, whatever it goes to; None leaves it to whether that is a terminal.

    https://no-color.org; and TERM=dumb is a terminal that knows no colours.
    """
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def note(text: str, *, warning: bool = False) -> None:
    """One line for the user on stderr."""
    click.echo(f"{click.style('warning', fg='yellow')}: {text}" if warning else text, err=True, color=colour())


def error_lines(error: VmkitError) -> list[str]:
    """An error as it is printed: the message, what helps to understand it, the next step."""
    red = click.style("error", fg="red", bold=True)
    lines = [f"{red}: {error.message}", *(f"  {d}" for d in error.details)]
    return [*lines, f"{click.style('hint', fg='cyan')}: {error.hint}"] if error.hint else lines


def show_plan(plan: Plan, output: str = "table") -> None:
    """Print a plan: what was chosen and why, what will be done and why."""
    if output == "name":
        click.echo(plan.title)
        return
    if output != "table":
        emit(plan, output=output)
        return
    click.echo(plan.title)
    if plan.choices:
        click.echo()
        rows = []
        for choice in plan.choices:
            rows.append([choice.subject, choice.value, choice.reason])
            rows += [["", "", f"not {r.value}: {r.reason}"] for r in choice.rejected]
        _table(["CHOICE", "VALUE", "BECAUSE"], rows)
    if plan.steps:
        click.echo()
        _table(["STEP", "WHAT", "BECAUSE"], [[f"{i}. {s.verb}", s.what, s.reason] for i, s in enumerate(plan.steps, 1)])
    for text in plan.warnings:
        note(text, warning=True)


def each(names: tuple[str, ...], act: Callable[[str], str]) -> None:
    """Do it for every name; an error with one does not keep the others from their turn, and is raised at the end."""
    failed: VmkitError | None = None
    for name in names:
        try:
            click.echo(f"{name}: {act(name)}")
        except VmkitError as e:
            if failed is not None or len(names) > 1:
                note(e.message + (f" ({e.hint})" if e.hint else ""), warning=True)
            failed = failed or e
    if failed is not None:
        raise failed


@contextlib.contextmanager
def progress() -> Iterator[Reporter]:
    """A reporter that draws with rich on stderr if that is a terminal; notes are printed either way."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda e: note(e.text, warning=e.warning) if isinstance(e, Note) else None
        return
    with _live() as reporter:
        yield reporter


@contextlib.contextmanager
def _live() -> Iterator[Reporter]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column
    from rich.text import Text

    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}", markup=False, table_column=Column(min_width=14)),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    tasks: dict[str, Any] = {}

    def task(step: str) -> Any:
        if step not in tasks:
            tasks[step] = bar.add_task(step, total=None, text="")
        return tasks[step]

    def report(event: Event) -> None:
        match event:
            case Started(step, text):
                bar.update(task(step), text=text)
            case Advanced(step, done, total, text):
                bar.update(task(step), completed=done, total=total, text=text)
            case Finished(step, seconds, text):
                bar.remove_task(task(step))
                del tasks[step]
                bar.console.print(
                    Text.assemble(("✓ ", "green"), f"{step:<13} {text:<17} ", show_duration(seconds)),
                    highlight=False,
                )
            case Note(text, warning):
                mark = ("! ", "yellow") if warning else ("· ", "dim")
                bar.console.print(Text.assemble(mark, text), highlight=False)

    with bar:
        yield report


def _table(heads: list[str], rows: list[list[str]]) -> None:
    if not rows:
        if sys.stdout.isatty():
            note("nothing there")
        return
    widths = [max(len(h), *(len(r[i]) for r in rows)) for i, h in enumerate(heads)]
    dim: Callable[[str], str] = lambda s: click.style(s, bold=True)  # noqa: E731
    click.echo(dim("  ".join(h.ljust(w) for h, w in zip(heads, widths, strict=True)).rstrip()))
    for row in rows:
        click.echo("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def _at(row: Any, field: str) -> Any:
    for part in field.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return row


def _all(rows: list[Any]) -> Columns:
    return [(k.upper(), k) for k in rows[0]] if rows and isinstance(rows[0], dict) else []


def _others(rows: list[Any], columns: Columns) -> Columns:
    """Fields that no column shows and that are one word or number in every row."""
    shown = {field for _, field in columns}
    return [
        (key.upper().replace("_", " "), key)
        for _, key in _all(rows)
        if key not in shown and not any(isinstance(row.get(key), dict | list) for row in rows)
    ]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix or "value", value
        return
    for key, inner in value.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(inner, dict) and inner:
            yield from _flatten(inner, name)
        elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
            for i, item in enumerate(inner):
                yield from _flatten(item, f"{name}[{i}]")
        else:
            yield name, inner


def _cell(value: Any) -> str:
    match value:
        case None | "" | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3f}".rstrip("0").rstrip(".")
        case list():
            return ", ".join(_cell(v) for v in value)
        case dict():
            return ", ".join(f"{k}={_cell(v)}" for k, v in value.items())
    return str(value)
