"""Which function of one build is which of the other, and which of them differ in what they do. Pure."""

from __future__ import annotations

import enum
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import Final

from vmkit.hotfix.build.code import Body, base_name
from vmkit.hotfix.build.program import Named, Program

_NUMBER = re.compile(r"(?<![\w@])-?(?:0x[0-9a-f]+|\d+)\b")
_PLAIN = re.compile(r"\[(r\w+)\]")
_MEMORY = re.compile(r"\[[^\]]*\]")


GONE: Final = "in the old build only: removed, renamed or inlined"


class Kind(enum.Enum):
    """What became of a function."""

    CHANGED = "changed"
    CONSTANTS = "constants"
    LAYOUT = "layout"
    NEW = "new"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Difference:
    """A function that is not the same in both builds. `old` or `new` is None where it is in one build only.

    Attributes:
        kind: CONSTANTS if nothing but numbers in instructions differs, LAYOUT if among those are offsets from a
            pointer: the function may be the same as before, over a structure whose members have moved.
        why: in words.
    """

    kind: Kind
    old: Named | None
    new: Named | None
    why: str

    @property
    def name(self) -> str:
        """Its symbol, the older one's if there are two."""
        one = self.old or self.new
        assert one is not None  # noqa: S101 - one of them is there
        return one.name


