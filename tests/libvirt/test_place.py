"""Placing an image on libvirt's test driver, whose pools hold no bytes."""

from __future__ import annotations

from pathlib import Path

from vmkit.hypervisor.host import Host
from vmkit.image import place, store
from vmkit.image.manifest import Image, ImageKind


def test_the_pool_is_made_once_on_the_test_driver(home: Path, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"kernel")
    file = store.describe(tmp_path / "kernel")
    image = Image("m", ImageKind.MICRO, "x86_64", "2026-01-01T00:00:00+00:00", "a test", kernel=file)
    with Host.connect("test:///default") as host:
        placed = place.place(host, image)
        assert placed.kernel == str(home / "pool" / place.file_name("kernel", file))
        assert placed.disk is None
        assert place.ensure_pool(host).folder == home / "pool"
        assert place.place(host, image) == placed
