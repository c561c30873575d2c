"""Making a patch from two builds: read them, see what differs, decide what goes in, write the edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmkit.errors import NotFoundError, RefusedError
from vmkit.hotfix.build.emit import UNPATCHABLE, Emitted, emit, room_for
from vmkit.hotfix.build.match import Difference, Kind, Pairing
from vmkit.hotfix.build.program import Named, read_program
from vmkit.hotfix.build.show import Side, side_by_side
from vmkit.hotfix.codemap import read_code
from vmkit.hotfix.manifest import Patch, parse, render
from vmkit.system.elf import read_binary
from vmkit.values import check_name, quoted


@dataclass(frozen=True, slots=True)
class Changed:
    """A function that differs. `old` and `new` are link addresses in hexadecimal ('': not there); sizes in bytes."""

    name: str
    file: str
    kind: str
    old: str
    old_size: int
    new: str
    new_size: int
    why: str
    lines: tuple[Side, ...] = ()


@dataclass(frozen=True, slots=True)
class DiffReport:
    """What two builds differ in.

    Attributes:
        old, new: build ids.
        paired: functions that are in both; `same` of them do the same.
        stripped: one of the builds has no symbols: functions were told by their bounds and their instructions.
        changed: the others, and those that only one build has.
    """

    old: str
    new: str
    paired: int
    same: int
    stripped: bool
    changed: tuple[Changed, ...]


@dataclass(frozen=True, slots=True)
class FromBuilds:
    """A patch that was made: itself, where each function goes, and what else differs and is not in it."""

    patch: Patch
    how: tuple[tuple[str, str], ...]
    left: tuple[str, ...]


def diff(old: Path, new: Path, functions: Sequence[str] = ()) -> DiffReport:
    """Compare two builds. With `functions`, only these are reported, with their assembly side by side.

    Raises:
        NotFoundError: no such file, or no function of that name differs.
        RefusedError: a file that is no ELF executable for x86-64.
    """
    pairing = Pairing(read_program(old), read_program(new))
    differences = pairing.differences()
    if functions:
        differences = _named(pairing, differences, functions)
    changed = tuple(_changed(pairing, d, lines=bool(functions)) for d in differences)
    stripped = pairing.old.stripped or pairing.new.stripped
    return DiffReport(
        *(pairing.old.build_id, pairing.new.build_id, len(pairing.pairs), len(pairing.equal), stripped, changed)
    )


def make(
    old: Path,
    new: Path,
    *,
    patch_id: str,
    title: str | None = None,
    cve: str = "",
    functions: Sequence[str] = (),
    out_of_line: bool = False,
) -> FromBuilds:
    """A patch that makes a running copy of `old` do what `new` does.

    Args:
        old: the executable that runs. It is only read.
        new: the one that it should do the same as.
        patch_id: name of the patch.
        title: one line; made from the functions' names if None.
        cve: CVE number, or ''.
        functions: only these; all that differ if empty. What they need of the new build goes with them.
        out_of_line: leave the old bodies, but for a jump, also where the new ones would fit.

    Raises:
        SpecError: the id, title or CVE number is not sound.
        NotFoundError: no such file; nothing differs; a function that does not differ.
        RefusedError: it cannot be done safely; the message has the reason.
    """
    check_name(patch_id, path="--id")
    digest = read_code(read_binary(old)).digest
    pairing = Pairing(read_program(old), read_program(new))
    if pairing.old.build_id == pairing.new.build_id:
        raise RefusedError(f"{old} and {new} are the same build {pairing.old.build_id[:12]}")
    if pairing.old.fixed and pairing.old.segments[0].address >> 47:
        raise RefusedError(
            f"{old} is no program that runs as a process: it is linked to {pairing.old.segments[0].address:#x}",
            hint="see what differs: vmkit hotfix diff --help",
        )
    differences = pairing.differences()
    if not differences:
        raise NotFoundError("no function of the two builds differs in what it does")
    chosen = _named(pairing, differences, functions) if functions else differences
    left = [d for d in differences if d not in chosen]
    _refuse(chosen, left, asked=bool(functions))
    # The cold part of a function goes with it, where it is needed.
    wanted: list[Named] = [d.new for d in chosen if d.new and d.kind is not Kind.NEW and not _cold(d)]
    if not wanted:
        raise RefusedError(f"{chosen[0].name} is in the new build only: nothing in the old one calls it")
    emitted: Emitted = emit(pairing, wanted, out_of_line=out_of_line, room=room_for(pairing.old, patch_id))
    names = ", ".join(f.name for f in wanted)
    shown = title or f"{old.name}: {names}"[:200]
    patch = Patch(
        *(patch_id, shown, cve, "qemu", (pairing.old.build_id,), emitted.edits, emitted.clear),
        code_sha256=digest,
        room=emitted.room,
    )
    return FromBuilds(parse(render(patch)), emitted.how, tuple(f"{d.name}: {d.kind.value}" for d in left))


def _named(pairing: Pairing, differences: Sequence[Difference], names: Sequence[str]) -> list[Difference]:
    """The differences of these names; NAME@FILE where several have one."""
    found = []
    for name in names:
        symbol, _, file = name.partition("@")
        matching = [
            d
            for d in differences
            if symbol in (d.old.name if d.old else "", d.new.name if d.new else "")
            and (not file or file in (d.old.file if d.old else "", d.new.file if d.new else ""))
        ]
        if not matching:
            known = any(f.name == symbol for f in (*pairing.old.functions, *pairing.new.functions))
            state = "does the same in both builds" if known else "is in neither build"
            raise NotFoundError(f"the function {quoted(symbol)} {state}", hint="vmkit hotfix diff lists what differs")
        if len(matching) > 1:
            files = ", ".join((d.old or d.new).file or "?" for d in matching)  # type: ignore[union-attr]
            raise RefusedError(f"{len(matching)} functions named {symbol} differ: {files}", hint=f"say {symbol}@FILE")
        found += matching
    return found


def _refuse(chosen: Sequence[Difference], left: Sequence[Difference], *, asked: bool) -> None:
    """Raise RefusedError if what is chosen is not a change that can be made by itself."""
    for d in chosen:
        if d.kind is Kind.LAYOUT or (d.kind is Kind.GONE and (asked or not _cold(d))):
            raise RefusedError(f"{d.name} cannot be patched: {UNPATCHABLE[d.kind]}", details=(d.why,))
    moved = [d for d in left if d.kind is Kind.LAYOUT]
    files = {d.old.file for d in chosen if d.old and d.old.file}
    if moved and any(d.old and d.old.file in files for d in moved):
        raise RefusedError(
            f"the layout of a data structure may have changed: {len(moved)} other functions differ in offsets from "
            f"pointers alone, {moved[0].name} of the same source file among them",
            details=(moved[0].why,),
        )
    beside = [d for d in left if d.old and d.new and d.old.file and d.old.file in files and not _cold(d)]
    if beside:
        names = ", ".join(d.name for d in beside[:6])
        raise RefusedError(
            f"{names} of the same source file differ too: what was chosen may be inlined there, or count on it",
            hint="name them with --function as well, or leave out --function for all",
        )


def _cold(d: Difference) -> bool:
    """The unlikely part of a function that the compiler split off: it goes with the function itself."""
    return ".cold" in d.name


def _changed(pairing: Pairing, d: Difference, *, lines: bool) -> Changed:
    one = d.old or d.new
    assert one is not None  # noqa: S101 - one of them is there
    shown = side_by_side(pairing, d) if lines else ()
    return Changed(
        *(d.name, one.file, d.kind.value),
        *((f"{d.old.address:#x}", d.old.size) if d.old else ("", 0)),
        *((f"{d.new.address:#x}", d.new.size) if d.new else ("", 0)),
        *(d.why, shown),
    )
