"""One nested KVM host for all tests of this folder: with an IOMMU, an SR-IOV card and huge pages.

The host is `kvm_host`. On it:

- KVM with nested paging (`/usr/lib/vmkit-lab/paging shadow|nested` switches while no guest runs; give it back).
- 200 huge pages of 2 MiB; networks `default` (NAT) and `lab` (bridge br0, DHCP); pool `vmkit`; image `micro`.
- vmkit itself, from this tree: `host.vmkit("create", "g1", "--image", "micro")`.
- an igb card `pf0` at 0000:01:00.0, in an IOMMU group of its own, with up to 7 VFs. It, the virtio card `wire0` of the
  same host and a user-mode network are ports of one hub; on that network 10.9.0.2 answers pings without a VLAN tag
  (10.9.0.0/24; take addresses from .50 on).
- PCI devices that share an IOMMU group: 0000:00:1f.0, .2 and .3.

A test leaves the host as it found it: its VMs deleted, its VFs given back, pf0 up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.homes import tier_home
from vmkit.client import Client
from vmkit.lab.api import LabHost, Labs
from vmkit.lab.kvm.options import KvmOptions
from vmkit.system.process import Completed

HERE = Path(__file__).parent
PF = "0000:01:00.0"
HUGE_PAGES = 200
OPTIONS = KvmOptions(sriov=True, iommu=True, hugepages=HUGE_PAGES)

OWN = f"t{os.getpid()}"
"""Prefix of the names of this session's labs; what is left behind is recognised by it."""


@dataclass(frozen=True)
class KvmHost:
    """A nested KVM host.

    Attributes:
        lab: what `vmkit lab list` says of it.
        client: of its libvirt, over ssh, as a user of this machine would have it.
    """

    lab: LabHost
    client: Client

    def run(
        self, argv: Sequence[str], *, stdin: str | None = None, timeout: float = 300, check: bool = True
    ) -> Completed:
        """Run a program in the host, as root; with `check` its exit status has to be 0."""
        done = Labs().run(self.lab.name, argv, stdin=stdin, timeout=timeout)
        assert not check or done.status == 0, f"{argv}: status {done.status}\n{done.stdout}\n{done.stderr}"
        return done

    def sh(self, script: str, *, timeout: float = 300, check: bool = True) -> Completed:
        """Run a shell script in the host; cheaper than many programs, since each costs a log-in."""
        return self.run(["sh", "-eu"], stdin=script, timeout=timeout, check=check)

    def vmkit(self, *words: str, timeout: float = 300, check: bool = True) -> Completed:
        """Run vmkit in the host."""
        return self.run(["vmkit", *words], timeout=timeout, check=check)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        # The first test of all waits until image and host have been made: 2 minutes, or 15 on a busy machine.
        item.add_marker(pytest.mark.timeout(1800))
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="builds the image of a nested host: needs root"))


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """VMKIT_HOME of this whole tier."""
    with tier_home(tmp_path_factory.mktemp("home")) as folder:
        yield folder


@pytest.fixture(scope="package")
def kvm_host(home: Path) -> Iterator[KvmHost]:
    """The host that all tests of this tier share; see above for what it has."""
    labs = Labs()
    lab = labs.up("kvm", name=f"{OWN}-kvm", options=OPTIONS)
    with Client(lab.host("h1").uri) as client:
        yield KvmHost(lab.host("h1"), client)
    labs.down(lab.name)


@pytest.fixture(scope="package")
def shadow_host(home: Path) -> Iterator[KvmHost]:
    """A host whose KVM maps guest memory by shadow page tables; no IOMMU, card or huge pages.

    Without KVM on this machine QEMU 7.2 runs it. `/usr/lib/vmkit-lab/paging nested|shadow` switches it; give it back.
    """
    labs = Labs()
    lab = labs.up("kvm", name=f"{OWN}-shadow", options=KvmOptions(shadow=True))
    with Client(lab.host("h1").uri) as client:
        yield KvmHost(lab.host("h1"), client)
    labs.down(lab.name)
