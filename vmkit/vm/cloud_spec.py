"""What a spec says to cloud-init: the fields, their check, files that they name, and how they are remembered."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from vmkit.errors import SpecError
from vmkit.image import seed, seed_check
from vmkit.values import Bytes, quoted

FILE_LIMIT: Final = 1 << 20
"""Largest file that is taken into a seed, bytes."""
GENERATE: Final = "generate"
SEALED: Final = "sealed:"
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\Z")
_HASH = re.compile(r"\$(1|2[aby]|5|6|7|y|gy)\$[./A-Za-z0-9$=,]{8,200}\Z", re.ASCII)


class CloudInitSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What cloud-init does when the guest boots for the first time.

    Attributes:
        user: account that is made, with sudo, in place of the image's default user; None keeps that one.
        ssh_keys: public keys that let in; in files also paths of such. vmkit's own key is always added; without any
            here, those of the user who creates the VM are, too.
        password: 'generate' for one that is shown once, or a crypt(5) hash. For the console; ssh asks for keys.
        hostname: None is the name of the VM.
        user_data: a mapping, or the text of a user-data file of any kind; `user_data_file` names the file instead.
        network_config: version 1 or 2, in place of what `nics` says; `network_config_file` names a file instead.
        nameservers: DNS servers of the first card, where DHCP does not tell them.
    """

    user: str | None = None
    ssh_keys: tuple[str, ...] = ()
    password: str | None = None
    hostname: str | None = None
    user_data: dict[str, Any] | str | None = None
    network_config: dict[str, Any] | None = None
    nameservers: tuple[str, ...] = ()


def check(spec: CloudInitSpec, path: Callable[[str], str]) -> tuple[str, ...]:
    """Check what types alone cannot. `path` makes the path of a field.

    Returns:
        What the user should know, though it may be right.

    Raises:
        SpecError: a field is wrong; its message shows no secret.
    """
    if spec.user is not None and not _USER.match(spec.user):
        raise SpecError(f"{quoted(spec.user)} is no user name", path=path("user"), hint="a-z, 0-9, '_' and '-'")
    if spec.hostname is not None and (len(spec.hostname) > 253 or not _HOST.match(spec.hostname)):
        raise SpecError(f"{quoted(spec.hostname)} is no host name", path=path("hostname"))
    for i, key in enumerate(spec.ssh_keys):
        if not seed_check.is_public_key(key):
            private = "PRIVATE KEY" in key
            what = "a private key does not belong here" if private else f"{quoted(key)} is not a public ssh key"
            raise SpecError(what, path=path(f"ssh_keys[{i}]"), hint="see ~/.ssh/id_*.pub")
    if spec.password is not None and spec.password != GENERATE and not _sound_hash(spec.password):
        raise SpecError(
            "a password stands here as its hash",
            path=path("password"),
            hint="password: generate, or what this prints: openssl passwd -6",
        )
    for i, server in enumerate(spec.nameservers):
        try:
            ipaddress.ip_address(server)
        except ValueError as e:
            raise SpecError(f"{quoted(server)} is not an address", path=path(f"nameservers[{i}]")) from e
    if spec.network_config is not None:
        _check_network(spec.network_config, spec.nameservers, path)
    return _check_user_data(spec.user_data, path("user_data"))


def _sound_hash(text: str) -> bool:
    return bool(_HASH.match(text)) or text.startswith(SEALED)


def _check_network(config: dict[str, Any], nameservers: tuple[str, ...], path: Callable[[str], str]) -> None:
    inner = config.get("network", config)
    if not isinstance(inner, dict) or inner.get("version") not in (1, 2):
        raise SpecError("has no version 1 or 2", path=path("network_config"), hint="begin with version: 2")
    if nameservers:
        raise SpecError("network_config has its own", path=path("nameservers"), hint="leave one of them out")


