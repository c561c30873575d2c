"""What a Vagrant box has on its disk beyond the host's own files. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

USER: Final = "vagrant"
"""The account that Vagrant expects (https://developer.hashicorp.com/vagrant/docs/boxes/base)."""
HOSTNAME: Final = "vmkit"
GROUPS: Final = ("libvirt", "kvm")
"""Groups of the disk that the account joins, as far as they are there."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One file or folder that is put onto the disk.

    Attributes:
        path: where, absolute.
        mode: type and permissions as in st_mode (inode(7)).
        owner: number of user and group.
        group: number of the group where it is another than the owner's.
        content: of a file.
        replaces: whether the disk may have such a file already.
    """

    path: str
    mode: int
    owner: int = 0
    group: int | None = None
    content: str = ""
    replaces: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is a file, and not a folder."""
        return self.mode >> 12 == 0o10


def edits(databases: Mapping[str, str], public_keys: Iterable[str], host_key: tuple[str, str]) -> list[Edit]:
    """All that makes a host a box: the account with a key and sudo, the host's name and its ssh key.

    Args:
        databases: the disk's passwd, shadow, group and gshadow.
        public_keys: for authorized_keys.
        host_key: private and public part of the host key. Machines of one box share it, as they share Vagrant's own.
    """
    number = free_number(databases["passwd"], databases["group"])
    shadow = _number_of(databases["group"], "shadow")
    keys = "".join(f"{key.strip()}\n" for key in public_keys)
    home = f"/home/{USER}"
    return [
        Edit("/etc/passwd", 0o100644, 0, 0, _passwd(databases["passwd"], number), True),
        Edit("/etc/group", 0o100644, 0, 0, _group(databases["group"], f"{USER}:x:{number}:"), True),
        Edit("/etc/shadow", 0o100640, 0, shadow, _shadow(databases["shadow"]), True),
        Edit("/etc/gshadow", 0o100640, 0, shadow, _group(databases["gshadow"], f"{USER}:!::"), True),
        Edit(home, 0o40755, number),
        Edit(f"{home}/.ssh", 0o40700, number),
        Edit(f"{home}/.ssh/authorized_keys", 0o100600, number, content=keys),
        Edit(f"/etc/sudoers.d/{USER}", 0o100440, content=f"{USER} ALL=(ALL:ALL) NOPASSWD: ALL\n"),
        Edit("/etc/ssh/ssh_host_ed25519_key", 0o100600, content=host_key[0], replaces=True),
        Edit("/etc/ssh/ssh_host_ed25519_key.pub", 0o100644, content=host_key[1], replaces=True),
        # Empty, a machine fills it with an identity of its own; missing, systemd would also set up every unit anew.
        Edit("/etc/machine-id", 0o100444, replaces=True),
        Edit("/etc/hostname", 0o100644, content=f"{HOSTNAME}\n", replaces=True),
        # Else sudo asks the network for the host's own name, and waits.
        Edit("/etc/hosts", 0o100644, content=_hosts(), replaces=True),
    ]


def _hosts() -> str:
    return f"127.0.0.1 localhost\n127.0.1.1 {HOSTNAME}\n::1 localhost ip6-localhost ip6-loopback\n"


def free_number(passwd: str, group: str) -> int:
    """The first number from 1000 that neither a user nor a group has."""
    taken = {line.split(":")[2] for text in (passwd, group) for line in text.splitlines() if line.count(":") >= 3}
    return next(n for n in range(1000, 60000) if str(n) not in taken)


def _number_of(group: str, name: str) -> int:
    return next((int(line.split(":")[2]) for line in group.splitlines() if line.startswith(f"{name}:")), 0)


def _passwd(text: str, number: int) -> str:
    return _with(text, f"{USER}:x:{number}:{number}:Vagrant:/home/{USER}:/bin/bash")


def _shadow(text: str) -> str:
    # '*': no password, and not locked either, since sshd refuses accounts that are.
    return _with(text, f"{USER}:*:19000:0:99999:7:::")


def _group(text: str, own: str) -> str:
    """`group` or `gshadow`: the account's own group, and its name at the end of those that it joins."""
    lines = []
    for line in _without(text):
        members = [m for m in line.rpartition(":")[2].split(",") if m and m != USER]
        if line.partition(":")[0] in GROUPS:
            line = f"{line.rpartition(':')[0]}:{','.join([*members, USER])}"
        lines.append(line)
    return "".join(f"{line}\n" for line in (*lines, own))


def _with(text: str, line: str) -> str:
    return "".join(f"{one}\n" for one in (*_without(text), line))


def _without(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and line.partition(":")[0] != USER]


def debugfs_script(changes: Iterable[Edit], folder: Path) -> str:
    """Commands for debugfs(8) that carry out the edits; the content of number N is in `folder`/N.

    `write` takes no path but a name in the current folder, and does not replace, hence `cd` and `rm`.
    """
    lines = []
    for number, edit in enumerate(changes):
        path = PurePosixPath(edit.path)
        lines.append(f"cd {path.parent}")
        if edit.is_file:
            lines += [f"rm {path.name}"] * edit.replaces
            lines.append(f"write {folder / str(number)} {path.name}")
        else:
            lines.append(f"mkdir {path.name}")
        group = edit.owner if edit.group is None else edit.group
        for field, value in (("mode", f"0{edit.mode:o}"), ("uid", str(edit.owner)), ("gid", str(group))):
            lines.append(f"set_inode_field {path.name} {field} {value}")
    return "".join(f"{line}\n" for line in lines)


def versions_of(names: Iterable[str]) -> list[str]:
    """Those names that are versions, newest first: numbers with dots, compared as numbers."""
    known = [n for n in names if n and all(part.isdigit() for part in n.split("."))]
    return sorted(known, key=lambda n: [int(part) for part in n.split(".")], reverse=True)
