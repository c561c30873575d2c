"""The manual page vmkit(1), made from the commands themselves. Pure, but for the import of every command.

Format: man(7) of groff, https://man7.org/linux/man-pages/man7/groff_man.7.html.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from vmkit.cli.help import blocks, topics
from vmkit.cli.main import COMMANDS


def page(root: click.Context) -> str:
    """The whole page."""
    lines = [
        '.TH VMKIT 1 "" "vmkit" "User Commands"',
        ".SH NAME",
        r"vmkit \- create, move and hot\-fix virtual machines",
    ]
    lines += [".SH SYNOPSIS", r".B vmkit", r"[\fB\-c\fR \fIURI\fR] \fICOMMAND\fR [\fIARGUMENT\fR]..."]
    lines += [".SH DESCRIPTION", escaped(inspect.cleandoc(root.command.help or "")), ".SH OPTIONS", *_options(root)]
    lines.append(".SH COMMANDS")
    assert isinstance(root.command, click.Group)  # noqa: S101 - the overview
    for name in sorted(COMMANDS):
        command = root.command.get_command(root, name)
        assert command is not None  # noqa: S101 - it is in the table
        lines += _command(click.Context(command, info_name=name, parent=root))
    for topic in topics():
        lines += [f".SH {escaped(topic.name.upper())}", escaped(topic.title) + "."]
        for verbatim, text in blocks(topic.body):
            lines += _verbatim(text) if verbatim else [".PP", escaped(" ".join(text))]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that groff prints as it stands."""
    safe = (
        text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("^", r"\(ha").replace("~", r"\(ti")
    )
    return f"\\&{safe}" if safe.startswith(".") else safe


def _verbatim(lines: list[str]) -> list[str]:
    return [".PP", ".nf", *(escaped(line) or r"\&" for line in lines), ".fi"]


def _command(ctx: click.Context) -> Iterator[str]:
    usage = " ".join(ctx.command.collect_usage_pieces(ctx))
    yield f".SS {escaped(ctx.command_path)} {escaped(usage)}"
    for text in inspect.cleandoc(ctx.command.help or "").split("\n\n"):
        if text.startswith("\b\n"):
            yield from _verbatim(text.split("\n")[1:])
        else:
            yield from (".PP", escaped(" ".join(text.split())))
    yield from _options(ctx)
    if isinstance(ctx.command, click.Group):
        for name in ctx.command.list_commands(ctx):
            sub = ctx.command.get_command(ctx, name)
            if sub is not None and not sub.hidden:
                yield from _command(click.Context(sub, info_name=name, parent=ctx))


def _options(ctx: click.Context) -> Iterator[str]:
    for param in ctx.command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None and record[0] != "-h, --help":
            yield from (".TP", rf"\fB{escaped(record[0])}\fR", escaped(" ".join(record[1].split())))
