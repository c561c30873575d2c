"""Writing the picture of a transfer to a file."""

from __future__ import annotations

from pathlib import Path

from vmkit import plotting
from vmkit.migrate.replay import Recording


def check_picture(path: Path) -> None:
    """Raise if it cannot be written.

    Raises:
        SpecError: its name ends neither in .html nor in .svg nor in .png.
        UnsupportedError: the library that draws is missing.
    """
    plotting.check_picture(path, (".html", ".svg", ".png"), "--report")


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
