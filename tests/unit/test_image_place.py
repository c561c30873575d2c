"""Placing an image: by link, by copy, and through libvirt's upload, with others doing the same."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest

from vmkit.errors import ConflictError, EffectError, RefusedError
from vmkit.hypervisor.volume import Pool
from vmkit.image import place, store
from vmkit.image.manifest import ImageFile
from vmkit.progress import Advanced, Event, Finished


@pytest.fixture
def file(tmp_path: Path) -> ImageFile:
    path = tmp_path / "kernel"
    path.write_bytes(b"kernel" * 1000)
    return store.describe(path)


class FakePool:
    """A pool whose volumes are in memory."""

    def __init__(self) -> None:
        self.volumes: dict[str, bytes] = {}
        self.host = SimpleNamespace(uri="qemu+ssh://h/system")
        self.folder = Path("/pool")
        self.uploads = 0
        self.room = 1 << 40

    def path(self, name: str) -> str | None:
        return f"/pool/{name}" if name in self.volumes else None

    def free(self) -> int:
        return self.room

    def read(self, name: str) -> bytes:
        return self.volumes[name]

    def delete(self, name: str) -> bool:
        return self.volumes.pop(name, None) is not None

    def create(self, xml: str) -> str:
        name = ET.fromstring(xml).findtext("name", "")
        if name in self.volumes:
            raise ConflictError("there")
        self.volumes[name] = b""
        return f"/pool/{name}"

    def upload(self, name: str, source: Path, *, advance: Any = None) -> str:
        assert name not in self.volumes
        self.uploads += 1
        self.volumes[name] = source.read_bytes()
        advance(len(self.volumes[name]))
        return f"/pool/{name}"


def upload(pool: FakePool, file: ImageFile, seen: list[Event] | None = None) -> str:
    return place.upload(cast("Pool", pool), "k.kernel", file, (seen if seen is not None else []).append)


@pytest.mark.usefixtures("home")
class TestUpload:
    def test_once_and_then_never_again(self, file: ImageFile) -> None:
        pool, seen = FakePool(), list[Event]()
        assert upload(pool, file, seen) == "/pool/k.kernel"
        assert sorted(pool.volumes) == ["k.kernel", "k.kernel.complete"]
        assert any(isinstance(e, Advanced) and e.done == e.total == file.size for e in seen)
        assert isinstance(seen[-1], Finished)
        seen.clear()
        upload(pool, file, seen)
        assert pool.uploads == 1
        assert seen == []

    def test_half_of_a_dead_sender_is_replaced(self, file: ImageFile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(place.time, "sleep", lambda _: None)
        pool = FakePool()
        pool.volumes["k.kernel"] = b"kernel" * 400
        upload(pool, file)
        assert pool.volumes["k.kernel"] == file.path.read_bytes()
        assert "k.kernel.complete" in pool.volumes

    def test_a_sender_on_another_machine_is_waited_for(self, file: ImageFile, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = FakePool()
        pool.volumes["k.kernel"] = b""

        def sleep(_: float) -> None:
            pool.volumes["k.kernel"] = file.path.read_bytes()[: len(pool.volumes["k.kernel"]) + 2500]

        monkeypatch.setattr(place.time, "sleep", sleep)
        upload(pool, file)
        assert pool.uploads == 0
        assert "k.kernel.complete" in pool.volumes

    def test_whole_but_unmarked_is_taken_as_it_is(self, file: ImageFile) -> None:
        pool = FakePool()
        pool.volumes["k.kernel"] = file.path.read_bytes()
        upload(pool, file)
        assert pool.uploads == 0
        assert "k.kernel.complete" in pool.volumes

    def test_no_room_and_no_source(self, file: ImageFile) -> None:
        pool = FakePool()
        pool.room = 10
        with pytest.raises(RefusedError, match="no space"):
            upload(pool, file)
        file.path.unlink()
        with pytest.raises(EffectError, match="missing"):
            upload(pool, file)
        assert pool.volumes == {}

    def test_a_host_with_the_same_folder_that_began_at_the_same_moment(self, file: ImageFile) -> None:
        class Shared(FakePool):
            def upload(self, name: str, source: Path, *, advance: Any = None) -> str:
                self.volumes[name] = source.read_bytes()  # the other one is done by now
                raise EffectError("creation of a volume: file exists")

        pool = Shared()
        assert upload(pool, file) == "/pool/k.kernel"
        assert "k.kernel.complete" in pool.volumes

    def test_a_transfer_that_fails_is_told(self, file: ImageFile) -> None:
        class Broken(FakePool):
            def upload(self, name: str, source: Path, *, advance: Any = None) -> str:
                raise EffectError("upload: connection lost")

        with pytest.raises(EffectError, match="connection lost"):
            upload(Broken(), file)

    def test_many_at_once_send_it_once(self, file: ImageFile) -> None:
        pool = FakePool()
        threads = [threading.Thread(target=upload, args=(pool, file)) for _ in range(5)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert pool.uploads == 1


def test_a_link_where_it_can_be_one(file: ImageFile, tmp_path: Path) -> None:
    target = tmp_path / "pool-k"
    assert place._link(file, target)
    assert target.samefile(file.path)
    assert not place._link(file, target)


def test_a_copy_where_it_cannot(file: ImageFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_args: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    pool = tmp_path / "pool"
    pool.mkdir()
    assert place._link(file, pool / "k")
    assert (pool / "k").read_bytes() == file.path.read_bytes()
    assert [p.name for p in pool.iterdir()] == ["k"]
    monkeypatch.setattr(place, "free_space", lambda _: 10)
    with pytest.raises(RefusedError, match="no space"):
        place._link(file, pool / "other")
    assert [p.name for p in pool.iterdir()] == ["k"]


def test_an_image_that_lost_a_file(file: ImageFile, tmp_path: Path) -> None:
    file.path.unlink()
    with pytest.raises(EffectError, match="missing"):
        place._link(file, tmp_path / "k")


def test_names_come_from_the_content(file: ImageFile) -> None:
    assert place.file_name("kernel", file) == f"{file.sha256[:16]}.kernel"
    assert place.file_name("disk", file) == f"{file.sha256[:16]}.qcow2"
