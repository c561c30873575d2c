"""The folder of a VM's backups, on the VM's host: scripts that read and change it there, in one round trip each."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from vmkit.errors import EffectError, RefusedError, SpecError
from vmkit.hypervisor.host import Host
from vmkit.system.shell import Shell
from vmkit.values import check_name, quoted
from vmkit.vm.backup.manifest import MANIFEST, Backup, Listed, SideFile, judged, parse, to_json

QUICK_S: Final = 60.0
LONG_S: Final = 24 * 3600.0
"""For reading and copying whole disks."""

_LIST = """\
cd {repo} 2>/dev/null || exit 0
for d in */; do
  if [ -f "${{d}}{manifest}" ]; then printf 'm %s %s\\n' "$d" "$(base64 -w0 "${{d}}{manifest}")"; fi
done
find . -type f -printf 's %s %P\\n'
"""
_SIDE = """\
mkdir -p -m 0711 {repo}/files
cd {repo}/files
sum=$(sha256sum < {path}) && sum=${{sum%% *}}
file=$(printf %.16s "$sum")-{base}
if [ ! -f "$file" ]; then
  cp {path} ".$file.new"
  chmod 0600 ".$file.new"
  sync ".$file.new"
  mv ".$file.new" "$file"
fi
printf '%s %s\\n' "$sum" "$file"
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """A finished file: bytes, and digest."""

    size: int
    sha256: str
    capacity: int


