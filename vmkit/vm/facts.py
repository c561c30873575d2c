"""What has to be known about a host before a VM can be planned there. Only observed here, never judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from vmkit.errors import NotFoundError, UnsupportedError, VmkitError
from vmkit.hypervisor.host import Host
from vmkit.progress import Note, Reporter, silent
from vmkit.vm.spec import Accel, VmSpec

if TYPE_CHECKING:
    from vmkit.image.manifest import Image


@dataclass(frozen=True, slots=True)
class KvmFact:
    """Whether KVM runs a guest on this host, and how that is known."""

    works: bool
    reason: str


@dataclass(frozen=True, slots=True)
class HostFacts:
    """A host as a VM's plan sees it.

    Attributes:
        uri: what we are connected to.
        driver: 'QEMU', 'Xen', 'TEST'.
        arch: of the host's CPU, as in 'x86_64'.
        domain_types: what libvirt offers for that architecture: 'kvm', 'qemu', 'xen', 'test'.
        machines: machine types and aliases that the emulator offers.
        cpu_models: CPU models usable by guests, by domain type.
        kvm: what the probe guest said; None where it was not asked.
        memory_free: bytes that can be had now; None if the driver does not tell.
        cpus: logical CPUs.
        networks: libvirt networks, with whether each is active.
        domains: names that are taken.
        pool_folder: where disks go on that host; None where there is no pool yet.
        pool_free: bytes that can be written there; None if unknown.
    """

    uri: str
    driver: str
    arch: str
    domain_types: frozenset[str]
    machines: frozenset[str] = frozenset()
    cpu_models: Mapping[str, frozenset[str]] = field(default_factory=dict)
    kvm: KvmFact | None = None
    memory_free: int | None = None
    cpus: int = 1
    networks: Mapping[str, bool] = field(default_factory=dict)
    domains: frozenset[str] = frozenset()
    pool_folder: str | None = None
    pool_free: int | None = None


def gather(host: Host, spec: VmSpec, reporter: Reporter = silent) -> HostFacts:
    """Look at the host. Runs the KVM probe guest where its answer matters and is not known yet for this boot."""
    arch, _, cpus = host.node()
    types, machines = guests_of(host.capabilities(), arch)
    pool_folder, pool_free = _pool(host)
    models = {t: _cpu_models(host, t, arch) for t in types & {"kvm", "qemu"}} if host.driver == "QEMU" else {}
    return HostFacts(
        uri=host.uri,
        driver=host.driver,
        arch=arch,
        domain_types=types,
        machines=machines,
        cpu_models=models,
        kvm=_kvm(host, types, reporter) if host.driver == "QEMU" and spec.accel is not Accel.TCG else None,
        memory_free=_memory(host),
        cpus=cpus,
        networks=host.network_names() if host.driver in ("QEMU", "TEST") else {},
        domains=frozenset(d.name for d in host.domains()),
        pool_folder=pool_folder,
        pool_free=pool_free,
    )


def guests_of(capabilities: str, arch: str) -> tuple[frozenset[str], frozenset[str]]:
    """Domain types and machine types for an architecture, from capabilities XML."""
    types: set[str] = set()
    machines: set[str] = set()
    for guest in ET.fromstring(capabilities).iterfind("guest"):  # noqa: S314 - libvirt's own answer
        inner = guest.find("arch")
        if inner is None or (inner.get("name") != arch and len(types) > 0):
            continue
        if inner.get("name") == arch or not types:
            types |= {t for d in inner.iterfind("domain") if (t := d.get("type"))}
            for machine in inner.iter("machine"):
                machines |= {m for m in (machine.text, machine.get("canonical")) if m}
    return frozenset(types), frozenset(machines)


def _pool(host: Host) -> tuple[str | None, int | None]:
    from vmkit.image.place import POOL

    try:
        pool = host.pool(POOL)
    except NotFoundError:
        return None, None
    pool.refresh()
    return str(pool.folder), pool.free()


def _memory(host: Host) -> int | None:
    try:
        return host.memory()[1]
    except UnsupportedError:
        return None


def _cpu_models(host: Host, virt_type: str, arch: str) -> frozenset[str]:
    root = ET.fromstring(host.domain_capabilities(virt_type=virt_type, arch=arch))  # noqa: S314
    return frozenset(m.text or "" for m in root.iterfind("cpu/mode[@name='custom']/model") if m.get("usable") != "no")


def _kvm(host: Host, types: frozenset[str], reporter: Reporter) -> KvmFact:
    if "kvm" not in types:
        return KvmFact(False, "libvirt offers no KVM here (no /dev/kvm, or the kvm modules are not loaded)")
    from vmkit.host.probe import probe_kvm
    from vmkit.image.place import place

    try:
        placed = place(host, _probe_image(reporter), reporter)
        if placed.kernel is None or placed.initrd is None:
            return KvmFact(False, "not proven: the probe guest has no kernel")
        verdict = probe_kvm(host, placed.kernel, placed.initrd, reporter)
    except VmkitError as e:
        return KvmFact(False, f"not proven: {e.message}")
    return KvmFact(verdict.works, verdict.reason)


def _probe_image(reporter: Reporter) -> Image:
    from vmkit.image.api import Images

    images = Images()
    try:
        return images.get("micro")
    except NotFoundError:
        reporter(Note("building the image 'micro' once: its kernel is the guest that proves whether KVM works"))
        return images.build_micro(reporter=reporter)
