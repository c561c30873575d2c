"""What the kernel keeps a process from: its user, capabilities, system call filter, namespaces and cgroup."""

from __future__ import annotations

import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CAPABILITIES: Final = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner"),
    *("sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice"),
    *("sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap"),
    *("mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf"),
    *("checkpoint_restore",),
)
"""By bit (Linux' include/uapi/linux/capability.h)."""
NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


@dataclass(frozen=True, slots=True)
class Confinement:
    """A process, as the kernel confines it.

    Attributes:
        uid: user that it acts as.
        user: that user's name here; None where it has none.
        capabilities: those that it may use now, by name.
        seccomp: filters of system calls that are installed; 0 for none; None if the kernel does not say.
        no_new_privileges: whether programs that it starts can gain no rights; None if the kernel does not say.
        namespaces: kinds of namespaces that it does not share with the process that asks; None if unknown.
        cgroup: its cgroup (version 2); None if unknown.
    """

    uid: int
    user: str | None
    capabilities: tuple[str, ...]
    seccomp: int | None
    no_new_privileges: bool | None
    namespaces: tuple[str, ...] | None
    cgroup: str | None


def confinement(pid: int) -> Confinement | None:
    """How a process is confined; None if it has ended, or if that may not be seen.

    Source: proc_pid_status(5), proc_pid_ns(5).
    """
    folder = Path(f"/proc/{pid}")
    try:
        lines = (folder / "status").read_text().splitlines()
        groups = (folder / "cgroup").read_text().splitlines()
    except OSError:
        return None
    status = {k: v.split() for k, _, v in (line.partition(":") for line in lines)}
    if "Uid" not in status or "CapEff" not in status:
        return None
    return _confinement(status, groups, _namespaces(folder))


def _confinement(status: dict[str, list[str]], groups: list[str], own: tuple[str, ...] | None) -> Confinement:
    uid, held = int(status["Uid"][1]), int(status["CapEff"][0], 16)
    mode = status.get("Seccomp", [None])[0]
    filters = status.get("Seccomp_filters", ["1"])[0]  # counted since Linux 5.9
    privileges = status.get("NoNewPrivs", [None])[0]
    return Confinement(
        uid=uid,
        user=_name(uid),
        capabilities=tuple(name for bit, name in enumerate(CAPABILITIES) if held >> bit & 1),
        seccomp=None if mode is None else 0 if mode == "0" else max(1, int(filters or 1)),
        no_new_privileges=None if privileges is None else privileges == "1",
        namespaces=own,
        cgroup=next((g.removeprefix("0::") for g in groups if g.startswith("0::")), None),
    )


def _name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _namespaces(folder: Path) -> tuple[str, ...] | None:
    own = []
    for name in NAMESPACES:
        try:
            if (folder / "ns" / name).readlink() != Path(f"/proc/self/ns/{name}").readlink():
                own.append(name)
        except FileNotFoundError:  # a kernel without that kind
            continue
        except OSError:  # another user's process
            return None
    return tuple(own)