def _check_user_data(given: dict[str, Any] | str | None, path: str) -> tuple[str, ...]:
    if given is None or is_sealed(given):
        return ()
    if isinstance(given, dict):
        return seed_check.check(given, path)
    if len(given) > FILE_LIMIT:
        raise SpecError(f"larger than {Bytes(FILE_LIMIT)}", path=path)
    seed.user_data(given, seed.Login(), path)  # of no known kind?
    return seed_check.check(seed.config_of(given, path), path) if seed.kind_of(given) == "text/cloud-config" else ()


def inlined(data: Any, base: Path, at: str) -> Any:
    """The field as it stands in a file, with what it names in other files in place of their names.

    Args:
        data: value of `cloud_init`.
        base: folder that relative paths start from.
        at: path of the field, for messages.

    Raises:
        SpecError: a file cannot be read, or it is there beside what it would hold.
    """
    if not isinstance(data, dict):
        return data
    plain = dict(data)
    for field in ("user_data", "network_config"):
        name = plain.pop(f"{field}_file", None)
        if name is None:
            continue
        where = f"{at}.{field}_file"
        if plain.get(field) is not None:
            raise SpecError(f"there is {field} as well", path=where, hint="leave one of them out")
        text = _read(name, base, where)
        plain[field] = text if field == "user_data" else seed.config_of(text, where)
    keys = plain.get("ssh_keys")
    if isinstance(keys, list | tuple):
        plain["ssh_keys"] = [line for i, key in enumerate(keys) for line in _key(key, base, f"{at}.ssh_keys[{i}]")]
    return plain


def _key(key: Any, base: Path, at: str) -> list[Any]:
    if not isinstance(key, str) or seed_check.is_public_key(key) or "\n" in key or not key.strip():
        return [key]
    found = [line.strip() for line in _read(key, base, at).splitlines()]
    lines = [line for line in found if line and not line.startswith("#")]
    if not lines or not all(seed_check.is_public_key(line) for line in lines):
        near = " (it is the private one: add .pub)" if "PRIVATE KEY" in "".join(found) else ""
        raise SpecError(f"{quoted(key)} does not hold a public ssh key{near}", path=at, hint="see ~/.ssh/id_*.pub")
    return list(lines)


def _read(name: Any, base: Path, at: str) -> str:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise SpecError("not the name of a file", path=at)
    try:
        path = base / Path(name).expanduser()
        with path.open(encoding="utf-8") as f:
            text = f.read(FILE_LIMIT + 1)
    except (OSError, RuntimeError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else "not UTF-8 text" if isinstance(e, UnicodeDecodeError) else e
        raise SpecError(f"cannot read {quoted(name)}: {why}", path=at) from e
    if len(text) > FILE_LIMIT:
        raise SpecError(f"{quoted(name)} is larger than {Bytes(FILE_LIMIT)}", path=at)
    return text


def is_sealed(value: object) -> bool:
    """Whether this is what is remembered of a secret, and not the secret."""
    return isinstance(value, str) and value.startswith(SEALED)


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """The dumped field as the domain's metadata may hold it: every user of the host's libvirt can read that.

    User-data and a password's hash are replaced by a digest: the same for the same content, so that a change is seen,
    and slow to make (scrypt), since what it is of may be guessed.
    """
    plain = dict(data)
    if (given := plain.get("user_data")) is not None and not is_sealed(given):
        if isinstance(given, str) and seed.kind_of(given) == "text/cloud-config":
            given = seed.config_of(given)
        text = given if isinstance(given, str) else json.dumps(given, sort_keys=True, default=str)
        plain["user_data"] = _digest(text)
    if (password := plain.get("password")) not in (None, GENERATE) and not is_sealed(password):
        plain["password"] = _digest(str(password))
    return plain


def _digest(text: str) -> str:
    # 16 MiB and about 50 ms (RFC 7914's parameters for interactive logins). The salt is fixed: equal content has to
    # give equal digests, also on another host.
    raw = hashlib.scrypt(text.encode(errors="surrogatepass"), salt=b"vmkit cloud-init", n=2**14, r=8, p=1, dklen=16)
    return SEALED + raw.hex()
