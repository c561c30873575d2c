"""One nested Xen host for all tests of this folder.

The host is `xen_host`: Xen 4.17 with a PV dom0 (Debian 12), libvirt's libxl driver, xl; networks `default` (NAT) and
`lab` (bridge br0, DHCP), pool `vmkit`. A test leaves it as it found it: its guests deleted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.homes import tier_home
from vmkit.client import Client
from vmkit.lab.api import LabHost, Labs
from vmkit.system.process import Completed

HERE = Path(__file__).parent
OWN = f"t{os.getpid()}"
"""Prefix of the names of this session's labs; what is left behind is recognised by it."""


@dataclass(frozen=True)
class XenHost:
    """A nested Xen host.

    Attributes:
        lab: what `vmkit lab list` says of it.
        client: of its libvirt, over ssh, as a user of this machine would have it.
    """

    lab: LabHost
    client: Client

    def sh(self, script: str, *, timeout: float = 600, check: bool = True) -> Completed:
        """Run a shell script in dom0, as root; with `check` its exit status has to be 0."""
        done: Completed = Labs().run(self.lab.name, ["sh", "-eu"], stdin=script, timeout=timeout)
        assert not check or done.status == 0, f"{script}: status {done.status}\n{done.stdout}\n{done.stderr}"
        return done


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        # The first test of all waits until image and host have been made, and dom0 boots slowly under emulation.
        item.add_marker(pytest.mark.timeout(3600))
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="builds the image of a nested host: needs root"))


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """VMKIT_HOME of this whole tier."""
    with tier_home(tmp_path_factory.mktemp("home")) as folder:
        yield folder


@pytest.fixture(scope="package")
def xen_host(home: Path) -> Iterator[XenHost]:
    """The host that all tests of this tier share; see above for what it has."""
    labs = Labs()
    lab = labs.up("xen", name=f"{OWN}-xen")
    with Client(lab.host("h1").uri) as client:
        yield XenHost(lab.host("h1"), client)
    labs.down(lab.name)
