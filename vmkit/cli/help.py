"""`vmkit help`: commands, topics, and all of it as a manual page."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import click

from vmkit.system.templates import template

_WIDTH = 100
_FILE = """\
A file for vmkit apply has VMs under vms:, networks under networks:, or is one VM itself. The flags of vmkit create have
the same names. Sizes are written like 512M or 2G.

    vms:
    - name: web1
      image: micro
      memory: 512M
      disks:
      - size: 1G
      nics:
      - network: user

"""


@dataclass(frozen=True, slots=True)
class Topic:
    """A text on something that concerns several commands. Lines that are indented are printed as they stand."""

    name: str
    title: str
    body: str


def topics() -> list[Topic]:
    """Every topic, by name; `spec` is made from the spec's own types."""
    found = [_read(path.stem) for path in template("help").glob("*.txt")]
    return sorted([*found, _spec()], key=lambda t: t.name)


def _read(name: str) -> Topic:
    title, _, body = template(f"help/{name}.txt").read_text().partition("\n\n")
    return Topic(name, title, body)


def _spec() -> Topic:
    from vmkit.vm.spec_help import reference

    lines = _FILE.splitlines()
    for part in reference():
        lines += [f"{part.path}: {part.what}", ""]
        for field in part.fields:
            default = f"  [{field.default}]" if field.default else ""
            lines.append(f"    {field.name}  ({field.kind}){default}")
            lines += textwrap.wrap(field.meaning, 84, initial_indent=" " * 8, subsequent_indent=" " * 8)
        lines.append("")
    return Topic("spec", "The file of vmkit apply: every field of VMs, disks, NICs and networks", "\n".join(lines))


def blocks(body: str) -> Iterator[tuple[bool, list[str]]]:
    """The paragraphs of a text, each with whether it is printed as it stands."""
    for paragraph in body.strip("\n").split("\n\n"):
        lines = paragraph.split("\n")
        yield lines[0].startswith("    "), lines


def shown(topic: Topic, width: int) -> str:
    """A topic for a terminal of that many columns."""
    parts = [topic.title]
    for verbatim, lines in blocks(topic.body):
        parts.append("\n".join(lines) if verbatim else textwrap.fill(" ".join(lines), width, break_on_hyphens=False))
    return "\n\n".join(parts) + "\n"


@click.command(name="help", context_settings={"ignore_unknown_options": False})
@click.argument("words", nargs=-1, metavar="[TOPIC | COMMAND...]")
@click.option("--man", is_flag=True, help="Print everything as a manual page: vmkit help --man | man -l -")
@click.pass_context
def help_(ctx: click.Context, words: tuple[str, ...], man: bool) -> None:
    """Explain a topic or a command; without one, list the topics."""
    root = ctx.find_root()
    width = min(_WIDTH, max(60, shutil.get_terminal_size((_WIDTH, 24)).columns))
    if man:
        from vmkit.cli.manual import page

        click.echo(page(root), nl=False)
        return
    if not words:
        _overview()
        return
    if len(words) == 1 and root.command.get_command(root, words[0]) is None:  # type: ignore[attr-defined]
        topic = next((t for t in topics() if t.name == words[0]), None)
        if topic is None:
            _unknown(ctx, words[0], root)
            return
        _print(shown(topic, width))
        return
    _print(_of_command(ctx, root, words))


def _of_command(ctx: click.Context, root: click.Context, words: tuple[str, ...]) -> str:
    at = root
    for i, word in enumerate(words):
        command = at.command.get_command(at, word) if isinstance(at.command, click.Group) else None
        if command is None:
            ctx.fail(f"No such command '{' '.join(words[: i + 1])}'. See vmkit help.")
        at = click.Context(command, info_name=word, parent=at)
    return at.get_help() + "\n"


def _overview() -> None:
    names = topics()
    width = max(len(t.name) for t in names)
    click.echo("Topics, for vmkit help TOPIC:\n")
    for topic in names:
        click.echo(f"  {topic.name:<{width}}  {topic.title}")
    click.echo(
        "\nvmkit --help lists the commands; vmkit help COMMAND explains one; vmkit help --man prints a manual page."
    )


def _unknown(ctx: click.Context, word: str, root: click.Context) -> None:
    import difflib

    known = [*(t.name for t in topics()), *root.command.list_commands(root)]  # type: ignore[attr-defined]
    near = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else "See vmkit help."
    ctx.fail(f"No topic or command '{word}'. {hint}")


def _print(text: str) -> None:
    """Through a pager where it would not fit on the terminal."""
    if sys.stdout.isatty() and text.count("\n") >= shutil.get_terminal_size().lines:
        click.echo_via_pager(text)
    else:
        click.echo(text, nl=False)
