"""What the files of a host say that libvirt does not: paging mode, vhost, APICv, file systems, block devices."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from vmkit.errors import VmkitError
from vmkit.host import tree
from vmkit.host.facts import cpu, kvm, memory, pci
from vmkit.hypervisor.host import Host
from vmkit.system.shell import Shell

_DEADLINE: Final = 30.0
_captured: WeakKeyDictionary[Host, tree.Tree] = WeakKeyDictionary()
"""One look for each connection: what is read does not change while a command runs."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What was read; None for what is not known. The fields mean what they mean in vmkit.vm.facts.HostFacts."""

    vendor: str = ""
    paging: str | None = None
    virtual_interrupts: bool | None = None
    posted_interrupts: bool | None = None
    interrupt_remapping: bool | None = None
    vhost_net: bool | None = None
    thp: str | None = None
    file_system: str | None = None
    block_devices: Mapping[str, str] = field(default_factory=dict)


def look(host: Host, folder: str | None = None, block_devices: tuple[str, ...] = ()) -> MachineFacts:
    """Read the host's files: here, or by ssh where the URI leads through it. What cannot be read is unknown.

    Args:
        host: the connection.
        folder: whose file system is asked for.
        block_devices: paths that are looked at.
    """
    try:
        shell = Shell.of_uri(host.uri)
        if host not in _captured:
            _captured[host] = tree.parse(tree.capture(shell, brief=True))
        seen = _captured[host]
        file_system, blocks = _paths(shell, folder, block_devices)
    except VmkitError:
        return MachineFacts()
    found = kvm.read(seen)
    return MachineFacts(
        vendor=cpu.read(seen).vendor,
        paging=found.paging,
        virtual_interrupts=found.virtual_interrupts,
        posted_interrupts=found.posted_interrupts,
        interrupt_remapping=pci.read(seen).interrupt_remapping,
        vhost_net=found.vhost_net.present,
        thp=memory.read(seen).thp,
        file_system=file_system,
        block_devices=blocks,
    )


def _paths(shell: Shell, folder: str | None, devices: tuple[str, ...]) -> tuple[str | None, dict[str, str]]:
    """The file system of a folder, and what keeps each block device from being given away."""
    if not folder and not devices:
        return None, {}
    # A folder that is still to be made will be on what its nearest parent is on.
    up = f'p={shlex.quote(folder or "")}; while [ "$p" ] && ! [ -e "$p" ]; do p=${{p%/*}}; done'
    stat = f'{up}; stat -f -c %T "${{p:-/}}" 2>/dev/null || echo' if folder else "echo"
    lines = ["LC_ALL=C; export LC_ALL", stat]
    for path in devices:
        name = shlex.quote(path)
        lines.append(
            f"if ! [ -e {name} ]; then echo absent; elif ! [ -b {name} ]; then echo file; "
            f"elif lsblk -nro MOUNTPOINTS {name} 2>/dev/null | grep -q .; then echo mounted; else echo free; fi"
        )
    answers = shell.run_script("\n".join(lines) + "\n", timeout=_DEADLINE).stdout.splitlines()
    problems = {"absent": "is not there", "file": "is no block device", "mounted": "is mounted there", "free": ""}
    blocks = {p: problems[a] for p, a in zip(devices, answers[1:], strict=False) if a in problems}
    return (answers[0].strip() or None) if answers else None, blocks
