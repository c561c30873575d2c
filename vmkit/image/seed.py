"""The NoCloud seed of a VM: what cloud-init is told, merged from what the user says and what vmkit adds. Pure.

Formats: https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html (the files),
https://cloudinit.readthedocs.io/en/latest/explanation/format.html (kinds of user-data) and
https://cloudinit.readthedocs.io/en/latest/reference/network-config-format-v2.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vmkit.errors import SpecError
from vmkit.values import quoted

CLOUD_CONFIG: Final = "#cloud-config"
KINDS: Final = {
    "#cloud-config-archive": "text/cloud-config-archive",
    "#cloud-config-jsonp": "text/cloud-config-jsonp",
    CLOUD_CONFIG: "text/cloud-config",
    "#include-once": "text/x-include-once-url",
    "#include": "text/x-include-url",
    "#cloud-boothook": "text/cloud-boothook",
    "#part-handler": "text/part-handler",
    "## template: jinja": "text/jinja2",
    "#!": "text/x-shellscript",
}
"""First line of a user-data file, and the MIME type of what follows."""
MULTIPART: Final = ("content-type: multipart/", "mime-version:")


@dataclass(frozen=True, slots=True)
class Login:
    """Who may log in, and how.

    Attributes:
        user: account that is made; None for the default user of the image, whatever its name is.
        keys: public ssh keys, one line each.
        password: crypt(5) hash for the console; None leaves the account without a password.
    """

    user: str | None = None
    keys: tuple[str, ...] = ()
    password: str | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """A network card as the guest shall set it up: `address` is 'dhcp', 'none' or ADDRESS/PREFIX."""

    mac: str
    address: str
    gateway: str | None = None


@dataclass(frozen=True, slots=True)
class Seed:
    """The files of a seed. `network_config` is None where cloud-init's own default (DHCP on the first card) will do."""

    meta_data: str
    user_data: str
    network_config: str | None = None

    @property
    def files(self) -> dict[str, bytes]:
        """Content by file name."""
        found = {"meta-data": self.meta_data.encode(), "user-data": self.user_data.encode()}
        if self.network_config is not None:
            found["network-config"] = self.network_config.encode()
        return found


def kind_of(text: str) -> str | None:
    """MIME type of user-data, as its first line says; 'multipart' for a MIME archive, None for nothing known."""
    head = text.lstrip().lower()
    if head.startswith(MULTIPART):
        return "multipart"
    return next((kind for start, kind in KINDS.items() if head.startswith(start)), None)


def config_of(text: str, path: str = "user_data") -> dict[str, Any]:
    """The mapping in a cloud-config text.

    Raises:
        SpecError: it is not YAML, or no mapping; says where.
    """
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(e, "problem", None) or str(e).splitlines()[0]
        raise SpecError(f"{where}not YAML: {problem}", path=path) from e
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise SpecError("a cloud-config is a mapping of names", path=path, hint="begin with 'packages: [...]', say")
    return found


def user_data(given: Mapping[str, Any] | str | None, login: Login, path: str = "user_data") -> str:
    """User-data with what lets `login` in.

    A cloud-config is merged; anything else (a script, an archive) becomes one part of two in a MIME archive, which
    cloud-init merges itself.

    Raises:
        SpecError: it is of no known kind, or sets what `login` sets too.
    """
    if given is None or isinstance(given, Mapping):
        return _text(merged(dict(given or {}), login, path))
    kind = kind_of(given)
    if kind is None:
        first = next(iter(given.strip().splitlines()), "")
        raise SpecError(
            f"its first line, {quoted(first)}, says nothing that cloud-init knows",
            path=path,
            hint="begin with #cloud-config, or with #!/bin/sh for a script; user_data_file names a file",
        )
    if kind == "text/cloud-config":
        return _text(merged(config_of(given, path), login, path))
    return _archive(_text(merged({}, login, path)), given, kind)


def merged(config: dict[str, Any], login: Login, path: str = "user_data") -> dict[str, Any]:
    """A cloud-config with what lets `login` in. What the user says wins; keys are added to the user's own.

    Raises:
        SpecError: both set a password.
    """
    found = dict(config)
    users = found.get("users")
    listed: list[Any] = users if isinstance(users, list) else []
    name = login.user or _in_charge(users)
    if name is None:
        _add_keys(found, login.keys)
        if login.password:
            chpasswd = found.get("chpasswd") or {}
            if found.get("password") or (isinstance(chpasswd, dict) and {"list", "users"} & set(chpasswd)):
                raise SpecError(
                    "the password of the default user is set here too", path=path, hint="leave one of them out"
                )
            found["password"] = login.password
            found["chpasswd"] = {"expire": False, **chpasswd}
        return found
    position = next((i for i, u in enumerate(listed) if isinstance(u, dict) and u.get("name") == name), None)
    account = _new_account(name) if position is None else dict(listed[position])
    _add_keys(account, login.keys)
    if login.password:
        if {"passwd", "hashed_passwd", "plain_text_passwd"} & set(account):
            raise SpecError(f"the password of '{name}' is set here too", path=path, hint="leave one of them out")
        account |= {"hashed_passwd": login.password, "lock_passwd": False}
    rest = [u for i, u in enumerate(listed) if i != position]
    found["users"] = [account, *rest]
    if name == "root":
        found.setdefault("disable_root", False)
    return found


