"""Edits that bring functions of the new build into a running copy of the old one. Pure.

A new body that fits goes where the old one is. One that does not goes into free bytes at the end of the code's last
page (see Program.cave), and the first bytes of the old one become a jump to it. New functions and constants go there as
well. Where these bytes are too few, the process has to map memory for them (see `room_for`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from vmkit.errors import RefusedError
from vmkit.hotfix.build.bind import Binder, Carried, NeedsBodyError
from vmkit.hotfix.build.code import Body, Insn, decode, field_at, fragment_of
from vmkit.hotfix.build.match import Kind, Pairing
from vmkit.hotfix.build.program import Named, Program
from vmkit.hotfix.manifest import EDIT_LIMIT, LENGTH_LIMIT, PAGE, Edit, Pattern, Range

JUMP: Final = 5
"""Bytes of `jmp rel32`."""
ROOM: Final = (EDIT_LIMIT - 16) * LENGTH_LIMIT
"""Most bytes of new code: the edits of a patch hold no more."""
FRONT: Final = 64
FARTHEST: Final = 600 << 20
"""Bytes below a position-independent executable: within reach of all of it."""
LEAST_ADDRESS: Final = 0x20000
"""Below that the kernel maps nothing for a process (vm.mmap_min_addr)."""
ENDBR64: Final = bytes.fromhex("f30f1efa")
CONTEXT: Final = 64
"""Bytes around a change that are expected too, within the function."""


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a patch consists of.

    Attributes:
        edits: by order of writing: new code before the jumps to it.
        clear: ranges that no thread may stand in or return to.
        how: for each function of the new build, in words, where it goes.
        room: memory that the process has to map for new code; None if it needs none.
    """

    edits: tuple[Edit, ...]
    clear: tuple[Range, ...]
    how: tuple[tuple[str, str], ...]
    room: Range | None = None


class _NoRoomError(RefusedError):
    """What has to go outside of the old code does not fit there."""


@dataclass
class _Cave:
    """Free executable bytes, handed out from the start."""

    base: int
    size: int
    used: int = 0
    carried: dict[int, tuple[int, Carried]] = field(default_factory=dict)

    def take(self, length: int, align: int, what: str) -> int:
        start = (self.base + self.used + align - 1) // align * align
        if start + length > self.base + self.size:
            raise _NoRoomError(
                f"no room for {what}: {start + length - self.base} bytes are needed outside of the old code, and "
                f"there is room for {self.size}"
            )
        self.used = start + length - self.base
        return start

    def carry(self, data: Carried) -> int:
        if data.address not in self.carried:
            self.carried[data.address] = (self.take(len(data.data), data.align, "constants of the new code"), data)
        return self.carried[data.address][0]


def room_for(old: Program, seed: str) -> Range | None:
    """Where a running copy of the old build has nothing mapped, for as much new code as a patch can hold.

    That is below the executable: what the kernel maps for a program is above it (ELF_ET_DYN_BASE, mmap_base and brk in
    Linux's fs/binfmt_elf.c), and the heap grows upwards. The place depends on `seed`, so that two patches have two.
    None if there are too few addresses: in a program that is linked to low ones.
    """
    lowest = min(s.address for s in old.segments) & -PAGE
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:2], "little")
    if not old.fixed:
        return Range(lowest - (FARTHEST - (number % 512 << 20)), ROOM)
    slots = (lowest - LEAST_ADDRESS) // ROOM
    return Range(LEAST_ADDRESS + number % slots * ROOM, ROOM) if slots > 0 else None


def emit(pairing: Pairing, chosen: Iterable[Named], *, out_of_line: bool = False, room: Range | None = None) -> Emitted:
    """Edits for these functions of the new build, which the old one has too, and all that they need.

    Args:
        pairing: the two builds.
        chosen: functions of the new build.
        out_of_line: leave old bodies alone, but for the jump, also where the new one would fit.
        room: memory that the process could map, where the old build itself has not enough to spare.

    Raises:
        RefusedError: it cannot be done safely, with the reason.
    """
    chosen = frozenset(chosen)
    try:
        return _emit(pairing, chosen, out_of_line, *pairing.old.cave())
    except _NoRoomError:
        if room is None:
            raise
    # A word below the new code is no return address into it: what is read before a span has to be there.
    made = _emit(pairing, chosen, out_of_line, room.address + FRONT, room.length - FRONT)
    end = max(e.address + len(e.expected) for e in made.edits if e.address is not None and e.address in _of(room))
    return replace(made, room=Range(room.address, (end - room.address + PAGE - 1) & -PAGE))


