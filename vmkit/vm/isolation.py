"""What keeps a VM's process from the rest of its host, as far as it can be seen from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.hypervisor.domain import Domain
from vmkit.system.confinement import Confinement, confinement
from vmkit.system.procmem import Running, running

UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Label:
    """A label that a security model of the host gives the process: 'apparmor' and 'libvirt-<uuid>', say."""

    model: str
    label: str


@dataclass(frozen=True, slots=True)
class Isolation:
    """How a running VM is kept apart. 'unknown' where it cannot be seen, as for the process of another machine.

    Attributes:
        labels: of the process, by security model ('dac' is its user and group).
        user: that the process runs as.
        seccomp: filter of system calls: 'on, N filters' or 'off'.
        sandbox: what QEMU was told about it (-sandbox).
        no_new_privileges: 'yes' or 'no'.
        capabilities: that the process may use; 'none' for an ordinary user's.
        namespaces: that it has for itself.
        cgroup: that it is in.
    """

    labels: tuple[Label, ...]
    user: str
    seccomp: str = UNKNOWN
    sandbox: str = UNKNOWN
    no_new_privileges: str = UNKNOWN
    capabilities: str = UNKNOWN
    namespaces: str = UNKNOWN
    cgroup: str = UNKNOWN


def look(domain: Domain, xml: str) -> Isolation:
    """How a running domain of QEMU is confined. `xml` is that of what runs now."""
    found = [p for p in running(_is_qemu) if p.argument("-uuid").lower() == domain.uuid]
    seen = confinement(found[0].id.pid) if len(found) == 1 else None
    return judge(labels(xml), seen, found[0] if seen else None)


def labels(xml: str) -> tuple[Label, ...]:
    """Labels in the XML of a running domain. Pure."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    found = ((e.get("model", ""), e.findtext("label", "")) for e in root.iterfind("seclabel"))
    return tuple(Label(model, label) for model, label in found if model and label)


def judge(given: tuple[Label, ...], seen: Confinement | None, process: Running | None) -> Isolation:
    """What there is to say. Pure. `seen` and `process` are None where the process cannot be seen from here."""
    if seen is None or process is None:
        return Isolation(given, _user_of(given))
    yes = {True: "yes", False: "no", None: UNKNOWN}
    count = seen.seccomp
    counted = "1 filter" if count == 1 else f"{count} filters"
    return Isolation(
        labels=given,
        user=f"{seen.user or 'no name'} ({seen.uid})",
        seccomp=UNKNOWN if count is None else f"on, {counted}" if count else "off",
        sandbox=process.argument("-sandbox") or "off",
        no_new_privileges=yes[seen.no_new_privileges],
        capabilities=", ".join(seen.capabilities) or "none",
        namespaces=UNKNOWN if seen.namespaces is None else ", ".join(seen.namespaces) or "none of its own",
        cgroup=seen.cgroup or UNKNOWN,
    )


def _user_of(given: tuple[Label, ...]) -> str:
    """The label of the model 'dac' is '+UID:+GID' (libvirt, src/security/security_dac.c)."""
    label = next((x.label for x in given if x.model == "dac"), "")
    uid = label.partition(":")[0].removeprefix("+")
    return f"uid {uid}" if uid.isascii() and uid.isdecimal() else UNKNOWN


def _is_qemu(name: str) -> bool:
    return name.startswith("qemu-system-") or name in ("qemu-kvm", "qemu")
