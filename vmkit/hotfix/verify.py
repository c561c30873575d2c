"""What may be written, decided from values alone: the patch, the headers of a binary, and bytes that were read.

Nothing here touches a process. Whether the replacement makes sense as machine code is for vmkit.hotfix.soundness.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from vmkit.errors import RefusedError, SpecError
from vmkit.hotfix.manifest import ADDRESS_LIMIT, LENGTH_LIMIT, Edit, Patch
from vmkit.system.elf import Binary

PAGE: Final = 4096

Read = Callable[[int, int], bytes]
"""Reads (address, length) of an image's memory."""


class State(enum.Enum):
    """How a range of memory, or a whole image, stands to a patch."""

    ORIGINAL = "original"
    REPLACED = "replaced"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Site:
    """An edit of one running image: `address` is where `edit.expected` begins in its memory; `path` names the edit."""

    edit: Edit
    address: int
    path: str

    @property
    def start(self) -> int:
        """First byte that is overwritten."""
        return self.address + self.edit.offset

    @property
    def end(self) -> int:
        """One past the last byte that is overwritten."""
        return self.start + len(self.edit.replacement)


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes of one image that change: at `address`, from `old` to `new`. Both have the same length."""

    address: int
    old: bytes
    new: bytes

    @property
    def reversed(self) -> Write:
        """The same, backwards."""
        return Write(self.address, self.new, self.old)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of one image's code."""

    address: int
    length: int

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.address + self.length


@dataclass(frozen=True, slots=True)
class Page:
    """A page of memory that the writes touch, whole: as it was when it was judged, and as it has to be afterwards."""

    address: int
    before: bytes
    after: bytes


def check_patch(patch: Patch) -> Patch:
    """Return the patch if it is sound in itself.

    Raises:
        SpecError: an edit reaches out of its `expected`, expects nothing, changes nothing, or overlaps another.
    """
    for i, edit in enumerate(patch.edits):
        path = f"edits[{i}]"
        length, room = len(edit.replacement), len(edit.expected)
        if edit.offset < 0 or edit.offset >= room:
            raise SpecError(f"{edit.offset} is outside of the {room} expected bytes", path=f"{path}.offset")
        if edit.offset + length > room:
            raise SpecError(
                f"{length} bytes at offset {edit.offset} reach beyond the {room} expected bytes",
                path=f"{path}.replacement",
                hint="expected has to cover every byte that is overwritten",
            )
        if not any(edit.overwritten.known):
            raise SpecError("all overwritten bytes are wildcards", path=f"{path}.expected", hint="say what is replaced")
        if edit.overwritten.matches(edit.replacement):
            raise SpecError(
                "the replacement is what is expected: before and after cannot be told apart", path=f"{path}.replacement"
            )
    _check_overlap(
        [(e.address, len(e.expected), f"edits[{i}]") for i, e in enumerate(patch.edits) if e.address is not None]
    )
    return patch


def _check_overlap(ranges: Sequence[tuple[int, int, str]]) -> None:
    """Contexts count too: one edit's context must not change because another was written."""
    ordered = sorted(ranges)
    for (start, length, first), (following, _, second) in itertools.pairwise(ordered):
        if following < start + length:
            raise SpecError(f"its expected bytes overlap those of {first}", path=second, hint="make them one edit")


def resolve(patch: Patch, binary: Binary, bias: int, what: str) -> tuple[Site, ...]:
    """Where the edits are in a running copy of `binary` that was loaded `bias` bytes above its link addresses.

    `what` names the copy in messages.

    Raises:
        RefusedError: a build that the patch is not for, or a symbol it lacks.
        SpecError: an edit is not wholly in code, or two overlap.
    """
    check_build(patch, binary.build_id, what)
    sites = []
    for i, edit in enumerate(patch.edits):
        path = f"edits[{i}]"
        base = edit.address if edit.address is not None else binary.symbol(edit.symbol) + edit.symbol_offset
        length = len(edit.expected)
        if _in_room(patch, binary, edit, base, path):
            pass
        elif binary.code_at(base, length) is None and binary.tail_at(base, length) is None:
            raise SpecError(
                f"{base:#x} and the {len(edit.expected)} bytes from there are not all in the code of build "
                f"{binary.build_id[:12]}",
                path=f"{path}.{'symbol' if edit.address is None else 'address'}",
                hint="give the address as readelf and objdump print it, not one of a running process",
            )
        sites.append(Site(edit, base + bias, path))
    _check_overlap([(s.address, len(s.edit.expected), s.path) for s in sites])
    if any(s.address + LENGTH_LIMIT >= ADDRESS_LIMIT for s in sites):
        raise SpecError("reaches beyond the user addresses", path="edits")
    return tuple(sites)