def _of(room: Range) -> range:
    return range(room.address, room.address + room.length)


def _emit(pairing: Pairing, chosen: frozenset[Named], out_of_line: bool, base: int, size: int) -> Emitted:
    bodies = {f: pairing.body(pairing.new, f) for f in sorted(chosen)}
    for _ in range(256):
        cave = _Cave(base, size)
        placed = _place(pairing, bodies, chosen, cave, out_of_line)
        try:
            binder = Binder(pairing, placed, cave.carry)
            code = {f: relocate(body, placed[f], binder) for f, body in bodies.items()}
        except NeedsBodyError as e:
            bodies[e.function] = pairing.body(pairing.new, e.function)
            continue
        return _edits(pairing, bodies, chosen, placed, code, cave)
    raise RefusedError("more than 256 functions would have to be carried along")


def _place(
    pairing: Pairing, bodies: dict[Named, Body], chosen: frozenset[Named], cave: _Cave, out_of_line: bool
) -> dict[Named, int]:
    """Only what was chosen goes in place: the old version of what is carried along may be in use by old bodies."""
    placed = {}
    for function, body in bodies.items():
        old = pairing.old_of.get(function)
        if (
            old is not None
            and function in chosen
            and not out_of_line
            and len(body.raw) <= min(pairing.old.room(old), LENGTH_LIMIT)
        ):
            placed[function] = old.address
        else:
            placed[function] = cave.take(len(body.raw), 16, function.name)
    return placed


def relocate(body: Body, address: int, binder: Binder) -> bytes:
    """The bytes of a new body for `address`, with its references bound.

    Raises:
        NeedsBodyError, RefusedError: see Binder.bind; or something is out of reach.
    """
    code = bytearray(body.raw)
    start = body.function.address
    for insn, ref in body.refs():
        target = binder.bind(body, ref)
        at, size = _field(body, insn, ref.kind)
        value = target if ref.kind == "absolute" else target - (address + insn.end - start)
        limit = 1 << (8 * size - 1)
        if not -limit <= value < (2 * limit if ref.kind == "absolute" else limit):
            raise RefusedError(
                f"{body.function.name}: '{insn.text}' cannot reach {target:#x} from {address + insn.address - start:#x}"
            )
        where = insn.address - start + at
        code[where : where + size] = (value % (2 * limit)).to_bytes(size, "little")
    return bytes(code)


def _field(body: Body, insn: Insn, kind: str) -> tuple[int, int]:
    try:
        return field_at(insn, kind)
    except ValueError as e:
        raise RefusedError(f"{body.function.name}: '{insn.text}' holds an address that cannot be replaced") from e


def _edits(
    pairing: Pairing,
    bodies: dict[Named, Body],
    chosen: frozenset[Named],
    placed: dict[Named, int],
    code: dict[Named, bytes],
    cave: _Cave,
) -> Emitted:
    edits: list[Edit] = []
    jumps: list[Edit] = []
    clear: list[Range] = []
    how = []
    for function in bodies:
        old = pairing.old_of.get(function)
        if old is not None and placed[function] == old.address:
            edit, whole = _in_place(pairing, old, code[function])
            if edit is not None:
                edits.append(edit)
            clear += _out_of_use(pairing, old) if whole else []
            how.append((function.name, f"in place at {old.address:#x}"))
            continue
        size = len(code[function])
        if old is not None and function in chosen:
            jumps.append(_jump(pairing, old, placed[function]))
            how.append((function.name, f"{size} bytes at {placed[function]:#x}, {old.address:#x} jumps there"))
        else:
            how.append((function.name, f"{size} bytes at {placed[function]:#x}, for the new code alone"))
    if cave.used:
        edits += _fill(cave, placed, code)
    return Emitted((*edits, *jumps), tuple(clear), tuple(how))


