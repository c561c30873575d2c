"""The seed as a file system that cloud-init looks for: ISO 9660 with Joliet and Rock Ridge, labelled `cidata`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Final

from vmkit.errors import EffectError

LABEL: Final = "cidata"
LIMIT: Final = 16 << 20
"""Largest seed that is made or read, bytes."""


def write(files: Mapping[str, bytes]) -> bytes:
    """The image of a file system that holds `files` in its root.

    Args:
        files: content by name, such as 'user-data'; letters, digits and '-'.
    """
    import pycdlib

    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    try:
        for name, content in sorted(files.items()):
            plain = "".join(c for c in name.upper() if c.isalnum() or c == "_")
            image.add_fp(io.BytesIO(content), len(content), f"/{plain}.;1", rr_name=name, joliet_path=f"/{name}")
        out = io.BytesIO()
        image.write_fp(out)
    finally:
        image.close()
    return out.getvalue()


def read(data: bytes) -> dict[str, bytes]:
    """The files in the root of such an image.

    Raises:
        EffectError: it is not one.
    """
    import pycdlib
    from pycdlib.pycdlibexception import PyCdlibException

    image = pycdlib.PyCdlib()
    try:
        image.open_fp(io.BytesIO(data))
        found = {}
        for child in image.list_children(joliet_path="/"):
            if not child.is_file():
                continue
            name = child.file_identifier().decode("utf-16_be")
            out = io.BytesIO()
            image.get_file_from_iso_fp(out, joliet_path=f"/{name}")
            found[name] = out.getvalue()
        image.close()
    except (PyCdlibException, UnicodeDecodeError) as e:
        raise EffectError(f"the seed cannot be read: {e}") from e
    return found
