"""The wording of errors: one line, no full stop, no blame, and a next step wherever there is one worth naming."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmkit import errors

ROOT = Path(__file__).parents[2]
KINDS = {n for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, errors.VmkitError)}
WHOLE_SENTENCE = {"SpecError", "CancelledError"}
"""A wrong field says by its path what to mend, and who cancelled knows what to do."""


@dataclass(frozen=True)
class Raised:
    """One place where an error is made."""

    where: str
    kind: str
    text: str
    hint: str | None
    plain: bool


def literal(node: ast.expr | None) -> str | None:
    """The text of a string or of the fixed parts of an f-string, {} for the rest; None for anything else."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (literal(left) or "{}") + (literal(right) or "{}")
        case ast.IfExp(body=body):
            return literal(body)
    return None


def raised() -> Iterator[Raised]:
    for file in sorted((ROOT / "vmkit").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args:
                named = {k.arg: k.value for k in node.keywords}
                yield Raised(
                    f"{file.relative_to(ROOT)}:{node.lineno}",
                    node.func.id,
                    literal(node.args[0]) or "{}",
                    literal(named["hint"]) or "{}" if "hint" in named else None,
                    not {"hint", None} & named.keys(),
                )


ALL = list(raised())


def test_there_is_something_to_read() -> None:
    assert len(ALL) > 400


@pytest.mark.parametrize(
    ("rule", "pattern"),
    [
        ("no full stop at the end", r"(?<!\.)\.\Z"),
        ("one line", r"\n"),
        ("no exclamation", r"!(?!=)"),
        (
            "no blame, no plea",
            r"(?i)\b(please|sorry|oops|invalid argument|illegal|bad|you must|you should|forbidden)\b",
        ),
        ("says what, not that", r"(?i)\A(error|failed|failure|warning|cannot)\Z|something went wrong|unknown error"),
        ("no doubled blank", r"\S  \S"),
        ("does not begin with a capital", r"\A(?!QEMU|KVM|TCG|IOMMU|ISO|NoCloud|[A-Z]{2,})[A-Z][a-z]"),
    ],
)
def test_messages(rule: str, pattern: str) -> None:
    wrong = [f"{r.where}: {rule}: {r.text}" for r in ALL if re.search(pattern, r.text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("rule", "pattern"), [("no full stop", r"(?<!\.)\.\Z"), ("one line", r"\n"), ("no plea", r"(?i)\bplease\b")]
)
def test_hints(rule: str, pattern: str) -> None:
    wrong = [f"{r.where}: {rule}: {r.hint}" for r in ALL if r.hint and re.search(pattern, r.hint)]
    assert not wrong, "\n".join(wrong)


def test_commands_in_hints_exist() -> None:
    import click

    from vmkit.cli.main import COMMANDS, cli

    prose = {
        "or",
        "on",
        "again",
        "that",
        "there",
        "needs",
        "changes",
        "made",
        "did",
        "where",
        "gives",
        "cannot",
        "itself",
    }
    wrong = []
    for found in ALL:
        for words in re.findall(r"\bvmkit ([a-z]+)(?: ([a-z-]+))?", found.hint or ""):
            if words[0] in prose:
                continue
            command = cli.get_command(click.Context(cli), words[0]) if words[0] in COMMANDS else None
            group = isinstance(command, click.Group) and not command.invoke_without_command
            if words[0] not in COMMANDS or (group and words[1] and words[1] not in getattr(command, "commands", {})):
                wrong.append(f"{found.where}: {found.hint}")
    assert not wrong, "\n".join(wrong)
