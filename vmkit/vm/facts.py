"""What has to be known about a host before a VM can be planned there. Only observed here, never judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmkit.errors import NotFoundError, UnsupportedError
from vmkit.host.facts.libvirt import guests_of, usable_models
from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter, silent
from vmkit.vm.kvm import NOT_OFFERED, KvmFact, prove
from vmkit.vm.spec import Accel, VmSpec


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
    return usable_models(host.domain_capabilities(virt_type=virt_type, arch=arch))


def _kvm(host: Host, types: frozenset[str], reporter: Reporter) -> KvmFact:
    return prove(host, reporter) if "kvm" in types else KvmFact(False, NOT_OFFERED)
