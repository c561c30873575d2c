"""The overview of commands: which belong together, in the order in which one meets them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "VMs": (
        *("create", "clone", "apply", "diff", "list", "show", "explain", "start", "stop", "reboot", "pause", "resume"),
        "delete",
    ),
    "Reaching into a VM": ("wait", "ip", "ssh", "exec", "copy", "console", "log", "display", "screenshot"),
    "Changing a VM": ("set", "edit", "disk", "nic", "device", "limit", "rename"),
    "Keeping its state": ("snapshot", "save", "restore", "backup"),
    "Moving and mending it while it runs": ("migrate", "host", "hotfix"),
    "What VMs need": ("image", "network", "sriov"),
    "Hosts": ("doctor", "bench", "lab", "inventory"),
    "vmkit itself": ("jobs", "help", "completion"),
}


def sections(commands: Iterable[str]) -> dict[str, list[str]]:
    """The sections with those of these commands that are in them; a command that is in none is put into the last."""
    left = list(commands)
    found = {title: [n for n in names if n in left] for title, names in SECTIONS.items()}
    placed = {n for names in found.values() for n in names}
    found["vmkit itself"] += [n for n in left if n not in placed]
    return found