def _in_room(patch: Patch, binary: Binary, edit: Edit, base: int, path: str) -> bool:
    """Whether an edit is in memory that the process is to map for it, all of which has to be free and zeros."""
    room = patch.room
    if room is None or not room.address <= base < room.address + room.length:
        return False
    if any(s.address < room.address + room.length and s.address + s.size > room.address for s in binary.segments):
        raise SpecError(f"{room} overlaps what build {binary.build_id[:12]} loads", path="room")
    if base + len(edit.expected) > room.address + room.length or edit.expected.concrete != bytes(len(edit.expected)):
        raise SpecError("in new memory only zeros can be expected, and all within it", path=f"{path}.expected")
    return True


def check_build(patch: Patch, build_id: str, what: str) -> None:
    """Raise RefusedError if the patch is not for this build."""
    if build_id not in patch.build_ids:
        wanted = " or ".join(b[:12] for b in patch.build_ids[:4])
        raise RefusedError(
            f"{what} is build {build_id[:12]}; patch {patch.id} is for {wanted}",
            hint="make the patch for that build: vmkit hotfix make --help",
        )


def state_of(site: Site, data: bytes) -> State:
    """How the bytes at `site.address` (as many as are expected) stand to the edit."""
    edit = site.edit
    if edit.expected.matches(data):
        return State.ORIGINAL
    end = edit.offset + len(edit.replacement)
    context = (
        edit.expected.part(0, edit.offset).matches(data[: edit.offset])
        and edit.expected.part(end, LENGTH_LIMIT).matches(data[end:])
        and len(data) == len(edit.expected)
    )
    return State.REPLACED if context and data[edit.offset : end] == edit.replacement else State.OTHER


def judge(sites: Sequence[Site], read: Read) -> tuple[State, str]:
    """The state of a whole image, and for OTHER what was found where ('' else).

    An image is ORIGINAL or REPLACED only if it is that at every site.
    """
    states = {}
    for site in sites:
        data = read(site.address, len(site.edit.expected))
        state = state_of(site, data)
        if state is State.OTHER:
            at, wanted, got = _difference(site, data)
            return state, f"{site.path}: {at:#x} holds {got}, expected {wanted}"
        states[site.path] = state
    kinds = set(states.values())
    if len(kinds) == 1:
        return kinds.pop(), ""
    done = [path for path, state in states.items() if state is State.REPLACED]
    return State.OTHER, f"only {', '.join(done)} of {len(sites)} edits is there"


def _difference(site: Site, data: bytes) -> tuple[int, str, str]:
    """Address of the first byte that is not as expected, and from there up to 8 bytes as expected and as found."""
    edit = site.edit
    i = next(
        (
            n
            for n, (v, k, d) in enumerate(zip(edit.expected.values, edit.expected.known, data, strict=True))
            if k and v != d
        ),
        0,
    )
    # In a site that was patched, the first difference is the replacement itself: show what is wrong with the rest.
    end = edit.offset + len(edit.replacement)
    if data[edit.offset : end] == edit.replacement and edit.offset <= i < end:
        i = next((n for n in range(end, len(data)) if edit.expected.known[n] and edit.expected.values[n] != data[n]), i)
    return site.address + i, str(edit.expected.part(i, 8)), data[i : i + 8].hex(" ")


def writes_for(sites: Sequence[Site], read: Read) -> tuple[Write, ...]:
    """What applying changes: the bytes that are at each site now, and the replacement."""
    return tuple(Write(s.start, read(s.start, s.end - s.start), s.edit.replacement) for s in sites)


def writes_back(sites: Sequence[Site], recorded: Sequence[Write]) -> tuple[Write, ...] | None:
    """What reverting changes: each replacement back to what the undo record has, else to what the patch expects.

    None if the record has nothing for a site whose overwritten bytes hold wildcards.
    """
    known = {(w.address, w.new): w.old for w in recorded}
    back = []
    for site in sites:
        old = known.get((site.start, site.edit.replacement)) or site.edit.overwritten.concrete
        if old is None or not site.edit.overwritten.matches(old):
            return None
        back.append(Write(site.start, site.edit.replacement, old))
    return tuple(back)


def merge(writes: Sequence[Write], read: Read) -> tuple[Page, ...]:
    """The pages that the writes touch, before and after; a write that straddles a boundary is in both pages."""
    bases = sorted({b for w in writes for b in range(w.address & -PAGE, w.address + len(w.old), PAGE)})
    pages = []
    for base in bases:
        before = read(base, PAGE)
        after = bytearray(before)
        for write in writes:
            low, high = max(base, write.address), min(base + PAGE, write.address + len(write.new))
            if low < high:
                after[low - base : high - base] = write.new[low - write.address : high - write.address]
        pages.append(Page(base, before, bytes(after)))
    return tuple(pages)


def spans_of(writes: Sequence[Write], clear: Sequence[Span] = ()) -> tuple[Span, ...]:
    """Where no thread may be while these writes are made."""
    return (*(Span(w.address, len(w.old)) for w in writes), *clear)


def inside(pointers: dict[int, int], spans: Sequence[Span]) -> dict[int, int]:
    """Those threads whose instruction pointer stands in one of the spans."""
    return {tid: ip for tid, ip in pointers.items() if any(ip in s for s in spans)}
