"""Signatures of patch files: what is signed is all that counts, and only by keys that are trusted and valid."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_hotfix_manifest import EDIT, GOOD
from vmkit.errors import ConflictError, NotFoundError, RefusedError, SpecError
from vmkit.hotfix import manifest, signing
from vmkit.hotfix.api import Hotfixes
from vmkit.hotfix.signing import PublicKey, keygen, sign, split, trusted_keys, verify
from vmkit.hypervisor.host import Host

TODAY = date(2026, 6, 15)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key that is trusted in a home of this test's own."""
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path / "home"))
    return keygen("ops", tmp_path / "keys", expires=None, trust=True)[0]


def no_host() -> Host:
    raise AssertionError("a host was asked")


def test_sign_and_verify(key: Path) -> None:
    signed = sign(GOOD, key)
    assert manifest.parse(signed) == manifest.parse(GOOD)
    found = verify(signed, trusted_keys(), today=TODAY)
    assert found is not None
    assert (found.key, found.expires) == ("ops", "")
    assert sign(signed, key) == signed
    assert verify(GOOD, trusted_keys(), today=TODAY) is None


def test_secrets_are_for_their_owner_alone(key: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert "PRIVATE" not in (tmp_path / "home/hotfix/keys/ops.pub").read_text()
    assert not list((tmp_path / "home").rglob("*.key"))
    key.chmod(0o640)
    with pytest.raises(RefusedError, match="others can read"):
        sign(GOOD, key)


TAMPERED: dict[str, tuple[Callable[[str], str], type[Exception], str]] = {
    "one byte of an edit": (lambda t: t.replace("00 00 02", "00 00 03"), RefusedError, "changed after it was signed"),
    "another title": (lambda t: t.replace('"edu"', '"edo"'), RefusedError, "changed after"),
    "a space more": (lambda t: t.replace("offset = 1", "offset =  1"), RefusedError, "changed after"),
    "a comment before": (lambda t: "# x\n" + t, RefusedError, "changed after"),
    "another key's name": (lambda t: t.replace('key = "ops"', 'key = "root"'), RefusedError, "not trusted"),
    "a path as key's name": (lambda t: t.replace('key = "ops"', 'key = "../ops"'), RefusedError, "not trusted"),
    "an edit after it": (lambda t: t + EDIT.replace("5d81e0", "5d91e0"), SpecError, "not the last thing"),
    "a comment after it": (lambda t: t + "# x\n", SpecError, "not the last thing"),
    "another signature": (lambda t: t + t[t.index("\n[signature]") :], SpecError, "not the last thing"),
    "a shorter one": (lambda t: re.sub(r'value = "..', 'value = "', t), SpecError, "not the last thing"),
    "one of zeros": (
        lambda t: re.sub(r'value = ".*"', f'value = "{"A" * 86}=="', t),
        RefusedError,
        "changed after",
    ),
    "an inline table": (lambda t: "signature = {key='a', value='b'}\n" + GOOD, SpecError, "not the last thing"),
    "dotted keys": (lambda t: "signature.key = 'a'\nsignature.value = 'b'\n" + GOOD, SpecError, "not the last thing"),
    "a quoted table": (lambda t: t.replace("[signature]", '["signature"]'), SpecError, "not the last thing"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_file_that_was_tampered_with(key: Path, tmp_path: Path, name: str) -> None:
    change, kind, words = TAMPERED[name]
    text = change(sign(GOOD, key))
    with pytest.raises(kind, match=words):
        verify(text, trusted_keys(), today=TODAY)
    path = tmp_path / "fix.toml"
    path.write_text(text)
    for unsigned in (False, True):
        with pytest.raises((RefusedError, SpecError)):
            Hotfixes(no_host).apply(path, allow_unsigned=unsigned)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_changed_byte_is_noticed(at: int, change: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        private, public = keygen("ops", Path(folder), expires=None, trust=False)
        keys = [signing.read_public(public)]
        data = bytearray(sign(GOOD, private).encode())
    data[at % len(data)] ^= change
    try:
        assert verify(data.decode("latin-1"), keys, today=TODAY) is None
    except (RefusedError, SpecError):
        return
    # Where the table's head is no head any more, what is left of it is nothing that a manifest may hold.
    with pytest.raises(SpecError):
        manifest.parse(data.decode("latin-1"))


def test_unsigned_is_refused_unless_told(key: Path, tmp_path: Path) -> None:
    path = tmp_path / "fix.toml"
    path.write_text(GOOD)
    for call in (Hotfixes(no_host).apply, Hotfixes(no_host).check, Hotfixes(no_host).plan):
        with pytest.raises(RefusedError, match="is not signed") as error:
            call(path)
        assert "vmkit hotfix sign" in (error.value.hint or "")
        with pytest.raises(AssertionError, match="a host was asked"):
            call(path, allow_unsigned=True)
    with pytest.raises(RefusedError, match="is not signed"):
        Hotfixes(no_host).verify(path)
    Hotfixes(no_host).sign(path, key)
    assert Hotfixes(no_host).verify(path).key == "ops"
    with pytest.raises(AssertionError, match="a host was asked"):
        Hotfixes(no_host).apply(path)


def test_a_key_that_has_expired(tmp_path: Path) -> None:
    private, public = keygen("ops", tmp_path, expires=date(2026, 6, 15), trust=False)
    keys, text = [signing.read_public(public)], sign(GOOD, private)
    found = verify(text, keys, today=date(2026, 6, 15))
    assert found is not None
    assert found.expires == "2026-06-15"
    with pytest.raises(RefusedError, match="expired on 2026-06-15"):
        verify(text, keys, today=date(2026, 6, 16))


def test_of_two_keys_of_one_name_either_counts(tmp_path: Path) -> None:
    first, a = keygen("ops", tmp_path / "a", expires=None, trust=False)
    _, b = keygen("ops", tmp_path / "b", expires=None, trust=False)
    keys = [signing.read_public(p) for p in (b, a)]
    assert verify(sign(GOOD, first), keys, today=TODAY)
    with pytest.raises(RefusedError):
        verify(sign(GOOD, first), keys[:1], today=TODAY)


def test_folders_that_others_can_write_to(key: Path, tmp_path: Path) -> None:
    trusted = tmp_path / "home/hotfix/keys"
    trusted.chmod(0o777)
    with pytest.raises(RefusedError, match="others can write"):
        trusted_keys()
    trusted.chmod(0o755)
    (trusted / "ops.pub").chmod(0o666)
    with pytest.raises(RefusedError, match="others can write"):
        trusted_keys()


@pytest.mark.parametrize(
    "text",
    ["", "key = 7", 'key = "AAAA"', 'key = "!"', "\0", 'key = "' + "A" * 43 + '="\nexpires = "soon"', "expires = 2026"],
)
def test_damaged_keys(key: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "home/hotfix/keys/bad.pub").write_text(text)
    with pytest.raises(RefusedError, match="no sound key"):
        trusted_keys()
    secret = tmp_path / "bad.key"
    secret.write_text(text)
    secret.chmod(0o600)
    with pytest.raises(RefusedError):
        sign(GOOD, secret)


def test_keys_are_not_overwritten(key: Path, tmp_path: Path) -> None:
    with pytest.raises(ConflictError):
        keygen("ops", tmp_path / "keys", expires=None, trust=False)
    with pytest.raises(ConflictError):
        keygen("ops", tmp_path / "other", expires=None, trust=True)
    with pytest.raises(SpecError):
        keygen("../ops", tmp_path, expires=None, trust=False)
    with pytest.raises(NotFoundError):
        sign(GOOD, tmp_path / "none.key")


@given(st.text(max_size=300))
def test_no_text_breaks_it(text: str) -> None:
    keys = [PublicKey("a", bytes(32), None, Path("a"))]
    try:
        assert split(text)[0]
        verify(text, keys, today=TODAY)
    except (SpecError, RefusedError, AssertionError):
        pass
