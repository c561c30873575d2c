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
NEXT_STEP = {"NotFoundError", "ConflictError", "UnsupportedError", "UnreachableError"}
"""Nothing was touched, and something is in the way: the user wants to know how to get past it."""
REVIEWED = {
    "vmkit/hypervisor/dirty.py": "predictions do without what cannot be measured, and say so",
    "vmkit/hypervisor/errors.py": "the hint is added where the error is given out, by what libvirt said",
    "vmkit/hypervisor/migration.py": "says what libvirt said; whoever asked takes another way",
    "vmkit/system/lines.py": "only labs of nested hosts talk so; they add the machine's last lines",
    "vmkit/system/procmem.py": "a process that has ended, in the midst of a hot-fix, which says what is left",
    "vmkit/system/ptrace.py": "likewise",
}
"""Files whose errors of these kinds need no hint where they are made, and why."""
OTHERWISE = ("vmkit/bench/", "vmkit/hotfix/", "vmkit/migrate/", "vmkit/vm/clone/")
"""Folders that are not held to it: much of what they refuse is the finding of an analysis, which stands for itself."""


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


def test_what_is_in_the_way_comes_with_a_next_step() -> None:
    without = [r for r in ALL if r.kind in NEXT_STEP and r.plain and not r.where.startswith(OTHERWISE)]
    files = {r.where.partition(":")[0] for r in without}
    assert not [f"{r.where}: {r.text}" for r in without if r.where.partition(":")[0] not in REVIEWED]
    assert REVIEWED.keys() <= files, "an entry that is not needed any more"


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
