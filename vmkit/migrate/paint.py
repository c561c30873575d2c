"""Writing the picture of a transfer to a file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vmkit.errors import SpecError, UnsupportedError
from vmkit.migrate.replay import Recording


def check_picture(path: Path) -> None:
    """Raise if the file's name does not say what to write.

    Raises:
        SpecError: it ends neither in .html nor in .svg nor in .png.
        UnsupportedError: the library that draws is missing.
    """
    if path.suffix not in (".html", ".svg", ".png"):
        raise SpecError(
            f"{path} is named neither .html nor .svg nor .png", path="--report", hint="name it like run.svg"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError(
            "pictures are drawn by matplotlib, which is not installed",
            hint="install it: pip install 'vmkit[plot]', or: apt-get install python3-matplotlib",
        )


def picture(recording: Recording, path: Path) -> None:
    """Draw what a transfer went through, as the file's name says.

    Raises:
        SpecError, UnsupportedError: as `check_picture`.
        RefusedError: the file cannot be written.
    """
    from vmkit.migrate.timeline import draw, page, raster
    from vmkit.system.files import write_atomic

    check_picture(path)
    match path.suffix:
        case ".html":
            write_atomic(path, page(recording))
        case ".svg":
            write_atomic(path, draw(recording))
        case _:
            write_atomic(path, raster(recording))
