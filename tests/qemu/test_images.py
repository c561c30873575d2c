"""Images on real hosts: which VMs use them, what may go, and that an image that went out and came back boots."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmkit.client import Client
from vmkit.image.manifest import Image, ImageKind
from vmkit.image.place import file_name, place
from vmkit.image.prune import Leftover
from vmkit.vm.machine import Vm
from vmkit.vm.readiness import Layer

NAME = "of-an-image"


@pytest.fixture
def vm(client_h1: Client, micro: Image, tmp_path: Path) -> Iterator[Vm]:
    """A VM of the image `copied`, which is the micro guest exported and imported."""
    images = client_h1.images
    images.import_(images.export("micro", tmp_path / "copied.tar"))
    try:
        made = client_h1.vms.create({"name": NAME, "image": "copied", "memory": "128M"}, wait=True, deadline=300)
        yield made.vm
    finally:
        for vm in client_h1.vms.list():
            if vm.name == NAME:
                client_h1.vms.get(NAME).delete(force=True)
        if "copied" in {i.name for i in images.list()}:
            images.delete("copied")


def volumes(found: list[Leftover]) -> set[str]:
    return {entry.name for entry in found if entry.kind == "volume"}


def test_an_image_that_went_out_and_came_back(client_h1: Client, micro: Image, vm: Vm, tmp_path: Path) -> None:
    """It boots, shares its bytes with what it came from, and is known to be used; pruning leaves what the VM needs."""
    images = client_h1.images
    copied = images.get("copied")
    assert copied.kind is ImageKind.MICRO
    for ours, theirs in zip(copied.files, micro.files, strict=True):
        assert ours.path.samefile(theirs.path)
    assert int(vm.guest_exec(["counter"]).stdout) > 0

    (use,) = [u for u in images.uses(client_h1.host, "copied") if u.vm == NAME]
    assert set(use.files) == {file_name(field, file) for field, file in copied.by_field.items()}
    # The same files; another image of the same Debian has the same kernel.
    assert {"micro", "copied"} <= {u.image for u in images.uses(client_h1.host) if u.vm == NAME}

    raw = tmp_path / "blank.raw"
    raw.write_bytes(os.urandom(1 << 20))
    blank = images.import_(raw, "blank")
    assert blank.disk
    place(client_h1.host, blank)
    own = file_name("disk", blank.disk)
    found = images.leftovers(client_h1.host)
    assert own in volumes(found)
    assert not volumes(found) & set(use.files)
    assert "blank" in {x.name for x in images.leftovers(client_h1.host, unused=True) if x.kind == "image"}
    assert own in volumes(images.prune(client_h1.host))
    assert images.verify("blank") == blank  # only the host's copy went
    assert not volumes(images.leftovers(client_h1.host))

    images.delete("copied")
    vm.stop(force=True)
    vm.start()
    vm.wait(layers=[Layer.AGENT], deadline=300)  # without its image nobody knows what else it should wait for
    assert int(vm.guest_exec(["counter"]).stdout) > 0
    images.delete("blank")


def test_the_debian_that_was_built(client_h1: Client, debian: Image, debian_vm: Vm) -> None:
    """It says what it is, it came up without a failed unit, and its root is as large as its disk."""
    assert (debian.kind, debian.cloud_init, debian.user, debian.agent) == (ImageKind.DEBIAN, True, "debian", True)
    assert client_h1.images.get("debian") == client_h1.images.get("debian:13") == debian
    assert [u.vm for u in client_h1.images.uses(client_h1.host, "debian") if u.vm == debian_vm.name]

    def said(script: str) -> str:
        done = debian_vm.guest_exec(["/bin/sh", "-c", script])
        assert done.status == 0, done.stderr
        return done.stdout.strip()

    assert said("systemctl --failed --no-legend") == ""
    assert said(". /etc/os-release; echo $ID $VERSION_ID") == "debian 13"
    root, disk = said("df --output=size -B1 / | tail -1; blockdev --getsize64 /dev/vda").split()
    assert int(root) > 0.9 * int(disk)
    assert "deb.debian.org/debian-security" in said("cat /etc/apt/sources.list.d/*")
    assert said("ls /etc/ssh/ssh_host_*_key").split() == [
        "/etc/ssh/ssh_host_ecdsa_key",
        "/etc/ssh/ssh_host_ed25519_key",
    ]
    assert said("systemctl is-active ssh qemu-guest-agent serial-getty@ttyS0").split() == ["active"] * 3
    assert len(said("cat /etc/machine-id")) == 32
