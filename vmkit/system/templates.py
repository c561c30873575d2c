"""Where the data files of vmkit are: in `templates/` of a clone, or in share/vmkit/templates of an installation."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from vmkit.errors import NotFoundError


def template(name: str) -> Path:
    """Path of a file or folder below templates/, as in 'micro/init'.

    Raises:
        NotFoundError: this installation has none of that name.
    """
    beside = Path(__file__).resolve().parents[2] / "templates" / name
    installed = Path(sysconfig.get_path("data")) / "share/vmkit/templates" / name
    for path in (beside, installed):
        if path.exists():
            return path
    raise NotFoundError(f"vmkit's own file {name} is missing", hint=f"install vmkit again; looked in {installed}")
