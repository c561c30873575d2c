"""What has to be known about a host before a VM can be planned there. Only observed here, never judged."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from vmkit.errors import NotFoundError, UnsupportedError, VmkitError
from vmkit.host.facts.libvirt import guests_of, usable_models
from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter, silent
from vmkit.vm import topology
from vmkit.vm.families import FAMILIES
from vmkit.vm.kvm import NOT_OFFERED, KvmFact, prove
from vmkit.vm.machine_facts import MachineFacts, look
from vmkit.vm.spec import Accel, VmSpec
from vmkit.vm.topology import Pool, Topology

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmkit.network.facts import NetworkFacts


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
        reservable: networks by name, where the spec has fixed addresses.
        domains: names that are taken.
        pool_folder: where disks go on that host; None where there is no pool yet.
        pool_free: bytes that can be written there; None if unknown.
        pool_file_system: what that folder is on, as stat(1) names it; None if unknown.
        topology: CPUs and NUMA nodes; empty where the driver does not tell.
        huge_pages: pools by node, then by bytes of a page.
        node_free: free bytes by NUMA node.
        pinned: host CPUs that vCPUs of running VMs are pinned to; looked for where this VM is to be pinned.
        hyperv: Hyper-V enlightenments that libvirt offers with KVM; None if it does not say.
        graphics: kinds of displays that QEMU was built with, as in 'vnc'; None if libvirt does not say.
        vendor: of the host's CPU, as in 'Intel'; '' if unknown.
        paging: 'nested' or 'shadow', as the KVM module is set; None if unknown.
        virtual_interrupts: whether APICv or AVIC is on; None if unknown.
        posted_interrupts: whether the IOMMU posts interrupts of assigned devices; None if unknown.
        interrupt_remapping: whether the IOMMU checks interrupts; None if unknown.
        vhost_net: whether /dev/vhost-net is there; None if unknown.
        thp: mode of transparent huge pages; None if unknown.
        block_devices: what is wrong with each block device that the spec names, '' for nothing.
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
    reservable: Mapping[str, NetworkFacts] = field(default_factory=dict)
    domains: frozenset[str] = frozenset()
    pool_folder: str | None = None
    pool_free: int | None = None
    pool_file_system: str | None = None
    topology: Topology = field(default_factory=Topology)
    huge_pages: Mapping[int, Mapping[int, Pool]] = field(default_factory=dict)
    node_free: Mapping[int, int] = field(default_factory=dict)
    pinned: frozenset[int] = frozenset()
    hyperv: frozenset[str] | None = None
    graphics: frozenset[str] | None = None
    vendor: str = ""
    paging: str | None = None
    virtual_interrupts: bool | None = None
    posted_interrupts: bool | None = None
    interrupt_remapping: bool | None = None
    vhost_net: bool | None = None
    thp: str | None = None
    block_devices: Mapping[str, str] = field(default_factory=dict)


def gather(host: Host, spec: VmSpec, reporter: Reporter = silent) -> HostFacts:
    """Look at the host. Runs the KVM probe guest where its answer matters and is not known yet for this boot."""
    pool_folder, pool_free = _pool(host)
    with ThreadPoolExecutor(1) as beside:  # programs on the host, beside questions to its libvirt
        reading = beside.submit(_machine, host, spec, pool_folder) if host.driver == "QEMU" else None
        told = _told(host, spec, reporter)
        seen = reading.result() if reading else MachineFacts()
    return replace(
        told,
        pool_folder=pool_folder,
        pool_free=pool_free,
        pool_file_system=seen.file_system,
        vendor=seen.vendor,
        paging=seen.paging,
        virtual_interrupts=seen.virtual_interrupts,
        posted_interrupts=seen.posted_interrupts,
        interrupt_remapping=seen.interrupt_remapping,
        vhost_net=seen.vhost_net,
        thp=seen.thp,
        block_devices=seen.block_devices,
    )


def _told(host: Host, spec: VmSpec, reporter: Reporter) -> HostFacts:
    """What libvirt says."""
    arch, _, cpus = host.node()
    capabilities = host.capabilities()
    types, machines = guests_of(capabilities, arch)
    qemu = host.driver == "QEMU"
    offered = {t: host.domain_capabilities(virt_type=t, arch=arch) for t in types & {"kvm", "qemu"}} if qemu else {}
    layout = topology.read(capabilities) if qemu else Topology()
    return HostFacts(
        uri=host.uri,
        driver=host.driver,
        arch=arch,
        domain_types=types,
        machines=machines,
        cpu_models={t: usable_models(text) for t, text in offered.items()},
        kvm=_kvm(host, types, reporter) if qemu and _may_be_kvm(spec) else None,
        memory_free=_memory(host),
        cpus=cpus,
        networks=host.network_names() if host.driver in ("QEMU", "TEST", "Xen") else {},
        reservable=_reservable(host, spec) if qemu else {},
        domains=frozenset(d.name for d in host.domains()),
        topology=layout,
        huge_pages=_huge_pages(host, layout),
        node_free=_node_free(host, layout),
        pinned=_pinned(host) if qemu and _to_be_pinned(spec) else frozenset(),
        hyperv=_hyperv(offered.get("kvm", "")),
        graphics=_graphics(next(iter(offered.values()), "")),
    )


def _reservable(host: Host, spec: VmSpec) -> dict[str, NetworkFacts]:
    from vmkit.vm.reservations import facts

    return facts(host) if any(n.address not in ("dhcp", "none") for n in spec.nics) else {}


def _may_be_kvm(spec: VmSpec) -> bool:
    return spec.accel is not Accel.TCG and spec.cpu != "emulated"


def _to_be_pinned(spec: VmSpec) -> bool:
    return spec.pinning == "auto" or (spec.pinning is None and FAMILIES[spec.family].pinning)


def _machine(host: Host, spec: VmSpec, pool_folder: str | None) -> MachineFacts:
    from vmkit.image.place import DEFAULT_FOLDER

    sources = tuple(d.source for d in spec.disks if d.source)
    return look(host, pool_folder or str(DEFAULT_FOLDER), sources)


def _huge_pages(host: Host, layout: Topology) -> dict[int, dict[int, Pool]]:
    """Pools by node. Where libvirt does not tell what is free, nothing counts as free."""
    found: dict[int, dict[int, Pool]] = {}
    for node, sizes in (layout.pages or {}).items():
        try:
            free = host.free_pages(node, tuple(sizes)) if sizes else {}
        except VmkitError:
            free = {}
        found[node] = {size: Pool(total, free.get(size, 0)) for size, total in sizes.items()}
    return found


def _node_free(host: Host, layout: Topology) -> dict[int, int]:
    """Free memory of each node. Of a single node nobody asks."""
    if len(layout.nodes) < 2:
        return {}
    try:
        return {n: host.node_memory(n) for n in layout.nodes}
    except VmkitError:
        return {}


def _pinned(host: Host) -> frozenset[int]:
    running: Iterable[str] = (d.xml() for d in host.domains() if d.state().active)
    return frozenset(n for xml in running for n in topology.pinned_in(xml))


def _graphics(domain_capabilities: str) -> frozenset[str] | None:
    """Displays that QEMU has (https://libvirt.org/formatdomaincaps.html, 'Graphics device')."""
    if not domain_capabilities:
        return None
    known = ET.fromstring(domain_capabilities).find("devices/graphics")  # noqa: S314 - libvirt's own answer
    if known is None:
        return None
    return frozenset(v.text or "" for v in known.iterfind("enum[@name='type']/value"))


def _hyperv(domain_capabilities: str) -> frozenset[str] | None:
    """Enlightenments that libvirt offers (since 8.1; https://libvirt.org/formatdomaincaps.html)."""
    if not domain_capabilities:
        return None
    known = ET.fromstring(domain_capabilities).find("features/hyperv")  # noqa: S314 - libvirt's own answer
    if known is None:
        return None
    return frozenset(v.text or "" for v in known.iterfind("enum[@name='features']/value"))


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


def _kvm(host: Host, types: frozenset[str], reporter: Reporter) -> KvmFact:
    return prove(host, reporter) if "kvm" in types else KvmFact(False, NOT_OFFERED)