class Repository:
    """The backups of one VM in one directory of its host.

    Attributes:
        folder: where, on the host.
    """

    def __init__(self, shell: Shell, folder: str) -> None:
        self._shell = shell
        self.folder = folder

    @classmethod
    def of(cls, host: Host, directory: str, vm: str) -> Repository:
        """The folder for a VM below a directory of its host.

        Raises:
            SpecError: the directory is not an absolute path, or the VM's name cannot be a folder's.
            UnsupportedError: the host is another machine, and its URI does not lead there by ssh.
        """
        shell = Shell.of_uri(host.uri)
        return cls(shell, f"{absolute(shell, directory)}/{check_name(vm)}")

    def path(self, *parts: str) -> str:
        """A path below the folder."""
        return "/".join((self.folder, *parts))

    def listing(self) -> tuple[Listed, ...]:
        """The backups that came to their end, oldest first; half ones have no manifest and are not seen."""
        out = self._run(_LIST.format(repo=_q(self.folder), manifest=MANIFEST), "list the backups")
        found, sizes = [], {}
        for line in out.splitlines():
            kind, first, rest = [*line.split(" ", 2), "", ""][:3]
            if kind == "m":
                where = self.path(first + MANIFEST)
                found.append(parse(base64.b64decode(rest).decode(errors="replace"), where=where))
            elif kind == "s":
                sizes[rest] = int(first)
        return judged(found, sizes)

    def prepare(self, partial: str) -> int:
        """Make the folder of a backup that is to be; returns the bytes that are free there.

        The hypervisor, which is another user on most hosts, has to pass through to the files that it is given.
        """
        script = f"mkdir -p -m 0711 {_q(self.folder)}\nmkdir -m 0711 {_q(self.path(partial))}\n"
        out = self._run(f"{script}df -B1 --output=avail {_q(self.folder)} | tail -1\n", "make the folder")
        return int(out.split()[-1])

    def rest_upon(self, file: str, parent: str) -> None:
        """Have an incremental file go on where it holds nothing at `parent`, a path relative to its folder."""
        script = f"qemu-img rebase -u -f qcow2 -F qcow2 -b {_q(parent)} {_q(file)}\n"
        self._run(script, "put an incremental file upon the one before")

    def measure(self, file: str) -> Measured:
        """See that a file of a disk is whole, bring it to the disk, and take its size and digest."""
        q = _q(file)
        script = (
            f"qemu-img check -q {q}\nsync {q}\nstat -c %s {q}\nsha256sum < {q}\n"
            f"""qemu-img info --output=json {q} | sed -n 's/.*"virtual-size": \\([0-9]*\\).*/\\1/p' | tail -1\n"""
        )
        size, digest, *_, capacity = self._run(script, "check what was written", timeout=LONG_S).split()
        return Measured(int(size), digest, int(capacity))

    def keep(self, role: str, path: str) -> SideFile:
        """Copy a file beside the backups, unless its content is there already."""
        script = _SIDE.format(repo=_q(self.folder), path=_q(path), base=_q(PurePosixPath(path).name))
        digest, file = self._run(script, f"copy {path}", timeout=LONG_S).split(" ", 1)
        return SideFile(role, path, file.strip(), digest)

    def commit(self, partial: str, backup: Backup) -> None:
        """Make a backup one that counts: its manifest, then its name, each on disk before the next."""
        folder, final = self.path(partial), self.path(backup.id)
        text = base64.b64encode(to_json(backup).encode()).decode()
        script = (
            f"cd {_q(folder)}\numask 077\nprintf %s {text} | base64 -d > {MANIFEST}\nsync {MANIFEST} .\n"
            f"mv {_q(folder)} {_q(final)}\nsync {_q(self.folder)}\n"
        )
        self._run(script, "write the manifest")

    def exists(self, name: str) -> bool:
        """Whether there is a folder of this name."""
        return "yes" in self._run(f"[ ! -d {_q(self.path(name))} ] || echo yes\n", "look at the folder")

    def remove(self, *names: str) -> None:
        """Remove folders of backups; those that are not there are no error. A manifest goes first."""
        for name in names:
            path = self.path(name)
            self._run(f"rm -f {_q(path)}/{MANIFEST}\nrm -rf {_q(path)}\n", "remove a backup", timeout=600.0)

    def differing(self, backups: Sequence[Backup]) -> tuple[str, ...]:
        """Files whose content is not what it was; every byte is read."""
        wanted = {f"{b.id}/{d.file}": d.sha256 for b in backups for d in b.disks}
        wanted |= {f"files/{s.file}": s.sha256 for b in backups for s in b.side}
        lines = "".join(f"sha256sum < {_q(self.path(name))} || echo gone\n" for name in wanted)
        out = self._run(lines, "read the backups", timeout=LONG_S).splitlines()
        now = [line.split(" ")[0] for line in out]
        return tuple(name for (name, digest), is_now in zip(wanted.items(), now, strict=True) if digest != is_now)

    def write_out(self, source: str, target: str) -> None:
        """Write a disk out of its chain into a new qcow2 file, and compare the two byte for byte.

        Raises:
            EffectError: it could not be written, or they differ.
        """
        script = (
            f"umask 077\nqemu-img convert -f qcow2 -O qcow2 {_q(source)} {_q(target)}\nsync {_q(target)}\n"
            f"qemu-img compare -q -f qcow2 -F qcow2 {_q(source)} {_q(target)}\n"
        )
        self._run(script, f"write {target}", timeout=LONG_S)

    def copy_out(self, side: SideFile, target: str) -> None:
        """Copy a side file to where a VM can use it; one that is there with this content is left."""
        source = _q(self.path("files", side.file))
        script = (
            f"if [ -e {_q(target)} ]; then cmp -s {source} {_q(target)}; exit; fi\n"
            f"umask 077\ncp {source} {_q(target + '.new')}\nsync {_q(target + '.new')}\n"
            f"mv {_q(target + '.new')} {_q(target)}\n"
        )
        self._run(script, f"put {target} back", timeout=LONG_S)

    def _run(self, script: str, what: str, *, timeout: float = QUICK_S) -> str:
        done = self._shell.run_script(f"set -e\nexport LC_ALL=C\n{script}", timeout=timeout)
        if done.status == 0:
            return done.stdout
        tail = (done.stderr.strip() or done.stdout.strip() or f"status {done.status}").splitlines()
        text = f"cannot {what} in {self.folder} on {self._shell.where}: {tail[-1]}"
        if "No space left" in done.stderr:
            raise EffectError(text, hint=f"free some space there: df -h {self.folder}")
        if "Permission denied" in done.stderr or "Read-only" in done.stderr:
            raise RefusedError(text, hint="give a directory that may be written to on the VM's host")
        raise EffectError(text, details=tuple(tail[-4:-1]))


def vms_in(host: Host, directory: str) -> tuple[str, ...]:
    """Names of the VMs that have a folder with backups in a directory of a host."""
    shell = Shell.of_uri(host.uri)
    script = f'cd {_q(absolute(shell, directory))} && for m in */*/{MANIFEST}; do echo "$m"; done\n'
    done = shell.run_script(script, timeout=QUICK_S)
    if done.status != 0:
        raise RefusedError(
            f"no directory {quoted(directory)} on {shell.where}",
            hint="give the directory that vmkit backup create was given; of another host as it is named there",
        )
    return tuple(sorted({line.split("/")[0] for line in done.stdout.splitlines() if "*" not in line}))


def absolute(shell: Shell, directory: str) -> str:
    """The directory as an absolute path; one of this machine may be given as it is seen from here.

    Raises:
        SpecError: it is of another machine and not absolute.
    """
    if "\n" in directory or "\0" in directory or not directory:
        raise SpecError(f"{quoted(directory)} is not a directory", path="DIR")
    if shell.remote:
        if not directory.startswith("/"):
            raise SpecError(
                f"{quoted(directory)} is not an absolute path on {shell.where}",
                path="DIR",
                hint="give it as that host has it, from / on",
            )
        return str(PurePosixPath(directory))
    return str(Path(directory).absolute())


def _q(text: str) -> str:
    return shlex.quote(text)
