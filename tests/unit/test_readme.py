"""What the README shows can be typed: every `vmkit` line in it parses, and the tables match the code."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import click
import pytest

from vmkit import errors
from vmkit.cli.main import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
SEPARATORS = {"|", "&&", "||", ">", ">>", "<", ";", "&"}


def shell_lines(text: str) -> list[str]:
    """Lines of the shell blocks, with continuation lines joined and here-documents left out."""
    found: list[str] = []
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL):
        block = re.sub(r"<<'(\w+)'\n.*?\n\1\n", "\n", block.replace("\\\n", " "), flags=re.DOTALL)
        found += [line.strip().removeprefix("$ ") for line in block.splitlines() if line.strip()]
    return found


def commands(line: str) -> list[list[str]]:
    """The `vmkit` commands of a line: also those in $( ), and those behind a pipe or &&."""
    inner = re.findall(r"\$\((.*)\)", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if word in SEPARATORS:
            parts.append([])
        else:
            parts[-1].append(word)
    own = [p[1:] for p in parts if p and p[0] == "vmkit"]
    return own + [c for text in inner for c in commands(text)]


def parse(argv: list[str]) -> None:
    """Parse as the command line does, down to the last subcommand; nothing is carried out."""
    command: click.Command = cli
    context = command.make_context("vmkit", list(argv))
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest:
            assert command.invoke_without_command, f"{context.command_path} needs a subcommand"
            return
        name, found, rest = command.resolve_command(context, rest)
        assert name is not None
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)


SHOWN = [
    pytest.param(argv, id=f"{document}: vmkit {' '.join(argv)}"[:90])
    for document in DOCUMENTS
    for line in shell_lines((ROOT / document).read_text())
    for argv in commands(line)
]


def test_there_is_something_to_check() -> None:
    assert len(SHOWN) > 20
    assert commands('a=$(vmkit -c "$h1" list -o json | python3 -c "x") && vmkit jobs') == [
        ["jobs"],
        ["-c", "$h1", "list", "-o", "json"],
    ]


@pytest.mark.parametrize("argv", SHOWN)
def test_a_line_of_the_documents_parses(argv: list[str]) -> None:
    with contextlib.suppress(click.exceptions.Exit):  # --help and --version print and end
        parse(argv)


@pytest.mark.parametrize("argv", [["lst"], ["list", "--no-such-option"], ["lab", "sideways"], ["migrate", "web1"]])
def test_a_wrong_line_would_be_seen(argv: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse(argv)


def test_scripts_that_are_shown_exist() -> None:
    for document in DOCUMENTS:
        for line in shell_lines((ROOT / document).read_text()):
            if match := re.match(r"(scripts/\S+)", line):
                assert (ROOT / match[1]).is_file(), line


def test_commands_named_in_the_text_exist() -> None:
    for document in DOCUMENTS:
        text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)
        for words in re.findall(r"`vmkit ([a-z]+)(?: ([a-z]+))?", text):
            command = cli.get_command(click.Context(cli), words[0])
            assert command is not None, words
            if isinstance(command, click.Group) and words[1]:
                assert command.get_command(click.Context(command), words[1]) is not None, words


def test_the_table_of_exit_codes_is_complete() -> None:
    section = (ROOT / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    shown = {int(n) for n in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.VmkitError)]
    assert {e.exit_code for e in kinds} <= shown


def test_the_list_of_sections_has_each_of_them() -> None:
    text = (ROOT / "README.md").read_text()
    head, _, rest = text.partition("\n## ")
    listed = re.findall(r"\[([^]]+)\]\(#([^)]+)\)", head)
    sections = re.findall(r"^## (.+)$", f"## {rest}", re.MULTILINE)
    assert [name for name, _ in listed] == sections
    for name, anchor in listed:
        assert anchor == re.sub(r"[^a-z0-9 _-]", "", name.lower()).replace(" ", "-")
