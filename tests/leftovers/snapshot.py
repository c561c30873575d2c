"""What there is on this machine that tests could leave behind.

On a machine that others use at the same time only what bears the session's mark counts: its temporary folder in a
command line, an environment or a path, or its prefix in a name. On CI ($CI is set) the machine is the tests' own, and
everything new counts.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self
from xml.etree import ElementTree as ET

from vmkit.hypervisor.host import Host
from vmkit.system.netlink import Links
from vmkit.system.process import ProcessId


@dataclass(frozen=True)
class Snapshot:
    """Every entry is a line that a person can read."""

    processes: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    links: frozenset[str]
    libvirt: frozenset[str]

    @classmethod
    def take(cls) -> Self:
        return cls(processes(), namespaces(), mounts(), links(), libvirt())

    def new_since(self, before: Self, marks: tuple[str, ...]) -> list[str]:
        """What is here and was not there: processes that bear a mark, and of the rest on CI all of it."""
        strict = bool(os.environ.get("CI"))
        return [
            f"{kind.name}: {line}"
            for kind in fields(self)
            for line in sorted(getattr(self, kind.name) - getattr(before, kind.name))
            if (strict and kind.name != "processes") or any(m in line for m in marks)
        ]


def processes() -> frozenset[str]:
    """Every process but this one and its ancestors: number, start, command line, and what marks its environment."""
    mine = set(ancestors(os.getpid()))
    found = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) in mine or not (me := ProcessId.of(int(entry.name))):
            continue
        with contextlib.suppress(OSError):
            words = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            variables = Path(entry.path, "environ").read_bytes().decode(errors="replace").split("\0")
            marks = [v for v in variables if v.startswith(("VMKIT_", "PYTEST_CURRENT_TEST="))]
            if words:
                found.add(f"{me.pid} (started {me.start}): {words}{marks or ''}")
    return frozenset(found)


def ancestors(pid: int) -> list[int]:
    """The process and those above it."""
    found = []
    while pid:
        found.append(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def namespaces() -> frozenset[str]:
    """Named network namespaces, and every one that a process lives in."""
    found = {f"named {p}" for p in Path("/run/netns").glob("*")}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.add(str(Path(entry.path, "ns/net").readlink()))
    return frozenset(found)


def mounts() -> frozenset[str]:
    """Mounts of this mount namespace."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return frozenset(" ".join(line.split()[3:]) for line in lines)


def links() -> frozenset[str]:
    """Interfaces with their aliases."""
    with Links() as own:
        return frozenset(f"{link.name} {link.alias}" for link in own.all())


def libvirt() -> frozenset[str]:
    """Domains, networks and pools of the machine's own libvirt; nothing where none runs."""
    found: set[str] = set()
    with contextlib.suppress(Exception), Host.connect("qemu:///system") as host:
        found.update(f"domain {d.name} {' '.join(paths(d.xml()))}" for d in host.domains())
        found.update(f"network {name}" for name in host.network_names())
        found.update(f"pool {p.name()} {' '.join(paths(p.XMLDesc(0)))}" for p in host.handle.listAllStoragePools(0))
    return frozenset(found)


def paths(xml: str) -> list[str]:
    """File names in a piece of XML."""
    root = ET.fromstring(xml)
    texts = [t for e in root.iter() for t in (e.text, *e.attrib.values()) if t and t.startswith("/")]
    return sorted(set(texts))
