"""libvirt's test driver is one host for all connections of a process, and begins anew when the last one is gone."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def fresh() -> Iterator[None]:
    """What a file of tests left in the driver is not there for the next one.

    An exception that was caught can keep a connection until Python looks for cycles, which it does at its own time.
    """
    yield
    gc.collect()
