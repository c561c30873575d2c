"""Linux namespaces: making and entering network namespaces, and which process is in which."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkit.errors import EffectError, RefusedError
from vmkit.system.process import ProcessId

_CLONE_NEWNET: Final = 0x40000000  # <linux/sched.h>; os.unshare came with Python 3.12
_libc = ctypes.CDLL(None, use_errno=True)


class NetworkNamespace:
    """A network namespace that lives as long as this handle, or a process in it, or a file bound to it, does.

    Attributes:
        fd: open file on it.
        inode: its number, as in `ls -L -i /proc/PID/ns/net`. The kernel gives it to another one once it is gone.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.inode = os.fstat(fd).st_ino

    @classmethod
    @contextlib.contextmanager
    def new(cls) -> Iterator[NetworkNamespace]:
        """Make one; the calling thread stays where it is.

        Raises:
            RefusedError: not permitted.
        """
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        fd = -1
        try:
            if _libc.unshare(_CLONE_NEWNET) != 0:
                raise RefusedError(
                    f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}", hint="run as root"
                )
            try:
                fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                _enter(before)
            yield cls(fd)
        finally:
            os.close(before)
            if fd >= 0:
                os.close(fd)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have the calling thread in it while the block runs: sockets it opens and programs it starts belong there."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self.fd)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        raise EffectError(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}")


@dataclass(frozen=True, slots=True)
class Resident:
    """A process and where it is.

    Attributes:
        id: the process, as this PID namespace sees it.
        command: its name (15 characters at most).
        network, pids: inodes of its network and PID namespace.
        inner_pid: its number in its own PID namespace; 1 is that namespace's init.
        mark: value of the environment variable that was asked for; '' where it has none.
    """

    id: ProcessId
    command: str
    network: int
    pids: int
    inner_pid: int
    mark: str


def own_networks() -> set[int]:
    """Network namespaces that are the machine's own: the caller's, and that of its init."""
    return {n for who in ("self", "1") if (n := namespace_of(who, "net"))}


def residents(variable: str) -> list[Resident]:
    """Every process of other network namespaces than the machine's own, and of these every one that has a variable.

    Args:
        variable: what `mark` is read from, in the environment that each was started with (proc_pid_environ(5)).
    """
    prefix = f"{variable}=".encode()
    ours = own_networks()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        network = namespace_of(entry.name, "net")
        if network is None or (network in ours and not _has(entry.name, prefix)):
            continue
        if resident := _resident(int(entry.name), network, prefix):
            found.append(resident)
    return found


def _has(pid: str, prefix: bytes) -> bool:
    """Whether a process was started with a variable; cheap, since it is asked of every process of the machine."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:  # noqa: PTH123
            text = f.read()
    except OSError:
        return False
    return text.startswith(prefix) or b"\0" + prefix in text


def _resident(pid: int, network: int, prefix: bytes) -> Resident | None:
    me = ProcessId.of(pid)
    pids = namespace_of(pid, "pid")
    if me is None or pids is None:
        return None
    folder = Path(f"/proc/{pid}")
    try:
        command = (folder / "comm").read_text().rstrip("\n")
        status = (folder / "status").read_text()
        environment = (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    inner = next((int(line.split()[-1]) for line in status.splitlines() if line.startswith("NSpid:")), pid)
    mark = next((os.fsdecode(e.removeprefix(prefix)) for e in environment if e.startswith(prefix)), "")
    return Resident(me, command, network, pids, inner, mark)


def namespace_of(pid: int | str, kind: str) -> int | None:
    """Inode of a process's namespace ('net', 'pid', 'mnt', 'uts'); None if the process is gone or not ours to see."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino  # noqa: PTH116 - in a loop over every process
    except OSError:
        return None


def pid_namespaces() -> set[int]:
    """The PID namespaces of all processes that can be seen from here."""
    return {n for entry in os.scandir("/proc") if entry.name.isdigit() and (n := namespace_of(entry.name, "pid"))}


def set_hostname(name: str) -> None:
    """Name this UTS namespace.

    Raises:
        RefusedError: not permitted.
    """
    try:
        socket.sethostname(name)
    except OSError as e:
        raise RefusedError(f"cannot set the host name: {e.strerror}", hint="run as root") from e
