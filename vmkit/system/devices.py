"""The machine whose devices are handed out: this one, by sysfs and rtnetlink, or one behind ssh, by its own tools."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import join, quote
from typing import Any, Final, Protocol

from vmkit.errors import EffectError, NotFoundError, RefusedError, UnsupportedError
from vmkit.system import vf
from vmkit.system.files import ensure_dir, write_atomic
from vmkit.system.process import Completed, run
from vmkit.system.shell import Shell

PATIENCE: Final = 120.0
"""Seconds for one call: making virtual functions waits for their drivers (6 s seen on an emulated card)."""


class DeviceHost(Protocol):
    """What can be done to the devices of a machine. Everything needs root there."""

    where: str
    """The machine, for messages."""

    def capture(self, script: str) -> str:
        """What a shell script prints. Raises as Shell.run_script."""

    def write(self, path: str, text: str) -> None:
        """Write a file of sysfs in one go.

        Raises:
            NotFoundError: there is no such file. RefusedError: not permitted. EffectError: the kernel says no.
        """

    def link(self, path: str) -> str | None:
        """Last part of what a symbolic link leads to; None where there is none."""

    def run(self, argv: Sequence[str], *, stdin: str = "") -> Completed:
        """Run a program to its end, whatever its exit status."""

    def vf_settings(self, net: str) -> dict[int, vf.VfSettings]:
        """The settings of the virtual functions of a network interface, by number. Raises NotFoundError."""

    def change_vf(self, net: str, number: int, changes: Mapping[str, Any]) -> None:
        """Change settings of a virtual function, one by one. Raises as vf.write_netlink."""

    def set_up(self, net: str) -> None:
        """Bring a network interface up."""

    def swap(self, path: str, old: str | None, new: str | None) -> bool:
        """Replace a small file if it holds `old` (None: is not there); `new` None removes it. False if it does not.

        No two calls, of whatever process that goes through here, see the same old content.
        """


class LocalDevices:
    """This machine."""

    where = "this machine"

    def capture(self, script: str) -> str:
        return Shell.local().run_script(script, timeout=PATIENCE).stdout

    def write(self, path: str, text: str) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as e:
            raise _cannot(path, text, e.errno or 0, e.strerror or str(e)) from e

    def link(self, path: str) -> str | None:
        try:
            return Path(path).readlink().name
        except OSError:
            return None

    def run(self, argv: Sequence[str], *, stdin: str = "") -> Completed:
        return run(argv, stdin=stdin, timeout=PATIENCE, check=False)

    def vf_settings(self, net: str) -> dict[int, vf.VfSettings]:
        return vf.read_netlink(net)

    def change_vf(self, net: str, number: int, changes: Mapping[str, Any]) -> None:
        vf.write_netlink(net, number, changes)

    def set_up(self, net: str) -> None:
        from vmkit.system.netlink import Links

        with Links() as links:
            links.set(net, up=True)

    def swap(self, path: str, old: str | None, new: str | None) -> bool:
        file = Path(path)
        ensure_dir(file.parent)
        try:
            lock = os.open(file.parent / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as e:
            raise RefusedError(f"cannot write {file.parent}: not permitted", hint="run as root") from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held for a moment only, also by the script of ShellDevices
            now = file.read_text().rstrip("\n") if file.exists() else None
            if now != old:
                return False
            if new is None:
                file.unlink(missing_ok=True)
            else:
                write_atomic(file, new + "\n", mode=0o600)
            return True
        finally:
            os.close(lock)


class ShellDevices:
    """A machine behind ssh, by sh, iproute2 and flock(1) of util-linux. Each call is a round trip."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.where = shell.where

    def capture(self, script: str) -> str:
        return self.shell.run_script(script, timeout=PATIENCE).stdout

    def _do(self, script: str) -> Completed:
        return self.shell.run_script(
            f"LC_ALL=C PATH=$PATH:/usr/sbin:/sbin; export LC_ALL PATH\n{script}", timeout=PATIENCE
        )

    def write(self, path: str, text: str) -> None:
        done = self._do(f"[ -e {quote(path)} ] || exit 44; printf %s {quote(text)} >{quote(path)}")
        if done.status == 0:
            return
        said = " ".join(done.stderr.split())
        code = errno.ENOENT if done.status == 44 else errno.EACCES if "ermission denied" in said else 0
        raise _cannot(path, text, code, said.rpartition(": ")[2] or f"status {done.status}")

    def link(self, path: str) -> str | None:
        done = self._do(f"readlink {quote(path)}")
        return done.stdout.strip().rpartition("/")[2] or None

    def run(self, argv: Sequence[str], *, stdin: str = "") -> Completed:
        return self._do(f"printf %s {quote(stdin)} | {join(argv)}")

    def vf_settings(self, net: str) -> dict[int, vf.VfSettings]:
        done = self._do(f"ip -j link show dev {quote(net)}")
        try:
            (link,) = json.loads(done.stdout)
        except ValueError as e:
            raise NotFoundError(
                f"no network interface named {net} on {self.where}", hint="see what there is: vmkit sriov list, ip link"
            ) from e
        return {int(v["vf"]): _from_ip(v) for v in link.get("vfinfo_list", ())}

    def change_vf(self, net: str, number: int, changes: Mapping[str, Any]) -> None:
        for name, words in _ip_words(changes):
            done = self._do(join(["ip", "link", "set", "dev", net, "vf", str(number), *words]))
            if done.status:
                said = " ".join(done.stderr.split()).removeprefix("RTNETLINK answers: ")
                code = next((c for c, word in _IP_SAYS.items() if word in said), 0)
                raise vf.setting_error(net, number, name, code, said)

    def set_up(self, net: str) -> None:
        done = self._do(join(["ip", "link", "set", "dev", net, "up"]))
        if done.status:
            raise EffectError(
                f"bringing {net} up on {self.where}: {' '.join(done.stderr.split())}",
                hint=f"see its state there: ip link show {net}",
            )

    def swap(self, path: str, old: str | None, new: str | None) -> bool:
        file, folder = quote(path), quote(str(Path(path).parent))
        test = f"[ ! -e {file} ]" if old is None else f'[ "$(cat {file} 2>/dev/null)" = {quote(old)} ]'
        act = f"rm -f {file}" if new is None else f"printf '%s\\n' {quote(new)} >{file}.new && mv {file}.new {file}"
        done = self._do(
            f"umask 077; mkdir -p {folder} && exec 9>{folder}/.lock && flock 9 || exit 1\n{test} || exit 45\n{act}"
        )
        if done.status not in (0, 45):
            text = f"cannot write {path} on {self.where}: {' '.join(done.stderr.split())}"
            raise RefusedError(text, hint="log in there as root")
        return done.status == 0