def _in_charge(users: Any) -> str | None:
    """The first account of a list of users; None where the image's own stays in charge: no list, or one with it."""
    if not isinstance(users, list) or "default" in users:
        return None
    return next((str(u["name"]) for u in users if isinstance(u, dict) and u.get("name")), None)


def _new_account(name: str) -> dict[str, Any]:
    if name == "root":
        return {"name": name}
    return {"name": name, "shell": "/bin/bash", "sudo": "ALL=(ALL) NOPASSWD:ALL"}


def login_user(given: Mapping[str, Any] | str | None, asked: str | None) -> str | None:
    """The account that `user_data` lets in; None for the default user of the image."""
    if asked:
        return asked
    if isinstance(given, str):
        if kind_of(given) != "text/cloud-config":
            return None
        given = config_of(given)
    return _in_charge((given or {}).get("users"))


def meta_data(instance: str, hostname: str) -> str:
    """The meta-data. As long as `instance` stays the same, cloud-init runs nothing a second time."""
    return _yaml({"instance-id": instance, "local-hostname": hostname})


def instance_of(text: str) -> tuple[str, str]:
    """Instance id and host name of a meta-data file; '' for what it does not say."""
    found = config_of(text, "meta-data")
    return str(found.get("instance-id", "")), str(found.get("local-hostname", ""))


def hostname_of(name: str) -> str:
    """The name of a VM as a host name (RFC 1123 has no underscore, and no hyphen at an end)."""
    return name.replace("_", "-").strip("-.") or "vm"


def network_config(cards: Sequence[Card], nameservers: Sequence[str] = ()) -> str | None:
    """Network configuration, version 2; None where one card with DHCP is all there is, as cloud-init does by itself."""
    wanted = [c for c in cards if c.address != "none"]
    if not nameservers and len(cards) <= 1 and all(c.address == "dhcp" for c in cards):
        return None
    ethernets: dict[str, Any] = {}
    for number, card in enumerate(wanted):
        one: dict[str, Any] = {"match": {"macaddress": card.mac}}
        if card.address == "dhcp":
            one["dhcp4"] = True
        else:
            one["addresses"] = [card.address]
        if card.gateway:
            everywhere = "::/0" if ":" in card.gateway else "0.0.0.0/0"
            one["routes"] = [{"to": everywhere, "via": card.gateway}]
        if nameservers and number == 0:
            one["nameservers"] = {"addresses": list(nameservers)}
        ethernets[f"nic{number}"] = one
    return _yaml({"version": 2, "ethernets": ethernets})


def _add_keys(target: dict[str, Any], keys: Sequence[str]) -> None:
    own = target.get("ssh_authorized_keys") or []
    own = [own] if isinstance(own, str) else list(own)
    both = [*own, *(k for k in keys if k not in own)]
    if both:
        target["ssh_authorized_keys"] = both


def _text(config: Mapping[str, Any]) -> str:
    return f"{CLOUD_CONFIG}\n{_yaml(config)}"


def _yaml(value: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=1 << 16))


def _archive(ours: str, theirs: str, kind: str) -> str:
    """Both as one MIME archive. Ours comes first, so that theirs wins where both say something (dict(replace))."""
    import email
    import hashlib
    from email.message import Message
    from email.mime.multipart import MIMEMultipart
    from email.mime.text import MIMEText

    # Nothing contains its own digest, so the boundary is in neither part.
    archive = MIMEMultipart(boundary=f"vmkit-{hashlib.sha256((ours + theirs).encode()).hexdigest()[:32]}")
    first = MIMEText(ours, "cloud-config", "utf-8")
    first.add_header("Content-Disposition", "attachment", filename="vmkit.cfg")
    archive.attach(first)
    second: Message
    if kind == "multipart":
        second = email.message_from_string(theirs)
    else:
        second = MIMEText(theirs, kind.removeprefix("text/"), "utf-8")
        second.add_header("Content-Disposition", "attachment", filename="user-data")
    archive.attach(second)
    return archive.as_string()
