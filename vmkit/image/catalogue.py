"""The catalogue of images that vmkit knows how to get, and the other names that they go by. Pure but for `catalogue`.

An alias is only ever another name for an entry: an image in the store that is called so itself goes before it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vmkit.errors import EffectError, SpecError
from vmkit.values import check_name


@dataclass(frozen=True, slots=True)
class Known:
    """An entry of the catalogue.

    Attributes:
        name: what the image is called in the store.
        aliases: other names for it, as in 'debian:13'.
        about: one line for people.
        build: arguments of `vmkit image build`; '' for what is fetched.
        url: where it is fetched from; None for what is built.
        sums: URL of the publisher's file of checksums.
        signature: URL of its signature; None where the publisher gives none.
        keyring: path of the publisher's OpenPGP keys on this machine, from the Debian package `keyring_package`.
        user: whom cloud-init gives keys and password.
    """

    name: str
    aliases: tuple[str, ...]
    about: str
    build: str = ""
    url: str | None = None
    sums: str | None = None
    signature: str | None = None
    keyring: str | None = None
    keyring_package: str | None = None
    user: str | None = None

    @property
    def command(self) -> str:
        """The command that brings the image into the store."""
        return f"vmkit image import {self.name}" if self.url else f"vmkit image build {self.build}"


def parse(body: Any) -> dict[str, Known]:
    """Entries by name.

    Raises:
        EffectError: it is not a catalogue, or two entries share a name.
    """
    try:
        entries = [Known(check_name(name), **{**e, "aliases": tuple(e.get("aliases", ()))}) for name, e in body.items()]
    except (TypeError, AttributeError, SpecError) as e:
        raise EffectError(f"the catalogue of images is damaged: {e}", hint="install vmkit again") from e
    names = [n for e in entries for n in (e.name, *e.aliases)]
    if twice := {n for n in names if names.count(n) > 1}:
        raise EffectError(f"the catalogue of images names {', '.join(sorted(twice))} twice", hint="install vmkit again")
    return {e.name: e for e in entries}


@functools.cache
def catalogue() -> Mapping[str, Known]:
    """The catalogue of this installation, by name.

    Raises:
        NotFoundError, EffectError: it is missing or damaged.
    """
    import yaml

    from vmkit.system.templates import template

    try:
        return parse(yaml.safe_load(template("images.yaml").read_text()))
    except yaml.YAMLError as e:
        raise EffectError(f"the catalogue of images is damaged: {e}", hint="install vmkit again") from e


def find(name: str, entries: Mapping[str, Known]) -> Known | None:
    """The entry of this name or alias."""
    return entries.get(name) or next((e for e in entries.values() if name in e.aliases), None)


def canonical(name: str, there: Collection[str], entries: Mapping[str, Known]) -> str:
    """The name in the store that is meant: an image that is there goes before an alias."""
    if name in there:
        return name
    known = find(name, entries)
    return known.name if known else name
