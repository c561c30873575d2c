"""A VMKIT_HOME for each tier that makes labs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmkit.lab.api import Labs


@contextmanager
def tier_home(folder: Path) -> Iterator[Path]:
    """VMKIT_HOME of a whole tier; labs that a failed test left are torn down at its end, and the folder is removed.

    What labs keep (the host image, the booted host) is taken from, and left in, the folder that $VMKIT_LAB_CACHE names,
    if it does: for those who run a tier again and again.
    """
    before = os.environ.get("VMKIT_HOME")
    os.environ["VMKIT_HOME"] = str(folder)
    if kept := os.environ.get("VMKIT_LAB_CACHE"):
        (folder / "cache").mkdir()
        Path(kept).mkdir(parents=True, exist_ok=True)
        (folder / "cache/lab").symlink_to(kept)
    try:
        yield folder
        Labs().down_all()
    finally:
        if before is None:
            del os.environ["VMKIT_HOME"]
        else:
            os.environ["VMKIT_HOME"] = before
        shutil.rmtree(folder, ignore_errors=True)
