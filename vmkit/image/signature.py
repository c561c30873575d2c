"""OpenPGP signatures of files of checksums, verified by gpgv(1): detached (SHA256SUMS.gpg) or around the text."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from pathlib import Path
from typing import Final

from vmkit.errors import RefusedError, SpecError
from vmkit.progress import Note, Reporter, silent
from vmkit.system.process import find_program, run
from vmkit.values import quoted

_BEGIN: Final = b"-----BEGIN PGP "
_CLEAR: Final = b"-----BEGIN PGP SIGNED MESSAGE-----"
_ARMOUR = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL)
_VALID = re.compile(r"^\[GNUPG:\] VALIDSIG ([0-9A-F]{40,64}) ", re.MULTILINE)
_GOOD = re.compile(r"^\[GNUPG:\] GOODSIG [0-9A-F]+ (.*)$", re.MULTILINE)
_BAD = re.compile(r"^\[GNUPG:\] (BADSIG|EXPKEYSIG|REVKEYSIG|EXPSIG) ", re.MULTILINE)
_MISSING = re.compile(r"^\[GNUPG:\] NO_PUBKEY ([0-9A-F]+)", re.MULTILINE)


def is_clear_signed(data: bytes) -> bool:
    """Whether a file holds its own signature around the text, as Fedora's CHECKSUM does."""
    return data.lstrip().startswith(_CLEAR)


def verify(data: bytes, signature: bytes | None, keys: bytes, reporter: Reporter = silent) -> bytes:
    """What was signed, once one of the keys has signed it and no signature is bad.

    Args:
        data: the file.
        signature: its detached signature, armoured or not; None where the file holds it itself.
        keys: public keys that are trusted, as `gpg --export` writes them, armoured or not.
        reporter: told whose signature it is.

    Raises:
        RefusedError: the signature is bad, expired, or by none of the keys.
        UnsupportedError: gpgv is not installed.
        SpecError: the keys are none.
    """
    gpgv = find_program("gpgv", package="gpgv")
    with tempfile.TemporaryDirectory(prefix="vmkit-") as scratch:
        folder = Path(scratch)
        (folder / "keys.gpg").write_bytes(dearmoured(keys))
        (folder / "data").write_bytes(data)
        argv: list[str | Path] = [gpgv, "--homedir", folder, "--status-fd", "1", "--keyring", folder / "keys.gpg"]
        if signature is None:
            argv += ["--output", folder / "text", folder / "data"]
        else:
            (folder / "signature").write_bytes(signature)
            argv += [folder / "signature", folder / "data"]
        done = run(argv, check=False)
        _judge(done.stdout, done.stderr)
        reporter(Note(f"the checksums are signed by {', '.join(_GOOD.findall(done.stdout))}"))
        return data if signature is not None else (folder / "text").read_bytes()


def _judge(status: str, errors: str) -> None:
    valid, good, bad = _VALID.search(status), _GOOD.search(status), _BAD.search(status)
    if valid and good and not bad:
        return
    details = tuple(line for line in errors.strip().splitlines() if line)[-4:]
    if bad:
        words = {"BADSIG": "is wrong", "EXPSIG": "has expired", "EXPKEYSIG": "is by a key that has expired"}
        why = words.get(bad[1], "is by a key that was revoked")
        raise RefusedError(f"the signature of the checksums {why}", details=details, hint="fetch them again")
    if missing := _MISSING.findall(status):
        raise RefusedError(
            f"the checksums are signed by {', '.join(missing)}, and none of the keys is that one",
            details=details,
            hint="give the publisher's key: --keyring FILE",
        )
    raise RefusedError(
        "the checksums have no signature that gpgv can read",
        details=details,
        hint="see what the file is: it may be an error page; a signature beside the checksums is named by --signature",
    )


def dearmoured(keys: bytes) -> bytes:
    """Keys in the binary form that gpgv reads.

    Raises:
        SpecError: these are no keys.
    """
    hint = "write them with: gpg --export KEY >FILE"
    if not keys.lstrip().startswith(_BEGIN):
        if not keys or not keys[0] & 0x80:  # RFC 4880, 4.2: bit 7 of a packet's first byte is set
            raise SpecError("not a file of OpenPGP keys", path="keyring", hint=hint)
        return keys
    found = b""
    for block in _ARMOUR.findall(keys):
        body = block.replace(b"\r\n", b"\n").partition(b"\n\n")[2] or block
        lines = [line for line in body.splitlines() if line and not line.startswith(b"=") and b":" not in line]
        try:
            found += base64.b64decode(b"".join(lines), validate=True)
        except binascii.Error as e:
            raise SpecError(f"the OpenPGP keys are damaged: {e}", path="keyring", hint=hint) from e
    if not found:
        raise SpecError(f"{quoted(keys[:40].decode(errors='replace'))} are no public keys", path="keyring", hint=hint)
    return found
