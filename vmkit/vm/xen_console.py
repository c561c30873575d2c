"""Where Xen's console daemon logs what guests write: vmkit reads it where that is its own storage pool."""

from __future__ import annotations

import re
from typing import Final

from vmkit.errors import VmkitError
from vmkit.hypervisor.host import Host
from vmkit.image.place import ensure_pool
from vmkit.system.shell import Shell

_SCRIPT: Final = "tr '\\0' '\\n' </proc/$(pidof -s xenconsoled)/cmdline\n"
_WITHIN: Final = 60.0
_LOGGED: Final = re.compile(r"--log=(guest|all)")


def log_name(host: Host, vm: str) -> str | None:
    """The volume that the console of a VM is logged to; None where the daemon logs nothing there.

    It is xenconsoled that names the file (tools/console/daemon/io.c, create_domain_log).
    """
    try:
        words = Shell.of_uri(host.uri).run_script(_SCRIPT, timeout=_WITHIN).stdout.split()
        folder = str(ensure_pool(host).folder)
    except VmkitError:
        return None
    logs = any(_LOGGED.fullmatch(w) for w in words) and f"--log-dir={folder}" in words
    return f"guest-{vm}.log" if logs else None
