"""The recipe of the host image: templates/lab-kvm/recipe.yaml and the files beside it."""

from __future__ import annotations

from vmkit.image.recipe import Recipe, parse_recipe
from vmkit.system.templates import template


def read_recipe() -> Recipe:
    """The recipe of nested KVM hosts.

    Raises:
        NotFoundError, EffectError: this installation's files are missing or damaged.
    """
    folder = template("lab-kvm")
    return parse_recipe((folder / "recipe.yaml").read_text(), folder)
