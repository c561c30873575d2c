"""Signatures of patch files: Ed25519 (RFC 8032), over the bytes of the file before its last table.

A signed file ends with::

    [signature]
    key = "ops"
    value = "base64 of 64 bytes"

and with nothing else after it, so that nothing in the file is left unsigned. Keys that are trusted on a machine are
files NAME.pub in trusted_folders(); NAME.pub is TOML with `key` (base64 of 32 bytes) and, if it ends one day, `expires`
(YYYY-MM-DD, the last day in UTC).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from vmkit.errors import ConflictError, RefusedError, SpecError
from vmkit.system.files import ensure_dir, home, open_regular, write_atomic
from vmkit.values import check_name, quoted

CONTEXT: Final = b"vmkit hotfix patch, version 1\n"
"""Goes before what is signed, so that a signature for something else is none for a patch."""
SYSTEM_KEYS: Final = Path("/etc/vmkit/hotfix-keys")
KEY_LIMIT: Final = 4096

_TAIL = re.compile(r'\n\[signature\]\nkey = "([^"\n]{1,64})"\nvalue = "([A-Za-z0-9+/]{86}==)"\n\Z', re.ASCII)
_TABLE = re.compile(r"^[^\w#\n]*(?:\[[ \t]*\"?'?signature|signature[ \t]*[.=])", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that signatures are verified with. `expires` is its last day; None if it does not expire."""

    name: str
    raw: bytes
    expires: date | None
    path: Path


@dataclass(frozen=True, slots=True)
class Verified:
    """A sound signature by a trusted key."""

    key: str
    path: str
    expires: str


def trusted_folders() -> tuple[Path, ...]:
    """Where trusted keys are: /etc/vmkit/hotfix-keys, and hotfix/keys in vmkit's own folder."""
    return SYSTEM_KEYS, home() / "hotfix" / "keys"


def split(text: str) -> tuple[str, str, str]:
    """What is signed, the key's name and the signature (base64); the latter two '' if there is no signature.

    Raises:
        SpecError: there is something after the signature, or it is not in the form that `sign` writes.
    """
    match = _TAIL.search(text)
    if match is not None and not _TABLE.search(text[: match.start()]):
        return text[: match.start()], match[1], match[2]
    if _TABLE.search(text):
        raise SpecError(
            "the signature is not the last thing in the file, or not in the form that sign writes",
            path="signature",
            hint="take it out and sign the file again: vmkit hotfix sign FILE --key KEYFILE",
        )
    return text, "", ""


def is_signed(text: str) -> bool:
    """Whether there is a signature, sound or not. Raises SpecError; see `split`."""
    return bool(split(text)[1])


def sign(text: str, key_file: Path) -> str:
    """The text with a signature in place of the one that it may have. `key_file` is what `keygen` wrote.

    Raises:
        NotFoundError, RefusedError: the key cannot be read, others can read it, or it is no Ed25519 key.
        SpecError: see `split`.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    body = split(text)[0].rstrip("\n") + "\n"
    with open_regular(key_file, "key", limit=KEY_LIMIT) as f:
        if os.fstat(f.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise RefusedError(f"others can read the key {key_file}", hint="make another: vmkit hotfix keygen")
        data = f.read()
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as e:
        raise RefusedError(f"{key_file} is no private key", hint="vmkit hotfix keygen NAME makes one") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise RefusedError(f"{key_file} is no Ed25519 key", hint="vmkit hotfix keygen NAME makes one")
    name = check_name(key_file.name.removesuffix(".key"), path="key")
    value = base64.b64encode(key.sign(CONTEXT + body.encode())).decode()
    return f'{body}\n[signature]\nkey = "{name}"\nvalue = "{value}"\n'


def verify(text: str, keys: Iterable[PublicKey], *, today: date) -> Verified | None:
    """The key that signed the text; None if it is not signed. Pure.

    Raises:
        SpecError: see `split`.
        RefusedError: the signature is wrong, its key is not trusted, or was so until a day that has passed.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    body, name, value = split(text)
    if not name:
        return None
    named = [k for k in keys if k.name == name]
    if not named:
        raise RefusedError(
            f"the patch is signed with the key {quoted(name)}, which is not trusted on this machine",
            hint=f"if it should be, put {name}.pub into {trusted_folders()[-1]}",
        )
    for key in named:
        try:
            Ed25519PublicKey.from_public_bytes(key.raw).verify(base64.b64decode(value), CONTEXT + body.encode())
        except InvalidSignature:
            continue
        if key.expires is not None and today > key.expires:
            raise RefusedError(
                f"the patch is signed with the key {quoted(name)}, which expired on {key.expires}",
                hint="have it signed with a key that is valid: vmkit hotfix sign --help",
            )
        return Verified(name, str(key.path), str(key.expires or ""))
    raise RefusedError(
        f"the signature of the patch is not by the key {quoted(name)}: the file was changed after it was signed, or "
        "signed with another key of that name",
        hint="get the file again from where it comes from",
    )


