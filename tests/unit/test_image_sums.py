"""Files of checksums and their signatures. The keys in tests/data/image were made for these tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.image_site import Site, serving
from vmkit.errors import RefusedError, SpecError
from vmkit.image import signature
from vmkit.image.api import Images
from vmkit.image.sums import Digest, base_name, digest_of, parse_sums
from vmkit.progress import Event, Note

DATA = Path(__file__).parents[1] / "data" / "image"
BODY = bytes(range(256)) * 4096
"""What tests/data/image/SHA256SUMS calls disk.raw."""
A, B = "a" * 64, "b" * 64


def data(name: str) -> bytes:
    return (DATA / name).read_bytes()


def test_both_layouts_are_read() -> None:
    text = f"# comment\n{A}  one.qcow2\n{B.upper()} *./dir/two.img\nSHA512 (three) = {'c' * 128}\n-----BEGIN PGP\n"
    assert parse_sums(text) == {
        "one.qcow2": Digest("sha256", A),
        "two.img": Digest("sha256", B),
        "three": Digest("sha512", "c" * 128),
    }


def test_the_stronger_of_two_digests_counts() -> None:
    assert parse_sums(f"{A}  x\nSHA512 (x) = {'c' * 128}\n")["x"].algorithm == "sha512"


@pytest.mark.parametrize("text", ["", "<html>404</html>", f"{A}  one\n{B}  one\n", f"{A[:-1]}  one\n"])
def test_checksums_that_are_none_or_contradict(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_sums(text)


def test_the_file_is_found_by_its_own_name() -> None:
    sums = parse_sums(f"{A}  a b.qcow2\n")
    assert digest_of("https://h/x/a%20b.qcow2?token=1", sums).value == A
    assert base_name("/tmp/x/a.img") == "a.img"
    with pytest.raises(RefusedError) as caught:
        digest_of("https://h/other.img", sums)
    assert "a b.qcow2" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["", "z" * 64, "a" * 63, "a" * 127])
def test_digests_that_are_none(text: str) -> None:
    with pytest.raises(SpecError):
        Digest.parse(text)


def test_signatures_detached_and_around_the_text() -> None:
    seen: list[Event] = []
    sums, key = data("SHA256SUMS"), data("publisher.asc")
    assert signature.verify(sums, data("SHA256SUMS.gpg"), key, seen.append) == sums
    assert isinstance(seen[0], Note)
    assert "Test Publisher" in seen[0].text
    assert signature.is_clear_signed(data("CHECKSUM"))
    assert parse_sums(signature.verify(data("CHECKSUM"), None, key).decode()) == parse_sums(sums.decode())
    binary = signature.dearmoured(key)
    assert signature.verify(sums, data("SHA256SUMS.gpg"), binary + signature.dearmoured(data("else.asc"))) == sums


def test_signatures_that_do_not_hold() -> None:
    sums, sig, key = data("SHA256SUMS"), data("SHA256SUMS.gpg"), data("publisher.asc")
    with pytest.raises(RefusedError, match="is wrong"):
        signature.verify(sums.replace(b"fb", b"fa"), sig, key)
    with pytest.raises(RefusedError, match="is wrong"):
        signature.verify(data("CHECKSUM").replace(b"other", b"0ther"), None, key)
    with pytest.raises(RefusedError, match="none of the keys") as caught:
        signature.verify(sums, sig, data("else.asc"))
    assert "--keyring" in str(caught.value.hint)
    with pytest.raises(RefusedError, match="no signature"):
        signature.verify(sums, b"nothing", key)
    for keys in (b"", b"text", sums, sig, key[:-60] + key[-36:]):
        with pytest.raises((SpecError, RefusedError)):
            signature.verify(sums, sig, keys)


@pytest.mark.parametrize(
    ("status", "text"),
    [("EXPKEYSIG", "a key that has expired"), ("REVKEYSIG", "revoked"), ("EXPSIG", "has expired")],
)
def test_a_good_signature_beside_a_bad_one_is_not_enough(status: str, text: str) -> None:
    good = f"[GNUPG:] GOODSIG AB x\n[GNUPG:] VALIDSIG {'A' * 40} 2024\n"
    signature._judge(good, "")
    with pytest.raises(RefusedError, match=text):
        signature._judge(f"{good}[GNUPG:] {status} AB y\n", "")


@pytest.fixture
def site() -> Iterator[Site]:
    files = {"/disk.raw": BODY, **{f"/{p.name}": p.read_bytes() for p in DATA.iterdir()}}
    with serving(Site(files)) as site:
        yield site


def fetch(site: Site, file: str = "disk.raw", **names: str) -> Any:
    return Images().import_(f"{site.url}/{file}", "new", **{k: f"{site.url}/{v}" for k, v in names.items()})


@pytest.mark.usefixtures("home")
def test_import_with_signed_checksums(site: Site) -> None:
    made = fetch(site, sums="SHA256SUMS", signature="SHA256SUMS.gpg", keyring="publisher.asc")
    assert made.source_sha256 == hashlib.sha256(BODY).hexdigest()
    Images().delete("new")
    assert fetch(site, sums="CHECKSUM", keyring="publisher.asc").name == "new"
    local = Images().import_(f"{site.url}/disk.raw", "local", sums=str(DATA / "SHA256SUMS"))
    assert local.source_sha256 == made.source_sha256


@pytest.mark.usefixtures("home")
def test_import_refuses_what_is_not_proved(site: Site) -> None:
    for wrong in (
        {"sums": "SHA256SUMS", "signature": "SHA256SUMS.gpg", "keyring": "else.asc"},
        {"sums": "CHECKSUM", "keyring": "else.asc"},
        {"sums": "publisher.asc"},
    ):
        with pytest.raises(RefusedError):
            fetch(site, **wrong)
    site.files["/other.raw"] = BODY
    with pytest.raises(RefusedError, match="checksum"):
        fetch(site, "other.raw", sums="SHA256SUMS")
    for wrong in (
        {"sums": "SHA256SUMS", "keyring": "publisher.asc"},
        {"sums": "SHA256SUMS", "signature": "SHA256SUMS.gpg"},
        {"signature": "SHA256SUMS.gpg"},
        {"keyring": "publisher.asc"},
        {"sums": "SHA256SUMS", "sha256": "x"},
    ):
        with pytest.raises(SpecError):
            fetch(site, **wrong)
    assert Images().list() == []
