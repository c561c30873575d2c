"""The first process of a lab host: python -m vmkit.lab.pair.init CONFIG, in fresh mount, UTS and PID namespaces.

It makes the host's view of the file system, starts its daemons, and then only collects the dead. When it dies the
kernel kills everything else in its PID namespace (pid_namespaces(7)), which is how a host is switched off.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from vmkit.errors import VmkitError
from vmkit.lab.layout import FURNISHED, MARK
from vmkit.lab.pair.config import HOME, InitConfig
from vmkit.system import mounts
from vmkit.system.namespaces import set_hostname
from vmkit.system.process import spawn


def furnish(config: InitConfig) -> None:
    """Name the host and lay its own files over the machine's."""
    set_hostname(config.hostname)
    mounts.sysfs()
    for source, target in config.binds:
        # A machine may lack /etc/hostname, say; but without a folder of libvirt's own two hosts would share one.
        if Path(target).exists() or Path(source).is_dir():
            mounts.bind(Path(source), Path(target))
    for folder in config.tmpfs:
        # A copy of a mount keeps what it shows alive: a network namespace in /run/netns, a container's files.
        mounts.detach_under(Path(folder))
        mounts.tmpfs(Path(folder))
    for folder in config.folders:
        Path(folder).mkdir(parents=True, exist_ok=True)


def start_daemons(config: InitConfig) -> dict[int, str]:
    """Start every daemon; returns the names of those that run by process number."""
    running = {}
    for daemon in config.daemons:
        try:
            running[spawn(daemon.argv, log=Path(daemon.log)).pid] = daemon.name
        except VmkitError as e:
            _ended(daemon.name, e.message)
    return running


def collect(daemons: dict[int, str]) -> None:
    """Reap every process that ends, until no daemon is left.

    Why a daemon ended is logged, and left in a file of its name in FURNISHED, where who waits for it looks.
    """
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            _say("every daemon has ended")
            return
        if name := daemons.pop(pid, None):
            _ended(name, f"{name} ended with status {os.waitstatus_to_exitcode(status)}")


def _ended(name: str, why: str) -> None:
    _say(why)
    (Path(FURNISHED) / name).write_text(f"{why}\n")


def _say(text: str) -> None:
    sys.stderr.write(f"init: {text}\n")
    sys.stderr.flush()


def main() -> None:
    """Be the init of the host that argv[1] describes."""
    config = InitConfig.parse(json.loads(Path(sys.argv[1]).read_text()))
    # The caller's environment is none of the host's business: LIBVIRT_DEBUG or VMKIT_CONNECT would change its daemons.
    keep = {k: v for k in ("PATH", "TZ", MARK) if (v := os.environ.get(k))}
    os.environ.clear()
    os.environ.update(keep, HOME=HOME, LC_ALL="C")
    furnish(config)
    collect(start_daemons(config))


if __name__ == "__main__":
    main()
