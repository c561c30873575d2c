"""The marks that incremental backups start from: libvirt's checkpoints, each a bitmap in the disks of a VM."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from vmkit.errors import EffectError, UnsupportedError

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain

PREFIX: Final = "vmkit-"
"""Checkpoints of other tools have other names and are left alone."""

_REMOVE: Final = """\
set -e
for disk in {disks}; do
  qemu-img info -U --backing-chain --output=json "$disk" |
    sed -n 's/^ *"filename": "\\(\\/.*\\)",\\{{0,1\\}}$/\\1/p' | sort -u | while read -r file; do
    for mark in {marks}; do
      if qemu-img info -U --output=json "$file" | grep -qF "\\"name\\": \\"$mark\\""; then
        qemu-img bitmap --remove "$file" "$mark"
      fi
    done
  done
done
"""


_FIND: Final = """\
for disk in {disks}; do
  qemu-img info -U --backing-chain --output=json "$disk" 2>/dev/null |
    grep -B1 '"granularity"' | sed -n 's/^ *"name": "\\([^"]*\\)".*/\\1/p'
done | sort -u
"""


def split_marks(checkpoints: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Checkpoints of vmkit, and of other tools. Pure."""
    ours = tuple(c for c in checkpoints if c.startswith(PREFIX))
    return ours, tuple(c for c in checkpoints if c not in ours)


def found(domain: Domain) -> tuple[str, ...]:
    """Names of all that counts changes on the disks of a VM: checkpoints, and bitmaps that are in the disks without.

    QEMU cannot go back to an internal snapshot while there is any: the VM would end there (seen with QEMU 10.0).
    """
    from vmkit.hypervisor import backup
    from vmkit.system.shell import Shell

    names = dict.fromkeys(backup.checkpoints(domain))
    if domain.host.driver != "QEMU":
        return tuple(names)
    if domain.state().active:
        names |= dict.fromkeys(backup.bitmaps(domain))
    else:
        with contextlib.suppress(UnsupportedError):  # a host that only libvirt leads to
            done = Shell.of_uri(domain.host.uri).run_script(_FIND.format(disks=_disks(domain)), timeout=120.0)
            names |= dict.fromkeys(line for line in done.stdout.splitlines() if line)
    return tuple(names)


def forget(domain: Domain, marks: Sequence[str]) -> None:
    """Remove checkpoints with their bitmaps; the next backup is a full one then.

    libvirt does so for running domains. Where it is off the bitmaps are taken out of the files, on its host.

    Raises:
        UnreachableError, UnsupportedError: the host of a domain that is off lets nobody run qemu-img.
    """
    from vmkit.hypervisor import backup
    from vmkit.system.shell import Shell

    if not marks:
        return
    if domain.state().active:
        for mark in marks:
            if not backup.delete_checkpoint(domain, mark):
                backup.remove_bitmap(domain, mark)
        return
    script = _REMOVE.format(disks=_disks(domain), marks=" ".join(map(shlex.quote, marks)))
    done = Shell.of_uri(domain.host.uri).run_script(script, timeout=120.0)
    if done.status != 0:
        tail = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise EffectError(
            f"the marks for backups of {domain.name} cannot be removed: {tail[0]}",
            hint=f"another program may have the disk open: vmkit show {domain.name}; then try again",
        )
    for mark in marks:
        backup.delete_checkpoint(domain, mark, only_name=True)


def _disks(domain: Domain) -> str:
    """The files of the disks that a VM can write to, as words for a shell."""
    root = ET.fromstring(domain.xml())  # noqa: S314 - libvirt's own answer
    found = [
        source.get("file") or source.get("dev") or ""
        for disk in root.iterfind("devices/disk")
        if disk.find("readonly") is None and (source := disk.find("source")) is not None
    ]
    return " ".join(shlex.quote(path) for path in found if path) or "''"
