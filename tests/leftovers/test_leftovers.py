"""Runs last: nothing that the tests started, mounted, linked or defined is there any more."""

from __future__ import annotations

import os
import time

import pytest

from tests.leftovers.snapshot import Snapshot

BEFORE = Snapshot.take()  # at import, which is when tests are collected


def test_nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> None:
    marks = (str(tmp_path_factory.getbasetemp()), f"t{os.getpid()}-")
    deadline = time.monotonic() + 10  # a namespace goes a moment after its last process
    while (left := Snapshot.take().new_since(BEFORE, marks)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, "\n".join(("left behind:", *left))


def test_what_is_left_would_be_seen(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A process with the session's mark shows up, so that the test above can fail."""
    import subprocess

    mark = str(tmp_path_factory.getbasetemp())
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "VMKIT_HOME": f"{mark}/home0"}) as child:
        try:
            left = Snapshot.take().new_since(BEFORE, (mark,))
        finally:
            child.kill()
    assert any(f"processes: {child.pid} " in line for line in left), left
