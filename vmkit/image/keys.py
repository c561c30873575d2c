"""Keys and passwords that let people into guests: vmkit's own key pair, those of the user, generated passwords."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from vmkit.errors import EffectError
from vmkit.system.files import ensure_dir, home, locked, write_atomic
from vmkit.system.process import find_program, run

_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"
"""Without those that look alike on a console: l and 1, o and 0."""
_NAMES: Final = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")
"""Keys that ssh(1) tries by itself."""


def own_key_path() -> Path:
    """Where vmkit's own private key is; the public one is beside it, with `.pub`."""
    return home() / "ssh" / "id_ed25519"


def own_public_key() -> str | None:
    """The public half of vmkit's own key pair; None if there is none yet."""
    try:
        return own_key_path().with_suffix(".pub").read_text().strip()
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None


def make_own_key() -> str:
    """Make vmkit's own key pair if there is none, readable for this user only; returns the public half.

    Raises:
        RefusedError: a file cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    private = own_key_path()
    ensure_dir(private.parent, 0o700)
    with locked(private.parent / ".lock", busy="another process makes vmkit's ssh key", wait=10.0):
        if (found := own_public_key()) and private.exists():
            return found
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " vmkit"
        write_atomic(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), mode=0o600)
        write_atomic(private.with_suffix(".pub"), public + "\n")
    return public


def user_keys() -> dict[Path, str]:
    """Public keys of the user who calls, by the path of the private one: those that ssh(1) tries by itself."""
    found = {}
    for name in _NAMES:
        private = Path.home() / ".ssh" / name
        try:
            text = private.with_name(f"{name}.pub").read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text and "\n" not in text:
            found[private] = text
    return found


def new_password() -> str:
    """A password that is easy to type: 15 letters and digits in three groups, 75 bits."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(3))


def hashed(password: str) -> str:
    """The crypt(5) hash of a password (SHA-512, which every guest knows). It goes to openssl(1) by standard input.

    Raises:
        UnsupportedError: openssl is not installed.
        EffectError: it failed.
    """
    program = find_program("openssl", package="openssl")
    text = run([program, "passwd", "-6", "-stdin"], stdin=password + "\n", timeout=30.0).stdout.strip()
    if not text.startswith("$6$"):
        raise EffectError("openssl made no password hash")
    return text
