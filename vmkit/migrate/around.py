"""What libvirt does not tell of the two hosts of a migration: their clocks, bridges, and pages of the target."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkit.errors import VmkitError

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host
    from vmkit.migrate.facts import GuestFacts

_LOOK_S: Final = 20.0
_PAGES: Final = (2 * 2**20, 2**30)


@dataclass(frozen=True, slots=True)
class Around:
    """What was seen.

    Attributes:
        apart: seconds that the target's clock is ahead of the source's; None where that could not be seen.
        apart_error: how far off that may be, seconds: what the looks took.
        bridges: bridges that the VM is on, each with whether the target has it; those that could not be looked for are
            left out.
        pages: of the target, where the VM's memory has to be huge pages: bytes of a page -> how many are free; None
            where it does not, or libvirt does not say.
    """

    apart: float | None = None
    apart_error: float = 0.0
    bridges: tuple[tuple[str, bool], ...] = ()
    pages: dict[int, int] | None = None


UNSEEN: Final = Around()


def look_around(source: Host, target: Host, guest: GuestFacts) -> Around:
    """Look by a shell of each host, where its URI leads to one, and by the target's libvirt."""
    there = _look(target.uri, guest.bridges)
    here = _look(source.uri, ()) if there else None
    pages = _free_pages(target, guest.hugepage_size) if guest.hugepages else None
    if there is None:
        return Around(pages=pages)
    apart = None if here is None else there.ahead - here.ahead
    error = 0.0 if here is None else (there.took + here.took) / 2
    found = tuple((b, b in there.bridges) for b in guest.bridges)
    return Around(apart, error, found, pages)


@dataclass(frozen=True, slots=True)
class _Seen:
    ahead: float
    took: float
    bridges: frozenset[str]


def _look(uri: str, bridges: Sequence[str]) -> _Seen | None:
    """A host's clock, in seconds ahead of this machine's, and which bridges it has."""
    from vmkit.system.shell import Shell

    script = "date +%s.%N\n" + "".join(
        f"test -d /sys/class/net/{shlex.quote(b)}/bridge && echo {shlex.quote(b)}\n" for b in bridges
    )
    begun = time.time()
    try:
        lines = Shell.of_uri(uri).run_script(script, timeout=_LOOK_S).stdout.splitlines()
        said = float(lines[0])
    except (VmkitError, ValueError, IndexError):
        return None
    ended = time.time()
    return _Seen(said - (begun + ended) / 2, ended - begun, frozenset(lines[1:]))


def _free_pages(host: Host, size: int) -> dict[int, int] | None:
    """Free huge pages of all nodes together. A size of 0 is the host's own choice: both usual ones are asked for."""
    from xml.etree import ElementTree as ET

    cells = ET.fromstring(host.capabilities()).findall("host/topology/cells/cell")  # noqa: S314 - libvirt's own answer
    total: dict[int, int] = {}
    for cell in cells:
        for wanted in (size,) if size else _PAGES:
            try:
                found = host.free_pages(int(cell.get("id", "0")), (wanted,))
            except VmkitError:  # a size that the host does not have
                continue
            total[wanted] = total.get(wanted, 0) + found.get(wanted, 0)
    return total if cells else None
