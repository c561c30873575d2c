"""Real hosts for the tests of this folder: a home, an image, a lab of two hosts, and a client for each.

Their scope is the package and not the session, so that they are gone before the tier `leftovers` looks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.homes import tier_home
from vmkit.client import Client
from vmkit.errors import VmkitError
from vmkit.hypervisor.host import Host
from vmkit.image.manifest import Image
from vmkit.image.place import POOL
from vmkit.lab.api import Lab, Labs
from vmkit.vm.api import Created
from vmkit.vm.machine import Vm
from vmkit.vm.readiness import Layer

HERE = Path(__file__).parent

OWN = f"t{os.getpid()}"
"""Prefix of the names of this session's labs; what is left behind is recognised by it."""


APART = "/var/lib/libvirt/apart"
"""Folder of a pool that lab hosts do not share: each has a /var/lib/libvirt of its own."""

DEBIAN_VM = "debian-vm"
"""Name of the VM that several files of this tier share."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Last what uses the shared Debian, so that other tests find their hosts without it.
    items.sort(key=lambda item: "debian_made" in getattr(item, "fixturenames", ()))
    if os.geteuid() == 0:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="starts hypervisors and namespaces: needs root"))


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """VMKIT_HOME of this whole tier."""
    with tier_home(tmp_path_factory.mktemp("home")) as folder:
        yield folder


@pytest.fixture(scope="package")
def micro(home: Path) -> Image:
    """The micro guest, built once."""
    images = Client().images
    try:
        return images.get("micro")
    except VmkitError:
        return images.build_micro()


def built_debian(release: str) -> Image:
    """A Debian as vmkit builds it, built once, unless $VMKIT_TEST_IMAGES names a folder of images that has it."""
    name, images = f"debian-{release}", Client().images
    ready = Path(os.environ.get("VMKIT_TEST_IMAGES", "/nowhere"), name)
    place = Path(os.environ["VMKIT_HOME"], "images", name)
    if ready.exists() and not place.exists():
        shutil.copytree(ready, place)
    try:
        return images.get(name)
    except VmkitError:
        return images.build_debian(release)


@pytest.fixture(scope="package")
def debian(home: Path) -> Image:
    """The Debian that most tests take."""
    assert home
    return built_debian("13")


@pytest.fixture(scope="package")
def debian_key(home: Path) -> Path:
    """A private key of somebody else than vmkit; its public half is beside it."""
    path = home / "somebody"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "somebody", "-f", path], check=True)
    return path


@pytest.fixture(scope="package")
def debian_made(pair: Lab, debian: Image, debian_key: Path) -> Iterator[Created]:
    """How `debian_vm` was made."""
    spec = {
        "name": DEBIAN_VM,
        "image": debian.name,
        "memory": "512M",
        "max_vcpus": 2,
        "max_memory": "1G",
        "nics": [{"network": "lab"}],
        "cloud_init": {
            "ssh_keys": [f"{debian_key}.pub"],
            "password": "generate",
            "user_data": {
                "write_files": [{"path": "/etc/vmkit-test", "content": "from user-data\n", "permissions": "0640"}],
                "runcmd": ["echo ran >>/var/lib/vmkit-runs"],
            },
        },
    }
    with Client(pair.host("h1").uri) as client:
        made = client.vms.create(spec, start=False)
        try:
            made.vm.start()
            made.vm.wait(layers=[Layer.AGENT, Layer.ADDRESS, Layer.SSH, Layer.CLOUD_INIT], deadline=900)
            yield made
        finally:
            made.vm.delete(force=True)


@pytest.fixture
def debian_vm(debian_made: Created) -> Vm:
    """A Debian that has booted on h1, with a key and user-data. Others use it too: leave it as it was, and running."""
    return debian_made.vm


def sweep(client: Client) -> None:
    """Delete every VM of a host but `debian_vm`."""
    for row in client.vms.list():
        if row.name != DEBIAN_VM:
            client.vms.get(row.name).delete(force=True)


@pytest.fixture(scope="package")
def pair(home: Path) -> Iterator[Lab]:
    """Two hosts, for the whole tier."""
    labs = Labs()
    lab = labs.up("pair", name=f"{OWN}-pair")
    yield lab
    labs.down(lab.name)


@contextmanager
def hosts_apart(name: str) -> Iterator[Lab]:
    """Two more hosts, whose pool is in a folder of their own each."""
    labs = Labs()
    lab = labs.up("pair", name=f"{OWN}-{name}")
    for each in lab.hosts:
        with Host.connect(each.uri) as host:
            shared = host.pool(POOL)
            shared.handle.destroy()
            shared.handle.undefine()
            host.define_pool(f"<pool type='dir'><name>{POOL}</name><target><path>{APART}</path></target></pool>")
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
