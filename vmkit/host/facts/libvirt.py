"""What libvirt says of a host: versions, and what guests can have there. From its XML; nothing is asked here."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree as ET

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Answers:
    """What was asked of libvirt, as it came.

    Attributes:
        uri: who was asked.
        error: why there is no answer, and the next step; None if there is one.
        driver: 'QEMU', 'Xen', 'TEST'.
        libvirt: version of its daemon.
        hypervisor: version of QEMU or Xen.
        capabilities: XML (https://libvirt.org/formatcaps.html).
        domain_capabilities: XML (https://libvirt.org/formatdomaincaps.html) of the best type of guest; '' if none.
    """

    uri: str
    error: str | None = None
    driver: str = ""
    libvirt: Version | None = None
    hypervisor: Version | None = None
    capabilities: str = ""
    domain_capabilities: str = ""


@dataclass(frozen=True, slots=True)
class LibvirtFacts:
    """What libvirt offers on a host.

    Attributes:
        uri: who was asked.
        error: why it does not answer; None if it does.
        driver: 'QEMU', 'Xen', 'TEST'; empty if it does not answer.
        libvirt: version of its daemon, as in '11.3.0'; None if it does not answer.
        hypervisor: version of QEMU or Xen, likewise.
        domain_types: types of guests for the host's architecture: 'kvm', 'qemu', 'xen', ...
        machines: machine types for them.
        cpu_host_model: the model that stands for the host's CPU; None if there is none.
        cpu_host_features: what that model has on top of its name here.
        cpu_models: models that guests can have here.
        max_vcpus: of one guest; None if unknown.
        uefi: whether guests can have UEFI firmware (OVMF); None if unknown.
        secure_boot: whether it can be had with secure boot; None if unknown.
        tpm: TPM models that guests can have; empty if none or unknown.
        sev: whether guests can have encrypted memory (SEV or TDX); None if unknown.
        security: how its guests are confined: 'apparmor', 'selinux', 'none'; None if unknown.
    """

    uri: str
    error: str | None
    driver: str
    libvirt: str | None
    hypervisor: str | None
    domain_types: tuple[str, ...]
    machines: tuple[str, ...]
    cpu_host_model: str | None
    cpu_host_features: tuple[str, ...]
    cpu_models: tuple[str, ...]
    max_vcpus: int | None
    uefi: bool | None
    secure_boot: bool | None
    tpm: tuple[str, ...]
    sev: bool | None
    security: str | None


def read(answers: Answers, arch: str) -> LibvirtFacts:
    """The facts in libvirt's answers. XML that is broken counts as not there."""
    caps = _xml(answers.capabilities)
    domain = _xml(answers.domain_capabilities)
    arch = arch or caps.findtext("host/cpu/arch", "")
    types, machines = _guests(caps, arch)
    models = [m.findtext("model", "").strip() for m in caps.iterfind("host/secmodel")]
    return LibvirtFacts(
        uri=answers.uri,
        error=answers.error,
        driver=answers.driver,
        libvirt=show(answers.libvirt),
        hypervisor=show(answers.hypervisor),
        domain_types=tuple(sorted(types)),
        machines=tuple(sorted(machines)),
        cpu_host_model=domain.findtext("cpu/mode[@name='host-model'][@supported='yes']/model"),
        cpu_host_features=tuple(
            sorted(
                f.get("name", "")
                for f in domain.iterfind("cpu/mode[@name='host-model'][@supported='yes']/feature")
                if f.get("policy") == "require"
            )
        ),
        cpu_models=tuple(
            sorted(
                {m.text or "" for m in domain.iterfind("cpu/mode[@name='custom']/model") if m.get("usable") == "yes"}
            )
        ),
        max_vcpus=_number(domain.find("vcpu")),
        uefi=_uefi(domain),
        secure_boot=_secure_boot(domain),
        tpm=_tpm(domain),
        sev=_sev(domain),
        security=next((m for m in models if m in ("apparmor", "selinux")), "none") if models else None,
    )


def guests_of(capabilities: str, arch: str) -> tuple[frozenset[str], frozenset[str]]:
    """Domain types and machine types for an architecture, from capabilities XML."""
    return _guests(ET.fromstring(capabilities), arch)  # noqa: S314 - libvirt's own answer


def usable_models(domain_capabilities: str) -> frozenset[str]:
    """CPU models that libvirt does not call unusable, from domain capabilities XML."""
    root = ET.fromstring(domain_capabilities)  # noqa: S314 - libvirt's own answer
    return frozenset(m.text or "" for m in root.iterfind("cpu/mode[@name='custom']/model") if m.get("usable") != "no")


def show(version: Version | None) -> str | None:
    """(10, 0, 2) as '10.0.2'."""
    return ".".join(map(str, version)) if version else None


def parse_version(text: str | None) -> Version | None:
    """'10.0.2' as (10, 0, 2)."""
    words = (text or "").split(".")
    if len(words) != 3 or not all(w.isascii() and w.isdecimal() for w in words):
        return None
    return int(words[0]), int(words[1]), int(words[2])


def _guests(root: ET.Element, arch: str) -> tuple[frozenset[str], frozenset[str]]:
    types: set[str] = set()
    machines: set[str] = set()
    for guest in root.iterfind("guest"):
        inner = guest.find("arch")
        if inner is None or (inner.get("name") != arch and len(types) > 0):
            continue
        if inner.get("name") == arch or not types:
            types |= {t for d in inner.iterfind("domain") if (t := d.get("type"))}
            for machine in inner.iter("machine"):
                machines |= {m for m in (machine.text, machine.get("canonical")) if m}
    return frozenset(types), frozenset(machines)


def _xml(text: str) -> ET.Element:
    try:
        return ET.fromstring(text)  # noqa: S314 - libvirt's own answer
    except (ET.ParseError, ValueError):
        return ET.Element("none")


def _number(element: ET.Element | None) -> int | None:
    text = (element.get("max") or "") if element is not None else ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _uefi(domain: ET.Element) -> bool | None:
    known = domain.find("os")
    if known is None:
        return None
    values = {v.text for v in known.iterfind("enum[@name='firmware']/value")}
    return "efi" in values


def _secure_boot(domain: ET.Element) -> bool | None:
    loader = domain.find("os/loader")
    if loader is None:
        return None
    return bool(_uefi(domain)) and any(v.text == "yes" for v in loader.iterfind("enum[@name='secure']/value"))


def _tpm(domain: ET.Element) -> tuple[str, ...]:
    found = domain.find("devices/tpm[@supported='yes']")
    if found is None or not any(v.text == "emulator" for v in found.iterfind("enum[@name='backendModel']/value")):
        return ()
    return tuple(v.text for v in found.iterfind("enum[@name='model']/value") if v.text)


def _sev(domain: ET.Element) -> bool | None:
    known = [e for e in (domain.find("features/sev"), domain.find("features/tdx")) if e is not None]
    return any(e.get("supported") == "yes" for e in known) if known else None
