"""A connection to the libvirt of one host."""

from __future__ import annotations

import contextlib
import difflib
import os
import threading
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

import libvirt

from vmkit.errors import NotFoundError, SpecError, UnreachableError
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.errors import translate, translated
from vmkit.hypervisor.volume import Pool
from vmkit.values import quoted

_DRIVERS = frozenset(
    [
        *("bhyve", "ch", "esx", "gsx", "hyperv", "lxc", "openvz", "parallels", "qemu", "remote", "test", "vbox"),
        *("vmwarefusion", "vmwareplayer", "vmwarews", "vpx", "vz", "xen"),
    ]
)
"""Schemes of libvirt URIs (https://libvirt.org/drivers.html). An unknown one would be tried as a TLS host's name."""

_loop_lock = threading.Lock()
_loop_thread: threading.Thread | None = None


def default_uri() -> str:
    """VMKIT_CONNECT, else LIBVIRT_DEFAULT_URI, else qemu:///system (virsh's own default for root)."""
    return os.environ.get("VMKIT_CONNECT") or os.environ.get("LIBVIRT_DEFAULT_URI") or "qemu:///system"


class Host:
    """An open connection. Made by `connect`; a context manager that closes it.

    Attributes:
        uri: what was asked for.
        handle: libvirt's own object, for the modules of this floor only.
    """

    def __init__(self, uri: str, handle: libvirt.virConnect) -> None:
        self.uri = uri
        self.handle = handle

    @classmethod
    def connect(cls, uri: str | None = None, *, events: bool = False, keep_alive: bool = True) -> Self:
        """Open a connection.

        Args:
            uri: libvirt URI; None means `default_uri()`.
            events: run libvirt's event loop in a thread, as streams, callbacks and keep-alive need.
            keep_alive: with it, notice a host that has fallen silent, after 35 s.

        Raises:
            SpecError: the URI is not one that libvirt knows.
            UnreachableError: the host does not answer, or does not let us in.
        """
        uri = uri or default_uri()
        parts = _split(uri)
        driver = parts.scheme.partition("+")[0] if parts else ""
        # QEMU's paths are checked here, since libvirt does so only after it has reached a daemon.
        wrong_path = parts and driver == "qemu" and parts.path not in ("/system", "/session", "/embed")
        if driver not in _DRIVERS or "://" not in uri or wrong_path:
            raise SpecError(
                f"{quoted(uri)} is not a libvirt URI",
                path="--connect",
                hint="write it like qemu:///system, qemu+ssh://root@host/system or xen:///system",
            )
        if events:
            _start_event_loop()
        try:
            handle = libvirt.open(uri)
        except libvirt.libvirtError as e:
            raise _connect_error(uri, e) from e
        if events and keep_alive:
            with contextlib.suppress(libvirt.libvirtError):  # local and test drivers have none
                handle.setKeepAlive(5, 6)
        return cls(uri, handle)

    def close(self) -> None:
        """Close the connection. It is safe to call twice."""
        with contextlib.suppress(libvirt.libvirtError):
            self.handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- what it is

    @property
    def driver(self) -> str:
        """'QEMU', 'Xen', 'TEST', ..."""
        with translated("driver"):
            return str(self.handle.getType())

    @property
    def alive(self) -> bool:
        """Whether the connection still works."""
        try:
            return bool(self.handle.isAlive())
        except libvirt.libvirtError:
            return False

    @property
    def local(self) -> bool:
        """Whether the URI means this machine (no host name in it)."""
        return not urlsplit(self.uri).hostname

    def hostname(self) -> str:
        """The host's own name for itself."""
        with translated("host name"):
            return str(self.handle.getHostname())

    def hypervisor_version(self) -> tuple[int, int, int]:
        """Version of QEMU or Xen."""
        with translated("hypervisor version"):
            return _version(self.handle.getVersion())

    def libvirt_version(self) -> tuple[int, int, int]:
        """Version of the libvirt daemon that answers."""
        with translated("libvirt version"):
            return _version(self.handle.getLibVersion())

    def capabilities(self) -> str:
        """Host capabilities, XML (https://libvirt.org/formatcaps.html)."""
        with translated("capabilities"):
            return str(self.handle.getCapabilities())

    def domain_capabilities(
        self, *, virt_type: str | None = None, machine: str | None = None, arch: str | None = None
    ) -> str:
        """What a domain of this type can have, XML (https://libvirt.org/formatdomaincaps.html)."""
        with translated("domain capabilities"):
            return str(self.handle.getDomainCapabilities(None, arch, machine, virt_type, 0))

    def node(self) -> tuple[str, int, int]:
        """CPU architecture, bytes of memory, logical CPUs."""
        with translated("node information"):
            model, mib, cpus, *_ = self.handle.getInfo()
        return str(model), int(mib) * 2**20, int(cpus)

    def memory(self) -> tuple[int, int]:
        """Bytes of memory in all, and bytes that can be had now (free, buffers and page cache)."""
        with translated("memory statistics"):
            stats = self.handle.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        usable = stats["free"] + stats.get("buffers", 0) + stats.get("cached", 0)
        return stats["total"] * 1024, usable * 1024

    def free_pages(self, node: int, sizes: tuple[int, ...]) -> dict[int, int]:
        """Pages of a NUMA node that nobody uses, by bytes of a page."""
        with translated("free pages"):
            found = self.handle.getFreePages([size // 1024 for size in sizes], node, 1)
        return {int(kib) * 1024: int(count) for kib, count in found.get(node, {}).items()}

    def node_memory(self, node: int) -> int:
        """Bytes of memory of a NUMA node that are free."""
        with translated("memory statistics"):
            return int(self.handle.getMemoryStats(node)["free"]) * 1024

    def cpu_seconds(self) -> float:
        """CPU time of all CPUs since the host booted, idle time included, divided by their number: about its uptime."""
        with translated("CPU statistics"):
            stats = self.handle.getCPUStats(libvirt.VIR_NODE_CPU_STATS_ALL_CPUS, 0)
            cpus = self.handle.getInfo()[2]
        total: int = sum(stats.values())
        return total / 1e9 / max(1, int(cpus))

    def cpu_comparison(self, cpu_xml: str) -> int:
        """virConnectCompareCPU: 0 incompatible, 1 identical, 2 superset."""
        with translated("CPU comparison"):
            return int(self.handle.compareCPU(cpu_xml, 0))

    # -- domains

    def domains(self) -> list[Domain]:
        """Every domain, running or not, by name. Xen's Domain-0 is the host itself, and so none of them."""
        with translated("list of domains"):
            found = [d for d in self.handle.listAllDomains(0) if not self._is_host(d)]
        return sorted((Domain(self, d) for d in found), key=lambda d: d.name)

    def _is_host(self, domain: libvirt.virDomain) -> bool:
        return self.driver == "Xen" and domain.ID() == 0

    def domain(self, name: str) -> Domain:
        """The domain of this name, or with this uuid.

        Raises:
            NotFoundError: there is none; the hint names similar ones.
        """
        for look_up in (self.handle.lookupByName, self.handle.lookupByUUIDString):
            try:
                found = look_up(name)
            except libvirt.libvirtError as e:
                error = translate(e, "look-up")
                if isinstance(error, UnreachableError):
                    raise error from e
                continue
            if not self._is_host(found):
                return Domain(self, found)
        near = difflib.get_close_matches(name, [d.name for d in self.domains()], n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"see what there is: vmkit -c '{self.uri}' list"
        raise NotFoundError(f"no VM named {quoted(name)} on {self.uri}", hint=hint)

    def define(self, xml: str) -> Domain:
        """Define a domain, or replace the definition of the one with the same uuid. libvirt validates the XML."""
        with translated("definition"):
            return Domain(self, self.handle.defineXMLFlags(xml, self._validate))

    def create_transient(self, xml: str, *, autodestroy: bool = False) -> Domain:
        """Start a domain that has no definition; with `autodestroy` it ends when this connection does."""
        flags = libvirt.VIR_DOMAIN_START_AUTODESTROY if autodestroy else 0
        with translated("start"):
            return Domain(self, self.handle.createXML(xml, flags | self._start_validate))

    @property
    def _validate(self) -> int:
        return 0 if self.driver == "TEST" else int(libvirt.VIR_DOMAIN_DEFINE_VALIDATE)

    @property
    def _start_validate(self) -> int:
        return 0 if self.driver == "TEST" else int(libvirt.VIR_DOMAIN_START_VALIDATE)

    # -- networks and storage

    def network_names(self) -> dict[str, bool]:
        """Libvirt networks of this host, each with whether it is active."""
        with translated("list of networks"):
            return {n.name(): bool(n.isActive()) for n in self.handle.listAllNetworks(0)}

    def define_network(self, xml: str) -> None:
        """Define a network, start it, and have it start with the host."""
        with translated("definition of a network"):
            network = self.handle.networkDefineXML(xml)
            if not network.isActive():
                network.create()
            network.setAutostart(1)

    def pool(self, name: str) -> Pool:
        """The active storage pool of this name; it is started and refreshed.

        Raises:
            NotFoundError: there is none.
        """
        with translated(f"storage pool {name}"):
            handle = self.handle.storagePoolLookupByName(name)
            if not handle.isActive():
                handle.create(libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD)
            return Pool(self, handle)

    def define_pool(self, xml: str) -> Pool:
        """Define a storage pool, make its folder, start it, and have it start with the host."""
        with translated("definition of a storage pool"):
            handle = self.handle.storagePoolDefineXML(xml, 0)
            handle.build(0)
            handle.create(0)
            handle.setAutostart(1)
            return Pool(self, handle)


def _split(uri: str) -> SplitResult | None:
    """The parts of a URI; None if it is not one."""
    try:
        return urlsplit(uri) if uri.isprintable() else None
    except ValueError:  # a bracket without its partner
        return None


def _version(number: int) -> tuple[int, int, int]:
    return number // 1_000_000, number // 1000 % 1000, number % 1000


def _start_event_loop() -> None:
    """Run libvirt's default event loop in a daemon thread, once a process. Must come before the connection opens."""
    global _loop_thread
    with _loop_lock:
        if _loop_thread is not None:
            return
        libvirt.virEventRegisterDefaultImpl()

        def loop() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        _loop_thread = threading.Thread(target=loop, name="libvirt-events", daemon=True)
        _loop_thread.start()


def _connect_error(uri: str, error: libvirt.libvirtError) -> SpecError | UnreachableError:
    text = " ".join((error.get_error_message() or str(error)).split())
    code = error.get_error_code()
    if code in (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONFIG_UNSUPPORTED) or (
        "URI path" in text or ("unsupported" in text and "transport" in text)
    ):
        return SpecError(
            f"no libvirt driver takes the URI {quoted(uri)}",
            path="--connect",
            hint="write it like qemu:///system, qemu+ssh://root@host/system or xen:///system",
            details=(text,),
        )
    local = not urlsplit(uri).hostname
    if (
        local
        and os.geteuid() != 0
        and ("Permission denied" in text or "system bus" in text or "authentication" in text)
    ):
        hint = "run as root, or add yourself to the group libvirt"
    elif local:
        hint = "start it: systemctl start libvirtd (or scripts/setup, where no init system runs)"
    elif "known_hosts=" in urlsplit(uri).query and urlsplit(uri).scheme.endswith("+ssh") and "Host key" in text:
        # https://libvirt.org/uri.html, 'known_hosts': for the transports libssh and libssh2 only
        hint = "libvirt's transport 'ssh' does not look at known_hosts=: put the host's key into ~/.ssh/known_hosts"
    else:
        hint = "see that the host is up, that ssh to it works without a password, and that libvirtd runs there"
    return UnreachableError(f"{uri} does not answer: {text}", hint=hint)


def facts_of(host: Host) -> dict[str, Any]:
    """Versions and size of a host, for messages and records."""
    arch, memory, cpus = host.node()
    return {
        "uri": host.uri,
        "hostname": host.hostname(),
        "driver": host.driver,
        "hypervisor": ".".join(map(str, host.hypervisor_version())),
        "libvirt": ".".join(map(str, host.libvirt_version())),
        "arch": arch,
        "memory": memory,
        "cpus": cpus,
    }