def devices_of(uri: str) -> DeviceHost:
    """The machine that a libvirt URI names.

    Raises:
        UnsupportedError: it is another one, and the URI does not lead there by ssh.
    """
    try:
        shell = Shell.of_uri(uri)
    except UnsupportedError as e:
        raise UnsupportedError(
            f"devices of {uri} can be handed out only on that host or by ssh",
            hint="run vmkit there, or connect by ssh: vmkit -c qemu+ssh://root@HOST/system ...",
        ) from e
    return ShellDevices(shell) if shell.remote else LocalDevices()


def _cannot(path: str, text: str, code: int, said: str) -> RefusedError | EffectError:
    what = f"writing {text.strip() or 'nothing'} to {path}: {said}"
    if code == errno.ENOENT:
        return NotFoundError(what, hint="see what is there: vmkit device list, vmkit sriov list")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RefusedError(what, hint="run as root")
    return EffectError(what, hint="what the driver said of it is in the kernel's log: dmesg")


_IP_SAYS: Final = {95: "not supported", 22: "Invalid argument", 1: "not permitted", 13: "ermission denied"}


def _from_ip(info: Mapping[str, Any]) -> vf.VfSettings:
    """One entry of `vfinfo_list` of `ip -j link`. A list of VLANs holds one empty entry where there is none."""
    vlans = info.get("vlan_list") or [{}]
    return vf.VfSettings(
        mac=info.get("address"),
        vlan=int(vlans[0].get("vlan", 0)),
        qos=int(vlans[0].get("qos", 0)),
        max_tx_rate=info.get("rate", {}).get("max_tx"),
        spoofcheck=info.get("spoofchk"),
        trust=info.get("trust"),
    )


def _ip_words(changes: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    made: dict[str, list[str]] = {}
    for name, value in changes.items():
        match name:
            case "mac":
                made[name] = ["mac", str(value)]
            case "vlan" | "qos":
                made["vlan"] = ["vlan", str(changes.get("vlan", 0)), "qos", str(changes.get("qos", 0))]
            case "max_tx_rate":
                made[name] = ["max_tx_rate", str(value)]
            case "spoofcheck":
                made[name] = ["spoofchk", "on" if value else "off"]
            case "trust":
                made[name] = ["trust", "on" if value else "off"]
    return list(made.items())


def this_process() -> tuple[str, str, str, int, int]:
    """Host name, boot, PID namespace, process number and start time of the calling process."""
    from vmkit.system.process import ProcessId

    me = ProcessId.this()
    return os.uname().nodename, _boot(), _namespace(), me.pid, me.start


def process_lives(boot: str, namespace: str, pid: int, start: int) -> bool | None:
    """Whether that process still runs; None where this cannot be told from here: another boot's or machine's."""
    from vmkit.system.process import ProcessId

    if boot != _boot():
        return None
    return ProcessId(pid, start).alive() if namespace == _namespace() else None


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""