def _out_of_use(pairing: Pairing, old: Named) -> list[Range]:
    """The old body, and those parts of it that the compiler moved elsewhere: they lead back into it."""
    found = {old}
    for _, ref in pairing.body(pairing.old, old).refs():
        part = pairing.old.function_at(ref.target) if ref.kind == "code" else None
        if part is not None and fragment_of(pairing.old, part, old):
            found.add(part)
    return [Range(f.address, f.size) for f in sorted(found)]


def _in_place(pairing: Pairing, old: Named, code: bytes) -> tuple[Edit | None, bool]:
    """The edit (None if there is nothing to change), and whether no thread may be anywhere in the function.

    That is so unless each instruction stays where it is and as long as it is, with another number in it.
    """
    length = max(old.size, len(code))
    before = pairing.old.read(old.address, length)
    after = code + b"\xcc" * (length - len(code))
    ours, theirs = decode(before, old.address), decode(after, old.address)
    differ = [i for i in range(length) if before[i] != after[i]]
    if not differ:
        return None, False
    same = [(i.address, i.mnemonic) for i in ours] == [(i.address, i.mnemonic) for i in theirs]
    common = {i.address - old.address for i in ours} & {i.address - old.address for i in theirs} | {0, length}
    begin = max(c for c in common if c <= differ[0])
    end = min(c for c in common if c > differ[-1])
    if end - begin > LENGTH_LIMIT:
        raise RefusedError(f"{end - begin} bytes of {old.name} change; an edit has at most {LENGTH_LIMIT}")
    low = max(0, begin - CONTEXT, end - LENGTH_LIMIT)
    high = min(length, end + CONTEXT, low + LENGTH_LIMIT)
    expected = Pattern.of(before[low:high])
    return Edit(old.address + low, "", 0, expected, begin - low, after[begin:end]), not same


def _jump(pairing: Pairing, old: Named, target: int) -> Edit:
    """The first instructions of the old function become a jump; ENDBR64 stays."""
    room = pairing.old.room(old)
    before = pairing.old.read(old.address, room)
    skip = len(ENDBR64) if before.startswith(ENDBR64) else 0
    if room - skip < JUMP:
        raise RefusedError(f"no room in {old.name} for a jump: it has {old.size} bytes")
    insns = decode(before, old.address)
    end = next((i.end for i in insns if i.end - old.address >= skip + JUMP), old.address + room)
    start = old.address + skip
    if any(i.branch_target is not None and start <= i.branch_target < end <= i.address for i in insns):
        raise RefusedError(
            f"a loop of {old.name} leads back to its first bytes, where the jump to the new code has to be",
            hint="make it in place: leave out --out-of-line" if old.size >= 16 else None,
        )
    jump = b"\xe9" + (target - start - JUMP).to_bytes(4, "little", signed=True)
    replacement = jump.ljust(end - start, b"\xcc")
    expected = Pattern.of(before[: min(room, end - old.address + CONTEXT)])
    return Edit(old.address, "", 0, expected, skip, replacement)


def _fill(cave: _Cave, placed: dict[Named, int], code: dict[Named, bytes]) -> list[Edit]:
    """New code and constants, in pieces of LENGTH_LIMIT bytes."""
    content = bytearray(cave.used)
    for function, address in placed.items():
        if cave.base <= address < cave.base + cave.used:
            content[address - cave.base : address - cave.base + len(code[function])] = code[function]
    for address, data in cave.carried.values():
        content[address - cave.base : address - cave.base + len(data.data)] = _filled(address, data, placed)
    pieces = []
    for at in range(0, len(content), LENGTH_LIMIT):
        piece = bytes(content[at : at + LENGTH_LIMIT])
        if any(piece):
            pieces.append(Edit(cave.base + at, "", 0, Pattern.of(bytes(len(piece))), 0, piece))
    return pieces


def _filled(address: int, data: Carried, placed: dict[Named, int]) -> bytes:
    base, size = (0, 8) if data.absolute else (address, 4)
    entries = ((placed[f] + offset - base).to_bytes(size, "little", signed=True) for f, offset in data.entries)
    return b"".join(entries) or data.data


UNPATCHABLE: Final = {
    Kind.LAYOUT: "offsets from pointers differ, so the layout of a data structure may have changed",
    Kind.GONE: "the new build does not have it (removed, or inlined into its callers)",
    Kind.NEW: "the old build does not have it: it is carried along where a changed function needs it",
}
