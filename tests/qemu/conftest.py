"""Real hosts for the tests of this folder: a home, an image, a lab of two hosts, and a client for each.

Their scope is the package and not the session, so that they are gone before the tier `leftovers` looks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmkit.client import Client
from vmkit.errors import VmkitError
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab, Labs

HERE = Path(__file__).parent

OWN = f"t{os.getpid()}"
"""Prefix of the names of this session's labs; what is left behind is recognised by it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="starts hypervisors and namespaces: needs root"))


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """VMKIT_HOME of this whole tier; labs that a failed test left are torn down at its end."""
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("VMKIT_HOME")
    os.environ["VMKIT_HOME"] = str(folder)
    try:
        yield folder
        Labs().down_all()
    finally:
        if before is None:
            del os.environ["VMKIT_HOME"]
        else:
            os.environ["VMKIT_HOME"] = before
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
def micro(home: Path) -> Image:
    """The micro guest, built once."""
    images = Client().images
    try:
        return images.get("micro")
    except VmkitError:
        return images.build_micro()


@pytest.fixture(scope="package")
def pair(home: Path) -> Iterator[Lab]:
    """Two hosts, for the whole tier."""
    labs = Labs()
    lab = labs.up("pair", name=f"{OWN}-pair")
    yield lab
    labs.down(lab.name)


@pytest.fixture
def client_h1(pair: Lab) -> Iterator[Client]:
    """A client of the first host."""
    with Client(pair.host("h1").uri) as client:
        yield client


@pytest.fixture
def client_h2(pair: Lab) -> Iterator[Client]:
    """A client of the second host."""
    with Client(pair.host("h2").uri) as client:
        yield client
