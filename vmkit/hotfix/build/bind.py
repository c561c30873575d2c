"""Where, in the old build, the things are that code of the new build refers to. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vmkit.errors import RefusedError
from vmkit.hotfix.build.code import Body, Ref, base_name, string_at
from vmkit.hotfix.build.match import Pairing
from vmkit.hotfix.build.program import Named, Program, Section

LEAST_SEARCHED: Final = 4
"""Constants shorter than this are carried along rather than looked for: any few bytes are somewhere."""


class NeedsBodyError(Exception):
    """A function of the new build has to be carried along, since the old one has nothing to call in its place."""

    def __init__(self, function: Named) -> None:
        super().__init__(function.name)
        self.function = function


@dataclass(frozen=True, slots=True)
class Carried:
    """Read-only data of the new build that goes with the new code.

    Attributes:
        address: where it is in the new build.
        data: its bytes.
        align: what its address has to be a multiple of.
        entries: of a jump table: the function and the offset in it of each.
        absolute: the table holds addresses, of 8 bytes each, and not offsets from itself, of 4 bytes each.
    """

    address: int
    data: bytes
    align: int
    entries: tuple[tuple[Named, int], ...] = ()
    absolute: bool = False


class Binder:
    """Binds references of the new build's code to the old build.

    Args:
        pairing: the two builds.
        placed: where bodies of the new build go; asked at each reference.
        carry: gives the address of data that has to be carried along.
    """

    def __init__(self, pairing: Pairing, placed: dict[Named, int], carry: Callable[[Carried], int]) -> None:
        self._pairing = pairing
        self._old, self._new = pairing.old, pairing.new
        self._placed = placed
        self._carry = carry
        self._plt = {name: at for at, name in self._old.plt.items()}
        self._slots = {name: at for at, name in self._old.slots.items()}

    def bind(self, body: Body, ref: Ref) -> int:
        """The address in the old build, or in what is placed, of what `ref` of a new body names.

        Raises:
            NeedsBodyError: a function has to be placed first.
            RefusedError: it cannot be bound, with the reason.
        """
        address, name = ref.target, body.function.name
        if address in self._new.plt:
            return self._import(self._plt, self._new.plt[address], name)
        if address in self._new.slots:
            return self._import(self._slots, self._new.slots[address], name)
        section = self._new.section_at(address)
        if section is None:
            raise RefusedError(f"{name} refers to {address:#x}, where the new build has nothing")
        if section.executable and (function := self._new.function_at(address)) is not None:
            return self._code(function, address - function.address, called=ref.kind == "code")
        if section.executable and section.name != ".text":
            raise RefusedError(f"{name} leads to {address:#x} in {section.name}, which belongs to no function")
        return self._data(body, ref, section)

    def _import(self, known: dict[str, int], wanted: str, name: str) -> int:
        if wanted not in known:
            raise RefusedError(
                f"{name} uses {wanted}, which the old build does not import",
                hint="the running process has no entry for it; this needs a restart with the new build",
            )
        return known[wanted]

    def _code(self, function: Named, offset: int, *, called: bool) -> int:
        partner = self._pairing.old_of.get(function)
        # The address of a function that is taken stays that of the old one: pointers to it are compared, and its
        # first bytes lead to the new body.
        if function in self._placed and (called or partner is None):
            return self._placed[function] + offset
        if partner is None or offset or self._leads_back(function):
            raise NeedsBodyError(function)
        return partner.address

    def _leads_back(self, function: Named) -> bool:
        """Whether it is a part of a function that is placed: the old one's would lead back into the old body."""
        body = self._pairing.body(self._new, function)
        for _, ref in body.refs():
            holder = self._new.function_at(ref.target) if ref.kind == "code" else None
            if holder in self._placed and holder is not None and ref.target != holder.address:
                return True
        return False

    def _data(self, body: Body, ref: Ref, section: Section) -> int:
        thing = self._new.object_at(ref.target)
        if thing is not None:
            return self._object(body, thing, section) + ref.target - thing.address
        readable = _constant(section)
        voted = self._pairing.votes.get(ref.target)
        if voted is not None and len(voted) == 1:
            (address,) = voted
            if not readable or self._holds_same(ref, address):
                return address
        if readable:
            return self._anonymous(body, ref)
        raise RefusedError(
            f"{body.function.name} uses {ref.target:#x} in {section.name} of the new build, and no function that both "
            "builds have in common tells what the old one has in its place",
            hint="it may be a new global variable; builds with symbols tell more",
        )

    def _object(self, body: Body, thing: Named, section: Section) -> int:
        name = body.function.name
        candidates = [o for o in self._old.objects if o.key == thing.key] or [
            o for o in self._old.objects if (o.file, base_name(o.name)) == (thing.file, base_name(thing.name))
        ]
        constant = _constant(section)
        data = self._new.read(thing.address, thing.size)
        pointers = any(thing.address <= p < thing.end for p in (*self._new.pointers, *self._new.slots))
        if constant and not pointers:
            same = [o for o in candidates if o.size == thing.size and self._old.read(o.address, o.size) == data]
            return same[0].address if same else self._carry(Carried(thing.address, data, 16))
        if not candidates:
            kind = "constant with pointers in it" if constant else "global variable"
            raise RefusedError(
                f"{name} uses {thing.name}, a {kind} that the old build does not have",
                hint="the running process has no place for it; this needs a restart with the new build",
            )
        if len(candidates) > 1:
            raise RefusedError(f"{name} uses {thing.name}; {len(candidates)} objects of the old build could be that")
        old = candidates[0]
        if old.size != thing.size:
            raise RefusedError(
                f"{name} uses {thing.name}, whose size changes from {old.size} to {thing.size} bytes: its data layout "
                "differs",
                hint="what the running process has there would be misread; this needs a restart with the new build",
            )
        if not pointers and self._old.read(old.address, old.size) != data:
            raise RefusedError(
                f"{name} uses {thing.name}, whose initial value differs; in a running process it has been set already"
            )
        return old.address

    def _holds_same(self, ref: Ref, address: int) -> bool:
        if ref.width:
            return self._old.read(address, ref.width) == self._new.read(ref.target, ref.width)
        text = string_at(self._new, ref.target)
        return text is not None and text == string_at(self._old, address)

    def _anonymous(self, body: Body, ref: Ref) -> int:
        """A string, a constant or a jump table, which no symbol names."""
        text = string_at(self._new, ref.target)
        if ref.width:
            data, align = self._new.read(ref.target, ref.width), ref.width
        elif entries := body.table(ref.target):
            if (there := self._same_table(body, entries)) is not None:
                return there
            for function, _ in entries:
                if function not in self._placed:
                    raise NeedsBodyError(function)
            size = body.table_entry(ref.target)
            return self._carry(Carried(ref.target, bytes(size * len(entries)), size, entries, size == 8))
        elif text is not None:
            data, align = self._new.read(ref.target, 4096).partition(b"\0")[0] + b"\0", 1
        else:
            raise RefusedError(
                f"{body.function.name} uses unnamed data at {ref.target:#x} of the new build, and how long it is "
                "cannot be told",
                hint="builds with symbols tell more",
            )
        if len(data) >= LEAST_SEARCHED:
            for start, held in _constants(self._old):
                at = held.find(data)
                while at >= 0 and (start + at) % align:
                    at = held.find(data, at + 1)
                if at >= 0:
                    return start + at
        return self._carry(Carried(ref.target, data, align))

    def _same_table(self, body: Body, entries: tuple[tuple[Named, int], ...]) -> int | None:
        """The old body's jump table, if it leads to the same places of a new body that lies where the old one does."""
        old = self._pairing.old_of.get(body.function)
        if old is None or self._placed.get(body.function) != old.address:
            return None
        before = self._pairing.body(self._old, old)
        wanted = [(body.function, o) for _, o in entries]
        if list(entries) != wanted:
            return None
        for _, ref in before.refs():
            if ref.kind == "data" and not ref.width and before.table(ref.target) == tuple((old, o) for _, o in wanted):
                return ref.target
        return None


def _constant(section: Section) -> bool:
    return not section.executable and (not section.writable or section.name.startswith(".rodata"))


def _constants(program: Program) -> Iterator[tuple[int, bytes]]:
    for section in program.sections:
        if section.name.startswith(".rodata"):
            yield section.address, section.data
