"""Pictures drawn by matplotlib (the extra `vmkit[plot]`): how they look here, and how they become files."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmkit.errors import SpecError, UnsupportedError
from vmkit.system.files import home

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, LINE, FIELD = "#22303c", "#6b7a88", "#c3ccd4", "#f8fafb"
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.facecolor": FIELD,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "vmkit",  # the same picture is the same file
}


def check_picture(path: Path, endings: Collection[str], option: str) -> None:
    """Raise if a picture cannot be written to a file of this name.

    Args:
        path: the file.
        endings: how its name may end: '.svg'.
        option: what it was given by.

    Raises:
        SpecError: its name does not say what to write.
        UnsupportedError: the library that draws is missing.
    """
    if path.suffix not in endings:
        raise SpecError(f"{path} is not named {' or '.join(endings)}", path=option, hint="name it like picture.svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError(
            "pictures are drawn by matplotlib, which is not installed",
            hint="install it: pip install 'vmkit[plot]', or: apt-get install python3-matplotlib",
        )


def as_svg(figure: Callable[[], Figure]) -> str:
    """What a function draws, as SVG; the function is called with the style of this module."""
    return _saved(figure, "svg", metadata={"Date": None}).decode()


def as_png(figure: Callable[[], Figure]) -> bytes:
    """The same as PNG, at twice the usual density."""
    return _saved(figure, "png", dpi=200)


def _saved(figure: Callable[[], Figure], kind: str, **how: Any) -> bytes:
    # Where it keeps its list of fonts, which takes a second to make; by itself it would be in the user's home.
    os.environ.setdefault("MPLCONFIGDIR", str(home() / "cache" / "matplotlib"))
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context(_STYLE):
        figure().savefig(file, format=kind, **how)
    return file.getvalue()
