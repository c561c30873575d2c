"""The recipe of a Debian root file system: a recipe.yaml, and the programs in the folder beside it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vmkit.errors import EffectError
from vmkit.values import Bytes

_FORMAT: Final = 1
"""Raised when this code makes another image of the same recipe."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a root file system is made of.

    Attributes:
        suite: Debian's release, by its code name.
        size: of the root file system.
        packages: Debian packages.
        early: files that are there before the packages are configured; path in the image -> text.
        files: files that are laid over the tree afterwards.
        programs: the same, to be run.
        folders, links: further folders, and symbolic links by their path.
        enable, mask: units of systemd.
        remove: patterns of files that every machine makes for itself.
        run: shell lines for the end, in the root of the tree.
        key: changes with anything of the above.
    """

    suite: str
    size: Bytes
    packages: tuple[str, ...]
    early: dict[str, str]
    files: dict[str, str]
    programs: dict[str, str]
    folders: tuple[str, ...]
    links: dict[str, str]
    enable: tuple[str, ...]
    mask: tuple[str, ...]
    remove: tuple[str, ...]
    run: tuple[str, ...]
    key: str


def parse_recipe(text: str, folder: Path, base: Path | None = None) -> Recipe:
    """Read a recipe whose programs are in a folder.

    Args:
        text: of the recipe.
        folder: with its programs.
        base: folder of another recipe, which this one adds to; what both say of a file, this one decides.

    Raises:
        EffectError: it is damaged.
    """
    import yaml

    try:
        body: dict[str, Any] = yaml.safe_load(text)
        programs = {path: (folder / name).read_text() for path, name in body["programs"].items()}
        if base is not None:
            below: dict[str, Any] = yaml.safe_load((base / "recipe.yaml").read_text())
            programs |= {path: (base / name).read_text() for path, name in below["programs"].items()}
            body = _joined(below, body)
        digest = hashlib.sha256(repr((_FORMAT, body, sorted(programs.items()))).encode()).hexdigest()
        return Recipe(
            suite=body["suite"],
            size=Bytes.parse(body["size"]),
            packages=tuple(body["packages"]),
            early=body["early"],
            files=body["files"],
            programs=programs,
            folders=tuple(body["folders"]),
            links=body["links"],
            enable=tuple(body["enable"]),
            mask=tuple(body["mask"]),
            remove=tuple(body["remove"]),
            run=tuple(body.get("run", ())),
            key=digest[:12],
        )
    except (yaml.YAMLError, KeyError, TypeError, OSError) as e:
        raise EffectError(f"{folder}/recipe.yaml is damaged: {e}", hint="install vmkit again") from e


def _joined(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two recipes as one: lists one after the other, mappings merged."""
    found = dict(below)
    for key, value in above.items():
        if isinstance(value, list):
            found[key] = [*below.get(key, ()), *value]
        elif isinstance(value, dict):
            found[key] = {**below.get(key, {}), **value}
        else:
            found[key] = value
    return found
