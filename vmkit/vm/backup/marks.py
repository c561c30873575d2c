"""The marks that incremental backups start from: libvirt's checkpoints, each a bitmap in the disks of a VM."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from vmkit.errors import EffectError

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


def split_marks(checkpoints: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Checkpoints of vmkit, and of other tools. Pure."""
    ours = tuple(c for c in checkpoints if c.startswith(PREFIX))
    return ours, tuple(c for c in checkpoints if c not in ours)


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
            backup.delete_checkpoint(domain, mark)
        return
    root = ET.fromstring(domain.xml())  # noqa: S314 - libvirt's own answer
    disks = [
        source.get("file") or source.get("dev") or ""
        for disk in root.iterfind("devices/disk")
        if disk.find("readonly") is None and (source := disk.find("source")) is not None
    ]
    script = _REMOVE.format(disks=" ".join(shlex.quote(d) for d in disks if d), marks=" ".join(map(shlex.quote, marks)))
    done = Shell.of_uri(domain.host.uri).run_script(script, timeout=120.0)
    if done.status != 0:
        tail = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise EffectError(f"the marks for backups of {domain.name} cannot be removed: {tail[0]}")
    for mark in marks:
        backup.delete_checkpoint(domain, mark, only_name=True)
