"""Where the parts of a lab lie on disk, and what a lab is called elsewhere. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkit.errors import RefusedError

MARK: Final = "VMKIT_LAB"
"""Environment variable of every process that a lab starts; its value is the lab's folder."""

FURNISHED: Final = "/run/vmkit-lab"
"""Folder that the init of a host in namespaces makes in the host's own /run. Before it is there, /run may still be the
machine's."""

_PLAIN = re.compile(r"/[A-Za-z0-9._/+@-]*\Z")


@dataclass(frozen=True, slots=True)
class Layout:
    """The folder of one lab. Everything the lab writes is below it, but for its lock."""

    folder: Path

    @classmethod
    def of(cls, home: Path, name: str) -> Layout:
        """The layout of the lab `name`, whose state is under vmkit's home."""
        return cls(home / "lab" / name)

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.folder.name

    @property
    def lock(self) -> Path:
        """Held while the lab is brought up or torn down. Names cannot begin with a dot, so no lab is called this."""
        return self.folder.parent / f".{self.name}.lock"

    @property
    def state(self) -> Path:
        """What the lab is made of."""
        return self.folder / "lab.json"

    @property
    def pool(self) -> Path:
        """Folder of the storage pool that all hosts share."""
        return self.folder / "pool"

    @property
    def key(self) -> Path:
        """Private key that the hosts let in as root; the public one is beside it."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """Host keys of the lab's hosts."""
        return self.folder / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """Configuration for ssh(1) that knows the lab's hosts, and nothing of the user's own."""
        return self.folder / "ssh_config"

    @property
    def ssh(self) -> Path:
        """Program that a libvirt URI names as its `command`; it is ssh with `ssh_config`."""
        return self.folder / "ssh"

    @property
    def alias(self) -> str:
        """Alias of the lab's link in the machine's own network namespace; says whose it is. At most 255 characters."""
        return f"vmkit lab {self.name} {hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]}"

    def host(self, hostname: str) -> Path:
        """Folder of one host's private files."""
        return self.folder / hostname

    def logs(self, part: str) -> Path:
        """Folder of the logs of a host, or of the switch."""
        return self.folder / part / "log"


def check_folder(folder: Path, hidden: Iterable[str] = ()) -> None:
    """See that a lab's folder can be named in the configuration of every program involved, and seen by the hosts.

    Args:
        folder: of the lab.
        hidden: folders below which it cannot be.

    Raises:
        RefusedError: it cannot.
    """
    hint = "set VMKIT_HOME to a folder like /var/lib/vmkit"
    if not _PLAIN.match(str(folder)):
        raise RefusedError(
            f"a lab's folder holds letters, digits and ./_+@- only, and {str(folder)!r} does not", hint=hint
        )
    for other in hidden:
        if folder.is_relative_to(other):
            raise RefusedError(f"a lab cannot live below {other}, where its hosts have files of their own", hint=hint)