class Pairing:
    """Two builds, function by function.

    Attributes:
        old, new: the builds.
        pairs: (old, new) of every function that is in both.
        gone, added: those in one only.
    """

    def __init__(self, old: Program, new: Program) -> None:
        self.old = old
        self.new = new
        self._bodies: dict[tuple[bool, int], Body] = {}
        self._forms: dict[tuple[bool, int], tuple[str, ...]] = {}
        pairs = dict(_by_name(old.functions, new.functions))
        pairs |= self._by_form(pairs)
        self._without_symbols = old.stripped or new.stripped
        if self._without_symbols:
            self._follow_calls(pairs)
        pairs |= _by_neighbours(old.functions, new.functions, pairs, self._same_form)
        if self._without_symbols:
            self._follow_calls(pairs)
        self.pairs = sorted(pairs.items())
        self.new_of = pairs
        self.old_of = {n: o for o, n in self.pairs}
        self.gone = [f for f in old.functions if f not in pairs]
        self.added = [f for f in new.functions if f not in self.old_of]

    def body(self, program: Program, function: Named) -> Body:
        """The function decoded; kept."""
        key = program is self.old, function.address
        if key not in self._bodies:
            self._bodies[key] = Body(program, function)
        return self._bodies[key]

    def form(self, program: Program, function: Named) -> tuple[str, ...]:
        """Its form; kept."""
        key = program is self.old, function.address
        if key not in self._forms:
            self._forms[key] = self.body(program, function).form()
        return self._forms[key]

    @cached_property
    def equal(self) -> list[tuple[Named, Named]]:
        """Pairs of the same form."""
        return [(o, n) for o, n in self.pairs if self._same(o, n)]

    @cached_property
    def votes(self) -> dict[int, Counter[int]]:
        """For each address that equal functions of the new build name, what the old build has in its place."""
        found: dict[int, Counter[int]] = defaultdict(Counter)
        for old, new in self.equal:
            ours = [r for _, r in self.body(self.old, old).refs()]
            theirs = [r for _, r in self.body(self.new, new).refs()]
            if len(ours) == len(theirs):
                for a, b in zip(ours, theirs, strict=True):
                    found[b.target][a.target] += 1
        return found

    def differences(self) -> list[Difference]:
        """Every function that differs, by address in the old build, then those that are new."""
        equal = set(self.equal)
        found = [self._judge(o, n) for o, n in self.pairs if (o, n) not in equal]
        found += [
            Difference(Kind.GONE, f, None, "in the old build only: removed, renamed or inlined") for f in self.gone
        ]
        found.sort(key=lambda d: d.old.address if d.old else 0)
        found += [Difference(Kind.NEW, None, f, "in the new build only") for f in self.added]
        return found

    def _same(self, old: Named, new: Named) -> bool:
        a, b = self.old.read(old.address, old.size), self.new.read(new.address, new.size)
        if a == b and not _refers(a):
            return True
        if self.form(self.old, old) != self.form(self.new, new):
            return False
        # Without symbols, forms do not say which function is called.
        called = self._called(old, new) if self._without_symbols else []
        return all(self.new_of.get(f, g) == g and self.old_of.get(g, f) == f for f, g in called)

    def _judge(self, old: Named, new: Named) -> Difference:
        a, b = self.form(self.old, old), self.form(self.new, new)
        if a == b:
            return Difference(Kind.CHANGED, old, new, "the same instructions, but it calls other functions")
        if [_numberless(t) for t in a] == [_numberless(t) for t in b]:
            changed = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
            moved = [(x, y) for x, y in changed if _offsets(x) != _offsets(y)]
            kind, shown = (Kind.LAYOUT, moved[0]) if moved else (Kind.CONSTANTS, changed[0])
            what = "offsets from pointers" if moved else "numbers"
            why = f"{what} in {len(moved or changed)} of {len(a)} instructions: {shown[0]} -> {shown[1]}"
            return Difference(kind, old, new, why)
        same = sum(m.size for m in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
        calls = sorted({t for t in b if t.startswith("call")} ^ {t for t in a if t.startswith("call")})
        more = f"; calls: {', '.join(_signed(c, b) for c in calls[:4])}" if calls else ""
        return Difference(Kind.CHANGED, old, new, f"{len(a) - same} instructions went, {len(b) - same} came{more}")

    def _called(self, old: Named, new: Named) -> list[tuple[Named, Named]]:
        """Functions that the two call, or take the address of, at the same place of what they have in common."""
        ours = [i for i in self.body(self.old, old).insns if not i.fills]
        theirs = [i for i in self.body(self.new, new).insns if not i.fills]
        a, b = self.form(self.old, old), self.form(self.new, new)
        blocks = [(0, 0, len(a))] if a == b else SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
        found = []
        for i, j, length in blocks:
            for x, y in zip(ours[i : i + length], theirs[j : j + length], strict=True):
                left, right = self.body(self.old, old).ref(x), self.body(self.new, new).ref(y)
                if left is None or right is None:
                    continue
                f, g = self.old.function_at(left.target), self.new.function_at(right.target)
                if f and g and left.target == f.address and right.target == g.address:
                    found.append((f, g))
        return found

    def _follow_calls(self, pairs: dict[Named, Named]) -> None:
        """Add functions that pairs call at the same places, unless one says otherwise; those add theirs in turn."""
        fresh = list(pairs.items())
        votes: dict[Named, Counter[Named]] = defaultdict(Counter)
        while fresh:
            for old, new in fresh:
                for f, g in self._called(old, new):
                    votes[f][g] += 1
            taken = set(pairs.values())
            agreed = [(f, next(iter(c))) for f, c in votes.items() if f not in pairs and len(c) == 1]
            wanted = Counter(g for _, g in agreed)
            fresh = [(f, g) for f, g in agreed if g not in taken and wanted[g] == 1]
            pairs.update(fresh)

    def _same_form(self, old: Named, new: Named) -> bool:
        return self.form(self.old, old) == self.form(self.new, new)

    def _by_form(self, known: dict[Named, Named]) -> dict[Named, Named]:
        """Pairs of the rest whose forms are the same and, among the rest, in no other function. Short ones are left."""
        taken = set(known.values())
        ours = [f for f in self.old.functions if f not in known and f.size >= 16]
        theirs = [f for f in self.new.functions if f not in taken and f.size >= 16]
        if not ours or not theirs:
            return {}
        groups: dict[tuple[str, ...], tuple[list[Named], list[Named]]] = defaultdict(lambda: ([], []))
        for f in ours:
            groups[self.form(self.old, f)][0].append(f)
        for f in theirs:
            groups[self.form(self.new, f)][1].append(f)
        return {o[0]: n[0] for o, n in groups.values() if len(o) == len(n) == 1}


def _by_name(ours: Iterable[Named], theirs: Iterable[Named]) -> Iterator[tuple[Named, Named]]:
    """By symbol and source file; then by symbol without the numbers of clones, where that is still unambiguous."""
    left, right = list(ours), list(theirs)
    for key in (lambda f: f.key, lambda f: (f.file, base_name(f.name)), lambda f: base_name(f.name)):
        a, b = _unique(left, key), _unique(right, key)
        found = {a[k]: b[k] for k in a.keys() & b.keys()}
        yield from found.items()
        taken = set(found.values())
        left, right = [f for f in left if f not in found], [f for f in right if f not in taken]


def _unique(found: Iterable[Named], key: object) -> dict[object, Named]:
    groups: dict[object, list[Named]] = defaultdict(list)
    for f in found:
        if not f.name.startswith("fn_"):
            groups[key(f)].append(f)  # type: ignore[operator]
    return {k: v[0] for k, v in groups.items() if len(v) == 1}


def _by_neighbours(
    ours: tuple[Named, ...],
    theirs: tuple[Named, ...],
    known: dict[Named, Named],
    same_form: Callable[[Named, Named], bool],
) -> dict[Named, Named]:
    """Of those left between two pairs that follow each other in both builds: as many on both sides go in order.

    Where there are more than three, only those of the same form do.
    """
    position = {f: i for i, f in enumerate(theirs)}
    anchors = [(-1, -1), *((i, position[known[f]]) for i, f in enumerate(ours) if f in known), (len(ours), len(theirs))]
    found: dict[Named, Named] = {}
    for (a, b), (c, d) in itertools.pairwise(anchors):
        if b < d and c - a == d - b:
            pairs = zip(ours[a + 1 : c], theirs[b + 1 : d], strict=True)
            found |= {f: g for f, g in pairs if (c - a <= 4 and _alike(f, g)) or same_form(f, g)}
    return found


def _alike(old: Named, new: Named) -> bool:
    """Whether two of unknown names can be one function: neither has a name, and they are about as long."""
    return old.name.startswith("fn_") and new.name.startswith("fn_") and old.size <= 2 * new.size <= 4 * old.size + 64


def _refers(code: bytes) -> bool:
    """Whether there may be something relative in it: cheap, and right whenever it says no."""
    return len(code) >= 5


def _numberless(text: str) -> str:
    return _NUMBER.sub("#", _PLAIN.sub(r"[\1 + #]", text))


def _offsets(text: str) -> list[str]:
    """Memory operands that are relative to a pointer; those on the stack are the function's own affair."""
    return [m for m in _MEMORY.findall(text) if "rsp" not in m and "'" not in m and ":" not in m]


def _signed(call: str, new: tuple[str, ...]) -> str:
    return ("+" if call in new else "-") + call.removeprefix("call ")
