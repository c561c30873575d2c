"""Whether a patch makes sense as machine code of the build that it is for. Pure; x86-64.

Whole instructions, no branch into the middle of what is written, ENDBR64 kept, one place in the image only, the code
that the patch was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmkit.errors import RefusedError, SpecError
from vmkit.hotfix.build.code import Insn, decode
from vmkit.hotfix.codemap import CodeMap
from vmkit.hotfix.locate import find_all
from vmkit.hotfix.manifest import Patch
from vmkit.hotfix.verify import Site


@dataclass(frozen=True, slots=True)
class _Piece:
    """The instructions that one edit changes: [low, high) are whole ones of the old code."""

    site: Site
    low: int
    high: int
    old: tuple[Insn, ...]
    new: tuple[Insn, ...]

    @property
    def same_bounds(self) -> bool:
        """Whether every instruction begins where one began before."""
        return [i.address for i in self.old] == [i.address for i in self.new]


def check_code(patch: Patch, sites: Sequence[Site], code: CodeMap, what: str) -> None:
    """Return if the patch is sound code.

    Args:
        patch: the patch.
        sites: its edits, at link-time addresses (see verify.resolve, with a bias of 0).
        code: of the executable that runs.
        what: names the running copy, for messages.

    Raises:
        RefusedError: it is not, or it is for other code than what runs.
        SpecError: a range of `clear` is not in the code.
    """
    if patch.code_sha256 and patch.code_sha256 != code.digest:
        raise RefusedError(
            f"{what} has other code than what patch {patch.id} was made from, although the build id is the same",
            hint="make the patch from the file that runs: vmkit hotfix make --help",
        )
    for i, r in enumerate(patch.clear):
        if len(code.read(r.address, r.length)) != r.length:
            raise SpecError(f"{r} is not all in the code", path=f"clear[{i}]")
    pieces = [piece for site in sites if (piece := _piece(site, code)) is not None]
    for piece in pieces:
        _check_instructions(piece)
        if not patch.code_sha256:
            _check_unique(piece.site, code)
    for piece in pieces:
        _check_branches(piece, pieces, patch, code)


def _piece(site: Site, code: CodeMap) -> _Piece | None:
    """None for an edit behind the code, in its last page: nothing is there yet."""
    if not code.read(site.start, 1):
        if any(site.edit.overwritten.values) or not all(site.edit.overwritten.known):
            raise RefusedError(f"{site.path}: behind the code only zeros may be overwritten, each of them expected")
        return None
    bounds = code.function_at(site.start)
    if bounds is None:
        raise RefusedError(
            f"{site.path}: {site.start:#x} is in no function whose bounds are known, so it cannot be told which "
            "instructions are there"
        )
    start, end = bounds[0], code.next_function(site.start)
    if site.end > end:
        raise RefusedError(
            f"{site.path}: what is overwritten from {site.start:#x} reaches into the next function at {end:#x}",
            hint="make it an edit for each function",
        )
    before = code.read(start, end - start)
    if any(
        known and value != found
        for value, known, found in zip(
            site.edit.expected.values,
            site.edit.expected.known,
            code.read(site.address, len(site.edit.expected)),
            strict=False,
        )
    ):
        raise RefusedError(f"{site.path}: the file of this build does not hold what is expected at {site.address:#x}")
    after = before[: site.start - start] + site.edit.replacement + before[site.end - start :]
    old = decode(before, start)
    marks = sorted({i.address for i in old} | {end})
    low = max(m for m in marks if m <= site.start)
    high = min(m for m in marks if m >= site.end)
    new = decode(after[low - start : high - start], low)
    return _Piece(site, low, high, tuple(i for i in old if low <= i.address < high), tuple(new))


def _check_instructions(piece: _Piece) -> None:
    bad = next((i for i in piece.new if i.mnemonic == ".byte"), None)
    had = any(i.mnemonic == ".byte" for i in piece.old)
    if bad is not None and not had:
        raise RefusedError(
            f"{piece.site.path}: with the replacement, {bad.address:#x} holds no whole instruction: {bad.raw.hex(' ')}",
            hint="a replacement has to end where an instruction ends: fill it up with 90 (nop)",
        )
    kept = {i.address for i in piece.new if i.mnemonic == "endbr64"}
    lost = next((i for i in piece.old if i.mnemonic == "endbr64" and i.address not in kept), None)
    if lost is not None:
        raise RefusedError(
            f"{piece.site.path}: ENDBR64 at {lost.address:#x} is overwritten: an indirect call to it would fault where "
            "the CPU enforces branch tracking",
            hint="leave these four bytes, and begin behind them",
        )


def _check_unique(site: Site, code: CodeMap) -> None:
    found = [start + o for start, data in code.segments for o in find_all(site.edit.expected, data, 3)]
    if len(found) > 1:
        where = ", ".join(f"{a:#x}" for a in found)
        raise RefusedError(
            f"{site.path}: what is expected is in the code more than once: {where}",
            hint="expect more bytes around it, or say code_sha256, as make --old --new does",
        )


def _check_branches(piece: _Piece, pieces: Sequence[_Piece], patch: Patch, code: CodeMap) -> None:
    """No branch that stays may lead between the instructions that will be there, nor one of theirs between others."""
    if piece.same_bounds and [i.branch_target for i in piece.old] == [i.branch_target for i in piece.new]:
        return
    marks = {i.address for i in piece.new}
    bounds = code.function_at(piece.low) or (piece.low, piece.high)
    kept = decode(code.read(bounds[0], bounds[1] - bounds[0]), bounds[0])
    there = {i.address for i in kept if not any(p.low <= i.address < p.high for p in pieces)}
    there |= {i.address for p in pieces for i in p.new}
    wrong = next((i for i in piece.new if i.branch_target in range(*bounds) and i.branch_target not in there), None)
    if wrong is not None:
        raise RefusedError(
            f"{piece.site.path}: '{wrong.text}' at {wrong.address:#x} leads into the middle of an instruction"
        )
    if piece.same_bounds:
        return
    for source, target in code.branches_into(piece.low + 1, piece.high):
        if any(p.low <= source < p.high for p in pieces):
            continue  # it is overwritten itself
        if any(r.address <= source < r.address + r.length for r in patch.clear) and not (
            bounds[0] <= source < bounds[1]
        ):
            continue  # a part of the function that lies elsewhere, and is out of use once nothing runs in it
        within = bounds[0] <= source < bounds[1]
        if target not in marks or not within:
            raise RefusedError(
                f"{piece.site.path}: a branch at {source:#x} leads to {target:#x}, inside of what is overwritten",
                hint="overwrite the branch too, or begin at its target",
            )
