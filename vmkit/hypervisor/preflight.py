"""What QEMU and libvirt say of a migration before there is one: what blocks it, and which CPU both hosts have."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from vmkit.errors import VmkitError
from vmkit.hypervisor.errors import translated

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain
    from vmkit.hypervisor.host import Host


def blocked_reasons(domain: Domain) -> tuple[str, ...]:
    """Why QEMU would not let a running domain leave, in its own words; empty where it would, or does not say.

    `query-migrate` has `blocked-reasons` since QEMU 6.0. Asked through libvirt's monitor call, which notes the domain
    as tainted.
    """
    if domain.host.driver != "QEMU":
        return ()
    try:
        answer = domain.monitor("query-migrate")
    except (VmkitError, KeyError, ValueError):
        return ()
    reasons = answer.get("blocked-reasons") or () if isinstance(answer, dict) else ()
    return tuple(str(r) for r in reasons)


def common_cpu(one: Host, two: Host, *, arch: str, machine: str, virt_type: str) -> str:
    """The CPU model that guests of both hosts can have, by libvirt's baseline of what each offers; '' if unknown."""
    try:
        with translated("CPU baseline"):
            offered = [_offered(h, arch, machine, virt_type) for h in (one, two)]
            common = two.handle.baselineHypervisorCPU(None, arch, machine, virt_type, offered, 0)
        return ET.fromstring(common).findtext("model", "")  # noqa: S314 - libvirt's own answer
    except (VmkitError, ET.ParseError):
        return ""


def _offered(host: Host, arch: str, machine: str, virt_type: str) -> str:
    """The CPU that `host-model` would be on a host."""
    text = host.domain_capabilities(arch=arch, machine=machine, virt_type=virt_type)
    cpu = ET.Element("cpu")
    cpu.extend(ET.fromstring(text).findall("cpu/mode[@name='host-model']/*"))  # noqa: S314 - libvirt's own answer
    return ET.tostring(cpu, encoding="unicode")
