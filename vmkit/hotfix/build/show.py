"""Two versions of a function side by side. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from vmkit.hotfix.build.code import Insn
from vmkit.hotfix.build.match import Difference, Pairing
from vmkit.hotfix.build.program import Named, Program


@dataclass(frozen=True, slots=True)
class Side:
    """One line: `mark` is ' ' where both do the same, '<' old only, '>' new only, '|' one in place of the other."""

    mark: str
    old: str
    new: str


def side_by_side(pairing: Pairing, difference: Difference) -> tuple[Side, ...]:
    """The instructions of both, without filling; names stand where the code has addresses."""
    ours, theirs = _lines(pairing, pairing.old, difference.old), _lines(pairing, pairing.new, difference.new)
    matcher = difflib.SequenceMatcher(None, [t for _, t in ours], [t for _, t in theirs], autojunk=False)
    return tuple(_sides(matcher, ours, theirs))


def _lines(pairing: Pairing, program: Program, function: Named | None) -> list[tuple[Insn, str]]:
    if function is None:
        return []
    insns = [i for i in pairing.body(program, function).insns if not i.fills]
    return list(zip(insns, pairing.form(program, function), strict=True))


def _sides(
    matcher: difflib.SequenceMatcher[str], ours: list[tuple[Insn, str]], theirs: list[tuple[Insn, str]]
) -> Iterator[Side]:
    for tag, a, b, c, d in matcher.get_opcodes():
        left = [f"{i.address:x}  {text}" for i, text in ours[a:b]]
        right = [f"{i.address:x}  {text}" for i, text in theirs[c:d]]
        for n in range(max(len(left), len(right))):
            x, y = left[n] if n < len(left) else "", right[n] if n < len(right) else ""
            yield Side(" " if tag == "equal" else "|" if x and y else "<" if x else ">", x, y)
