"""Removing what labs of nested hosts keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vmkit.lab import cache
from vmkit.lab.cache import Cached
from vmkit.lab.nested.recipe import read_recipe
from vmkit.progress import Note, Reporter

KINDS: Final = ("kvm", "xen")
"""Kinds of labs whose hosts have an image."""


def prune(there: Sequence[Cached], everything: bool, reporter: Reporter) -> list[Cached]:
    """Remove what no lab stands on; returns what was removed. Half-made things that nobody makes any more go too."""
    cache.sweep_all()
    keys = frozenset(read_recipe(kind).key for kind in KINDS)
    gone = []
    for entry in there:
        if entry.used_by:
            reporter(Note(f"{entry.name} stays: the lab {', '.join(entry.used_by)} stands on it"))
        elif (everything or stale(entry, there, keys)) and cache.remove(entry):
            gone.append(entry)
    return gone


def stale(entry: Cached, there: Sequence[Cached], keys: frozenset[str]) -> bool:
    """Whether this version has no use for a thing: an image of another recipe, or a machine saved from one. Pure."""
    ours = {f"image-{key}" for key in keys}
    if entry.kind == "image":
        return entry.name not in ours
    if entry.kind == "booted":
        return not any(e.name in ours and e.created <= entry.created for e in there)
    return False
