"""Which VMs use which image, what may go, and the catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_image_store import put
from vmkit.errors import EffectError, NotFoundError, SpecError
from vmkit.image import catalogue, prune, store, usage
from vmkit.image.api import Images
from vmkit.image.download import folder as downloads
from vmkit.image.manifest import Image, ImageFile, ImageKind
from vmkit.image.place import file_name
from vmkit.image.usage import Survey, Volume
from vmkit.system.files import locked
from vmkit.values import Bytes, check_image_name


def image(name: str, letter: str) -> Image:
    files = {n: ImageFile(Path(n), (letter + c) * 32, Bytes(9)) for n, c in (("kernel", "1"), ("disk", "2"))}
    return Image(name, ImageKind.DEBIAN, "x86_64", "2026-01-01T00:00:00+00:00", "a test", **files)


A, B = image("a", "a"), image("b", "b")


def placed(one: Image, field: str) -> str:
    return file_name(field, one.by_field[field])


def definition(kernel: Image | None, *disks: str) -> str:
    boot = f"<kernel>/pool/{placed(kernel, 'kernel')}</kernel>" if kernel else ""
    sources = "".join(f"<source file='/pool/{d}'/>" for d in disks)
    return f"<domain><os>{boot}</os>{sources}</domain>"


def host(domains: dict[str, str], volumes: dict[str, str | None]) -> Survey:
    base = {placed(i, f): None for i in (A, B) for f in ("kernel", "disk")}
    return Survey("test:///", domains, {n: Volume(10, b) for n, b in {**base, **volumes}.items()})


FOUND = host(
    {"vm1": definition(A, "vm1-0.snap.qcow2"), "vm2": definition(None, "vm2-0.qcow2"), "vm3": definition(None)},
    {
        "vm1-0.snap.qcow2": "vm1-0.qcow2",
        "vm1-0.qcow2": placed(A, "disk"),
        "vm2-0.qcow2": placed(B, "disk"),
        "vm1-console.log": None,
    },
)


def test_a_vm_uses_what_it_names_and_what_its_disks_stand_on() -> None:
    found = [(u.image, u.vm, u.files) for u in usage.uses(FOUND, [A, B])]
    assert found == [
        ("a", "vm1", tuple(sorted((placed(A, "disk"), placed(A, "kernel"))))),
        ("b", "vm2", (placed(B, "disk"),)),
    ]


def test_only_what_nobody_uses_may_go() -> None:
    assert set(usage.unused(FOUND)) == {placed(B, "kernel")}
    assert usage.unused(FOUND, keep=[placed(B, "kernel")]) == {}
    empty = host({}, {"notes.txt": None, "x.qcow2": None})
    assert set(usage.unused(empty)) == {placed(i, f) for i in (A, B) for f in ("kernel", "disk")}


def test_a_disk_that_is_nobodys_keeps_what_it_stands_on() -> None:
    alone = host({}, {"other-0.qcow2": placed(A, "disk")})
    assert placed(A, "disk") not in usage.unused(alone)


def test_kernels_stay_while_another_host_may_use_them() -> None:
    """The folder of a pool may be shared; a VM of the other host left its console log in it."""
    shared = host({}, {"elsewhere-console.log": None})
    assert usage.strangers(shared) == ["elsewhere"]
    assert set(usage.unused(shared)) == {placed(A, "disk"), placed(B, "disk")}


def test_marks_of_complete_uploads_go_with_their_files() -> None:
    name = placed(A, "kernel")
    found = usage.unused(host({}, {f"{name}.complete": None}))
    assert {name, f"{name}.complete"} <= set(found)
    assert (
        usage.unused(host({"v": definition(A)}, {f"{name}.complete": None}))
        .keys()
        .isdisjoint({name, f"{name}.complete"})
    )


def test_a_chain_that_bites_its_tail_ends() -> None:
    ring = host({"v": definition(None, "r1.qcow2")}, {"r1.qcow2": "r2.qcow2", "r2.qcow2": "r1.qcow2"})
    assert usage.uses(ring, [A]) == []


def test_prune_removes_what_was_left_here(home: Path) -> None:
    put("one")
    half = store.root() / ".new-gone~12345678"
    half.mkdir()
    (half / "disk.qcow2").write_bytes(b"x" * 5000)
    downloads().mkdir(parents=True)
    for name in ("a.part", "a.json", "b.part"):
        (downloads() / name).write_bytes(b"x" * 5000)
    (home / "blobs" / ("f" * 64)).write_bytes(b"x" * 5000)
    with locked(downloads() / "b.lock", busy="no"):
        found = Images().leftovers()
        assert [(x.kind, x.name) for x in found] == [("download", "a.part"), ("half", half.name), ("blob", "f" * 64)]
        assert all(x.size >= 5000 for x in found)
        assert [x.name for x in Images().prune()] == [x.name for x in found]
        assert sorted(p.name for p in downloads().iterdir()) == ["b.lock", "b.part"]
    assert [x.name for x in Images().prune()] == ["b.part"]
    assert Images().leftovers() == []
    assert Images().verify("one").name == "one"


def test_an_image_that_is_being_made_is_left_alone(home: Path) -> None:
    with store.making("one") as (folder, _):
        (folder / "disk.qcow2").write_bytes(b"x")
        assert prune.on_this_machine() == []


def test_aliases_stand_for_the_entry(home: Path) -> None:
    put("debian-13")
    for name in ("debian", "debian:13", "debian:trixie", "debian-13"):
        assert Images().get(name).name == "debian-13"
    put("debian")
    assert Images().get("debian").name == "debian"  # one that is there goes before an alias
    assert Images().delete("debian:13") == "debian-13"
    with pytest.raises(NotFoundError) as caught:
        Images().get("debian:12")
    assert caught.value.hint == "get it: vmkit image build debian --release 12"
    with pytest.raises(NotFoundError) as caught:
        Images().get("ubuntu")
    assert caught.value.hint == "get it: vmkit image import ubuntu-24.04"


def test_what_is_built_is_not_imported(home: Path) -> None:
    with pytest.raises(SpecError) as caught:
        Images().import_("debian")
    assert caught.value.hint == "vmkit image build debian --release 13"


def test_every_entry_can_be_got_and_proved() -> None:
    for known in Images().known():
        assert known.about
        assert bool(known.build) != bool(known.url)
        for name in (known.name, *known.aliases):
            check_image_name(name)
        if known.url:
            assert known.url.startswith("https://")
            assert str(known.sums).startswith("https://")
            assert known.user
            assert bool(known.signature) == bool(known.keyring) == bool(known.keyring_package)


@pytest.mark.parametrize(
    "body",
    [None, [], {"a": {}}, {"../a": {"about": "x"}}, {"a": {"about": "x"}, "b": {"about": "x", "aliases": ["a"]}}],
)
def test_catalogues_that_are_damaged(body: object) -> None:
    with pytest.raises(EffectError):
        catalogue.parse(body)


@pytest.mark.parametrize("name", ["a:", ":a", "a:b:c", "a/b:c", "a:../b", ""])
def test_names_that_mean_no_image(name: str) -> None:
    with pytest.raises(SpecError):
        check_image_name(name)
