"""Writing the picture of a transfer to a file."""

from __future__ import annotations

from pathlib import Path

from vmkit.errors import SpecError
from vmkit.migrate.replay import Recording


def check_picture(path: Path) -> None:
    """Raise if the file's name does not say what to write.

    Raises:
        SpecError: it ends neither in .html nor in .svg nor in .png.
        UnsupportedError: the program that makes a PNG is missing.
    """
    from vmkit.system.process import find_program

    if path.suffix not in (".html", ".svg", ".png"):
        raise SpecError(
            f"{path} is named neither .html nor .svg nor .png", path="--report", hint="name it like run.svg"
        )
    if path.suffix == ".png":
        find_program("rsvg-convert", package="librsvg2-bin")


def picture(recording: Recording, path: Path) -> None:
    """Draw what a transfer went through, as the file's name says.

    Raises:
        SpecError, UnsupportedError: as `check_picture`.
        RefusedError: the file cannot be written.
    """
    from vmkit.migrate.timeline import draw, page
    from vmkit.system.files import write_atomic
    from vmkit.system.process import run

    check_picture(path)
    match path.suffix:
        case ".html":
            write_atomic(path, page(recording))
        case ".svg":
            write_atomic(path, draw(recording))
        case _:
            run(["rsvg-convert", "--zoom", "2", "--output", path], stdin=draw(recording))
