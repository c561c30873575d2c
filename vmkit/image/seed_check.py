"""The check of a cloud-config before anything starts: keys that cloud-init knows, and the shape of values. Pure.

It finds what cloud-init would drop with a line in its log that nobody reads. Names of keys are those of cloud-init 22.4
(Debian 12) and 25.1 (Debian 13): https://cloudinit.readthedocs.io/en/latest/reference/modules.html. A key that is near
none of them is let through, with a warning, since newer versions know more.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vmkit.errors import SpecError
from vmkit.values import quoted

_NEAR: Final = 0.75


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_KEYS: Final = _words(
    """
    allow_public_ssh_keys allow_userdata ansible apk_repos apt apt_pipelining apt_reboot_if_required apt_update
    apt_upgrade authkey_hash autoinstall bootcmd byobu_by_default ca-certs ca_certs chef chpasswd
    cloud_config_modules cloud_final_modules cloud_init_modules create_hostname_file datasource datasource_list
    def_log_file device_aliases disable_ec2_metadata disable_root disable_root_opts disk_setup drivers fan
    final_message fqdn fs_setup groups growpart grub-dpkg grub_dpkg hostname install_hotplug interactive
    keyboard landscape locale locale_configfile log_cfgs lxd manage_etc_hosts manage_resolv_conf
    manual_cache_clean mcollective merge_how merge_type migrate mount_default_fields mounts no_ssh_fingerprints
    ntp output package_reboot_if_required package_update package_upgrade packages password phone_home
    power_state prefer_fqdn_over_hostname preserve_hostname puppet random_seed reporting resize_rootfs
    resolv_conf rh_subscription rpi rsyslog runcmd salt_minion snap spacewalk ssh ssh_authorized_keys
    ssh_deletekeys ssh_fp_console_blacklist ssh_genkeytypes ssh_import_id ssh_key_console_blacklist ssh_keys
    ssh_publish_hostkeys ssh_pwauth ssh_quiet_keygen ssh_redirect_user swap syslog_fix_perms system_info
    timezone ubuntu_advantage ubuntu_pro updates user users vendor_data vendor_data2 version wireguard
    write_files yum_repo_dir yum_repos zypper
    """
)
_USER_KEYS: Final = _words(
    """
    create_groups doas expiredate gecos groups hashed_passwd homedir inactive lock-passwd lock_passwd name no-
    create-home no-log-init no-user-group no_create_home no_log_init no_user_group passwd plain_text_passwd
    primary-group primary_group selinux-user selinux_user shell snapuser ssh-authorized-keys ssh-import-id
    ssh_authorized_keys ssh_import_id ssh_redirect_user sudo system uid
    """
)
_FILE_KEYS: Final = _words("append content defer encoding owner path permissions source")
_ENCODINGS: Final = ("gz", "gzip", "gz+base64", "gzip+base64", "gz+b64", "gzip+b64", "b64", "base64", "text/plain")
_SHAPES: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("bootcmd", "runcmd", "mounts", "ssh_authorized_keys", "write_files", "ssh_import_id"), (list,)),
    **dict.fromkeys(("packages", "snap", "ca_certs", "groups"), (list, dict, str)),
    "users": (list,),
    **dict.fromkeys(
        (
            *("apt", "chef", "chpasswd", "disk_setup", "growpart", "keyboard", "ntp", "phone_home", "power_state"),
            *("puppet", "salt_minion", "ssh_keys", "swap", "yum_repos", "ssh", "random_seed", "resolv_conf", "ansible"),
        ),
        (dict,),
    ),
    **dict.fromkeys(
        (
            *("package_update", "package_upgrade", "package_reboot_if_required", "apt_update", "apt_upgrade"),
            *("disable_root", "preserve_hostname", "prefer_fqdn_over_hostname", "ssh_deletekeys", "ssh_quiet_keygen"),
            *("no_ssh_fingerprints", "manage_resolv_conf", "create_hostname_file"),
        ),
        (bool,),
    ),
    **dict.fromkeys(("hostname", "fqdn", "password", "timezone", "final_message"), (str,)),
}
_TYPES: Final = {list: "a list", dict: "a mapping", str: "text", bool: "true or false"}


def check(config: Mapping[str, Any], path: str = "user_data") -> tuple[str, ...]:
    """Check a cloud-config.

    Returns:
        What the user should know, though it may be right.

    Raises:
        SpecError: cloud-init would not take it; `path` leads to the place.
    """
    warnings = []
    for key, value in config.items():
        if key not in _KEYS:
            _refuse_near(key, _KEYS, path)
            warnings.append(f"{path}.{key}: no key that vmkit knows of cloud-init 25.1; it is passed on as it is")
        shapes = _SHAPES.get(key)
        if shapes and value is not None and not isinstance(value, shapes):
            wanted = " or ".join(_TYPES[s] for s in shapes)
            raise SpecError(f"has to be {wanted}, not {_shown(value)}", path=f"{path}.{key}")
    _check_commands(config, path)
    for i, user in enumerate(config.get("users") or ()):
        _check_user(user, f"{path}.users[{i}]")
    for i, file in enumerate(config.get("write_files") or ()):
        _check_file(file, f"{path}.write_files[{i}]")
    _check_keys(config.get("ssh_authorized_keys"), f"{path}.ssh_authorized_keys")
    return tuple(warnings)


def _check_commands(config: Mapping[str, Any], path: str) -> None:
    for key in ("runcmd", "bootcmd"):
        for i, command in enumerate(config.get(key) or ()):
            plain = isinstance(command, list) and all(isinstance(w, str | int | float) for w in command)
            if not isinstance(command, str) and not plain:
                raise SpecError(
                    f"a command is text or a list of words, not {_shown(command)}",
                    path=f"{path}.{key}[{i}]",
                    hint="put quotation marks around it: to YAML a colon and a space make a mapping",
                )
    for i, package in enumerate(config["packages"] if isinstance(config.get("packages"), list) else ()):
        if not isinstance(package, str | list | dict):
            raise SpecError(f"a package is a name, not {_shown(package)}", path=f"{path}.packages[{i}]")


def _check_user(user: Any, path: str) -> None:
    if isinstance(user, str):
        return
    if not isinstance(user, dict):
        raise SpecError(f"a user is a name or a mapping, not {_shown(user)}", path=path)
    for key in user:
        if key not in _USER_KEYS:
            _refuse_near(str(key), _USER_KEYS, path)
            raise SpecError("no user has such a field", path=f"{path}.{key}", hint=f"known: {_listed(_USER_KEYS)}")
    if not isinstance(user.get("name", user.get("snapuser")), str):
        raise SpecError("a user needs a name", path=f"{path}.name")
    _check_keys(user.get("ssh_authorized_keys"), f"{path}.ssh_authorized_keys")


def _check_file(file: Any, path: str) -> None:
    if not isinstance(file, dict):
        raise SpecError(f"a file is a mapping, not {_shown(file)}", path=path, hint="{path: /etc/motd, content: Hello}")
    for key in file:
        if key not in _FILE_KEYS:
            _refuse_near(str(key), _FILE_KEYS, path)
            raise SpecError("no file has such a field", path=f"{path}.{key}", hint=f"known: {_listed(_FILE_KEYS)}")
    if not str(file.get("path", "")).startswith("/"):
        raise SpecError("a file needs an absolute path", path=f"{path}.path")
    if "permissions" in file and not isinstance(file["permissions"], str):
        raise SpecError(
            f"{_shown(file['permissions'])} is not what was meant: YAML reads 0644 as a number",
            path=f"{path}.permissions",
            hint="put quotation marks around it: '0644'",
        )
    if "encoding" in file and file["encoding"] not in _ENCODINGS:
        raise SpecError(
            f"{_shown(file['encoding'])} is no encoding",
            path=f"{path}.encoding",
            hint=f"one of {', '.join(_ENCODINGS)}",
        )


def _check_keys(keys: Any, path: str) -> None:
    for i, key in enumerate(keys if isinstance(keys, list) else ()):
        if not is_public_key(key):
            raise SpecError(f"{_shown(key)} is not a public ssh key", path=f"{path}[{i}]", hint="see ~/.ssh/id_*.pub")


def is_public_key(text: Any) -> bool:
    """Whether this is one line of an authorized_keys file (sshd(8)), with or without options before the key."""
    if not isinstance(text, str) or "PRIVATE KEY" in text or len(text.strip().splitlines()) != 1:
        return False
    words = text.split()
    kinds = ("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")
    return any(w.startswith(kinds) and n.startswith("AAAA") for w, n in itertools.pairwise(words))


def _refuse_near(key: str, known: frozenset[str], path: str) -> None:
    if near := difflib.get_close_matches(key.lower(), sorted(known), n=1, cutoff=_NEAR):
        raise SpecError("cloud-init knows no such key", path=f"{path}.{key}", hint=f"did you mean {near[0]}?")


def _listed(known: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(sorted(k for k in known if "-" not in k))


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else quoted(str(value))
