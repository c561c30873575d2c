"""The recipe of a host image: templates/lab-KIND/recipe.yaml and its files, on top of those in templates/lab-nested."""

from __future__ import annotations

from vmkit.image.recipe import Recipe, parse_recipe
from vmkit.system.templates import template


def read_recipe(kind: str) -> Recipe:
    """The recipe of nested hosts of a kind.

    Raises:
        NotFoundError, EffectError: this installation's files are missing or damaged.
    """
    folder = template(f"lab-{kind}")
    return parse_recipe((folder / "recipe.yaml").read_text(), folder, template("lab-nested"))
