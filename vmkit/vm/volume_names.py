"""Names of a new VM's volumes, where a VM that was renamed, or put aside, still has those that it would get."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from vmkit.errors import NotFoundError
from vmkit.hypervisor.host import Host
from vmkit.vm.metadata import NAMESPACE, remembered_in

if TYPE_CHECKING:
    from vmkit.vm.design import Design


def with_free_volumes(host: Host, design: Design, *, keep: frozenset[str] = frozenset()) -> Design:
    """The design with other names for volumes that belong to another VM; `keep` are left as they are.

    A volume that belongs to nobody is not stepped around: it may be what is left of a disk that somebody wants.
    """
    from vmkit.image.place import POOL

    try:
        there = frozenset(host.pool(POOL).names())
    except NotFoundError:
        return design
    wanted = [v for v in design.volumes if v in there and v not in keep]
    if not wanted:
        return design
    owned = {v for d in host.domains() if (e := d.metadata(NAMESPACE)) and (m := remembered_in(e)) for v in m.volumes}
    taken = {*there, *design.volumes}
    names: dict[str, str] = {}
    for name in wanted:
        if name in owned:
            names[name] = _free(name, taken)
            taken.add(names[name])
    disks = tuple(replace(d, volume=names.get(d.volume, d.volume)) for d in design.disks)
    seed = replace(design.seed, volume=names.get(design.seed.volume, design.seed.volume)) if design.seed else None
    return replace(design, disks=disks, seed=seed)


def _free(name: str, taken: set[str]) -> str:
    path = PurePosixPath(name)
    return next(n for i in range(2, len(taken) + 3) if (n := f"{path.stem}-{i}{path.suffix}") not in taken)