def trusted_keys() -> list[PublicKey]:
    """Every trusted key of this machine.

    Raises:
        RefusedError: others than root and this user can write to a folder or key, or a key file is not sound.
    """
    found = []
    for folder in trusted_folders():
        try:
            paths = sorted(folder.glob("*.pub"))
            if paths:
                _only_ours(folder)
        except OSError as e:
            raise RefusedError(f"cannot read the trusted keys in {folder}: {e.strerror}") from e
        for path in paths:
            _only_ours(path)
            found.append(read_public(path))
    return found


def read_public(path: Path) -> PublicKey:
    """Read NAME.pub. Raises NotFoundError, RefusedError."""
    with open_regular(path, "key", limit=KEY_LIMIT) as f:
        data = f.read()
    try:
        document = tomllib.loads(data.decode())
        raw = base64.b64decode(document["key"], validate=True)
        expires = document.get("expires")
        day = date.fromisoformat(expires) if expires is not None else None
        if len(raw) != 32 or document.keys() - {"key", "expires"}:
            raise ValueError(path)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as e:
        raise RefusedError(
            f"{quoted(str(path))} is no sound key", hint="remove it, or put the file there that keygen wrote"
        ) from e
    return PublicKey(path.name.removesuffix(".pub"), raw, day, path)


def keygen(name: str, folder: Path, *, expires: date | None, trust: bool) -> tuple[Path, Path]:
    """Make a pair of keys in `folder`: NAME.key, which only this user can read, and NAME.pub.

    Args:
        name: of the key.
        folder: made if it is missing, for this user only.
        expires: last day of it; None for never.
        trust: put NAME.pub among the trusted keys of this machine as well.

    Raises:
        SpecError: the name is not sound.
        ConflictError: a key of that name is there.
        RefusedError: a file cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    check_name(name, path="NAME")
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    trusted = trusted_folders()[-1] / f"{name}.pub"
    for path in (private, public, *([trusted] if trust else [])):
        if path.exists():
            raise ConflictError(f"there is a key {path} already", hint="choose another name")
    key = Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    text = f'key = "{base64.b64encode(raw).decode()}"\n' + (f'expires = "{expires}"\n' if expires else "")
    ensure_dir(folder, 0o700)
    write_atomic(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    write_atomic(public, text)
    if trust and trusted != public:
        ensure_dir(trusted.parent, 0o700)
        write_atomic(trusted, text)
    return private, public


def today() -> date:
    """The day that expiry is judged by."""
    return datetime.now(UTC).date()


def _only_ours(path: Path) -> None:
    info = path.stat()
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or info.st_uid not in (0, os.geteuid()):
        raise RefusedError(
            f"others can write to {path}, so what it says about trust counts for nothing",
            hint=f"chown root {path}; chmod go-w {path}",
        )
