"""libvirt's calls for moving a domain: both hosts asked, the transfer itself, and tidying up after it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

import libvirt

from vmkit.errors import EffectError, NotFoundError, RefusedError, UnsupportedError, VmkitError
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.hypervisor.errors import translate, translated

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host

MIB: Final = 2**20
_RUNNING_REASONS: Final = {10: "post-copy", 11: "post-copy failed"}
"""virDomainRunningReason, as far as a migration makes them. They came with libvirt 1.3.3 and 8.5."""
_MIGRATION_OPERATIONS: Final = (
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN,
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT,
)


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A storage volume as one host sees it: two hosts that see the same stamp see the same file.

    Attributes:
        allocation: bytes in use.
        changed: time of the last change of the inode, seconds with nanoseconds; '' where libvirt does not say.
    """

    allocation: int
    changed: str


@dataclass(frozen=True, slots=True)
class Options:
    """How the memory goes across.

    Attributes:
        live: the guest runs meanwhile; else it stands still from the beginning.
        post_copy: make it possible to switch to post-copy on the way (`start_postcopy`).
        auto_converge: let QEMU slow the guest's vCPUs down when it dirties memory faster than it is sent.
        compression: '' for none, 'xbzrle', or (with parallel connections) 'zstd' or 'zlib'.
        parallel: connections; 0 for the one that QEMU uses by itself.
        zero_copy: of them, pages are sent from where they are (MSG_ZEROCOPY); libvirt lets QEMU lock its memory for it.
        tls: encrypted with the certificates of both hosts.
        uri: where the memory goes; '' for what the target names (its host name, a port that it chooses).
        disks_uri: the same for disks that are copied.
        disks: targets ('vda') of the disks to copy first; the target host has empty files for them, on the same images.
        synchronous: what the guest writes to them meanwhile waits until the target has it too (libvirt 8.0), so that
            the copying ends however fast it writes.
    """

    live: bool = True
    post_copy: bool = False
    auto_converge: bool = False
    compression: str = ""
    parallel: int = 0
    zero_copy: bool = False
    tls: bool = False
    uri: str = ""
    disks_uri: str = ""
    disks: Sequence[str] = ()
    synchronous: bool = False


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one host knows of a domain at one moment.

    Attributes:
        state, reason: as in DomainInfo; of a running domain 'post-copy' while a part of its memory is at its source,
            and 'post-copy failed' if that part has become out of reach.
        persistent: whether it is defined there.
        autostart: whether it starts with the host.
        job: whether a job runs on it.
        migrating: whether that job is a migration, out of this host or into it.
    """

    name: str
    uuid: str
    state: DomainState
    reason: str
    persistent: bool
    autostart: bool
    job: bool
    migrating: bool


def host_uuid(host: Host) -> str:
    """The uuid by which libvirt tells hosts apart; '' where the driver has none (the test driver)."""
    return ET.fromstring(host.capabilities()).findtext("host/uuid", "")  # noqa: S314 - libvirt's own answer


def find(host: Host, *, uuid: str | None = None, name: str | None = None) -> Domain | None:
    """The domain with this uuid, or else of this name; None if there is none."""
    try:
        with translated("look-up"):
            if uuid is not None:
                return Domain(host, host.handle.lookupByUUIDString(uuid))
            return Domain(host, host.handle.lookupByName(name))
    except NotFoundError:
        return None


def sight(domain: Domain) -> Sighting | None:
    """What its host knows of a domain now; None if it does not know it (any more)."""
    try:
        info = domain.info()
        job = migrating = False
        if info.state.active:
            try:
                running = domain.job()
                job = running is not None
                migrating = running is not None and running.raw.get("operation") in _MIGRATION_OPERATIONS
            except UnsupportedError as e:  # by a driver without jobs, and by QEMU's for an incoming domain
                job = migrating = "source host" in e.message
        persistent = domain.persistent
        return Sighting(
            domain.name,
            domain.uuid,
            info.state,
            info.reason or _running_reason(domain),
            persistent,
            persistent and autostart(domain),
            job,
            migrating,
        )
    except VmkitError:
        if domain.host.alive and not domain.exists():
            return None
        raise


def _running_reason(domain: Domain) -> str:
    state, reason = domain.handle.state()
    return _RUNNING_REASONS.get(reason, "") if state == libvirt.VIR_DOMAIN_RUNNING else ""


def sight_uuid(host: Host, uuid: str) -> Sighting | None:
    """What a host knows of the domain with this uuid; None if there is none."""
    domain = find(host, uuid=uuid)
    return None if domain is None else sight(domain)


def autostart(domain: Domain) -> bool:
    """Whether it starts with its host."""
    with translated(f"autostart of {domain.name}"):
        return bool(domain.handle.autostart())


def set_autostart(domain: Domain, on: bool) -> None:
    """Have it start with its host, or not. It has to be defined."""
    with translated(f"autostart of {domain.name}"):
        domain.handle.setAutostart(1 if on else 0)


def network_of(host: Host, name: str) -> str | None:
    """XML of a libvirt network; None if there is none of that name."""
    try:
        with translated(f"network {name}"):
            return str(host.handle.networkLookupByName(name).XMLDesc(0))
    except NotFoundError:
        return None


def comparable_cpu(cpu_xml: str, virt_type: str) -> str:
    """The CPU without features that QEMU gives on any host and libvirt takes for missing. Pure.

    QEMU's EPYC models have topoext, KVM can always show it to a guest, and it is never in what `-cpu host` switches on
    by itself (QEMU, target/i386: no_autoenable_flags); that list is libvirt's idea of what the host has.
    """
    if virt_type != "kvm":
        return cpu_xml
    cpu = ET.fromstring(cpu_xml)  # noqa: S314 - libvirt's own answer
    for feature in cpu.findall("feature"):
        if feature.get("name") == "topoext":
            cpu.remove(feature)
    return ET.tostring(cpu, encoding="unicode")


def cpu_shortcoming(host: Host, cpu_xml: str, *, arch: str, machine: str, virt_type: str) -> str | None:
    """What a host lacks for a guest CPU, as libvirt puts it; None if it can run it.

    virConnectCompareHypervisorCPU (libvirt 4.4) counts in what QEMU and KVM, or QEMU's own emulation, can do on the
    host; drivers without it are asked for a comparison with the host's CPU.

    Raises:
        UnsupportedError: the driver compares no CPUs, or knows no such model.
    """
    cpu_xml = comparable_cpu(cpu_xml, virt_type)
    try:
        with translated("CPU comparison"):
            verdict = host.handle.compareHypervisorCPU(
                None, arch, machine, virt_type, cpu_xml, libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
            )
    except UnsupportedError:
        verdict = host.cpu_comparison(cpu_xml)
    except VmkitError as e:
        cause = e.__cause__
        if isinstance(cause, libvirt.libvirtError) and cause.get_error_code() == libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            return " ".join(str(cause.get_error_message()).split())
        raise UnsupportedError(e.message) from e
    return "the CPU is incompatible with the host" if verdict == libvirt.VIR_CPU_COMPARE_INCOMPATIBLE else None


def file_stamp(host: Host, path: str) -> FileStamp | None:
    """The file at `path` as a storage pool of the host sees it; None if the pool that covers it has no such file.

    Raises:
        UnsupportedError: no active pool of the host covers the folder, so nothing can be said.
    """
    with translated(f"look-up of {path}"):
        pools = list(host.handle.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE))
    folder = path.rpartition("/")[0] or "/"
    for pool in pools:
        with contextlib.suppress(libvirt.libvirtError):
            target = ET.fromstring(pool.XMLDesc(0)).findtext("target/path")  # noqa: S314 - libvirt's own answer
            if target is None or target.rstrip("/") != folder.rstrip("/"):
                continue
            pool.refresh(0)
            try:
                return _stamp(host.handle.storageVolLookupByPath(path))
            except libvirt.libvirtError as e:
                if e.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
                    return None
                raise
    try:
        return _stamp(host.handle.storageVolLookupByPath(path))
    except libvirt.libvirtError as e:
        raise UnsupportedError(
            f"no storage pool of {host.uri} covers {path}",
            hint="define a pool of that folder on both hosts: virsh pool-define-as NAME dir --target FOLDER",
        ) from e


def _stamp(volume: Any) -> FileStamp:
    root = ET.fromstring(volume.XMLDesc(0))  # noqa: S314 - libvirt's own answer
    return FileStamp(int(root.findtext("allocation", "0")), root.findtext("target/timestamps/ctime", ""))


def max_downtime(domain: Domain) -> int | None:
    """How long QEMU may let the guest stand still at the end, ms; None where the driver does not say."""
    try:
        with translated("longest downtime"):
            # libvirt-python gives None, and raises nothing, where the driver lacks the call.
            answer = domain.handle.migrateGetMaxDowntime(0)
            return None if answer is None else int(answer)
    except (UnsupportedError, EffectError):
        return None


def set_max_downtime(domain: Domain, milliseconds: int) -> None:
    """How long QEMU may let the guest stand still at the end, ms. It holds for later migrations too."""
    with translated(f"longest downtime of {domain.name}"):
        domain.handle.migrateSetMaxDowntime(milliseconds, 0)


def migrate_live(
    domain: Domain,
    target: Host,
    *,
    persistent: bool,
    bandwidth: int | None = None,
    same_storage: bool = False,
    options: Options = Options(),
    resume: bool = False,
) -> Domain:
    """Move a running domain to `target`, steered by this process; returns when it is over.

    libvirt's own migratable XML goes across, so nothing that a definition holds is lost. If this process dies before
    the switch to post-copy, both libvirts notice the closed connections: the source ends the job, the target removes
    the incoming domain.

    Args:
        domain: what to move; it runs or is paused.
        target: an open connection to where it shall run.
        persistent: define it at the target and undefine it at the source.
        bandwidth: bytes a second, rounded up to whole MiB (libvirt's unit); None for no limit.
        same_storage: the caller has shown that both hosts see the very same files; libvirt's own check, which knows
            network file systems only, is left out.
        options: how the memory goes across.
        resume: take up a post-copy migration that broke (libvirt 8.5); everything else as it was then.

    Raises:
        CancelledError: the job was aborted; the domain runs on at the source.
        RefusedError: libvirt refused before it began.
        EffectError, UnreachableError: it failed; both hosts have to be asked what there is.
    """
    flags, params = _flags(options)
    if persistent:
        flags |= libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    if domain.host.driver == "QEMU":  # Xen's driver refuses flags that it does not know (LIBXL_MIGRATION_FLAGS)
        flags |= libvirt.VIR_MIGRATE_ABORT_ON_ERROR | (libvirt.VIR_MIGRATE_UNSAFE if same_storage else 0)
    if resume:
        flags |= libvirt.VIR_MIGRATE_POSTCOPY_RESUME
    if bandwidth is not None:
        params[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = max(1, -(-bandwidth // MIB))
    try:
        return Domain(target, domain.handle.migrate3(target.handle, params, flags))
    except libvirt.libvirtError as e:
        error = translate(e, f"migration of {domain.name}")
        if e.get_error_code() == libvirt.VIR_ERR_MIGRATE_UNSAFE:
            raise RefusedError(
                error.message,
                hint="put its disks on shared storage, and name a folder that libvirt does not know as such in "
                "shared_filesystems of qemu.conf on both hosts",
            ) from e
        raise error from e


def migrate_offline(domain: Domain, target: Host) -> None:
    """Define a domain that is shut off at `target`, and remove its definition here; its files stay as they are.

    Raises:
        EffectError, RefusedError, UnreachableError: it failed; both hosts have to be asked what there is.
    """
    flags = libvirt.VIR_MIGRATE_OFFLINE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    with translated(f"move of {domain.name}"):
        domain.handle.migrate3(target.handle, {}, flags)


def _flags(options: Options) -> tuple[int, dict[str, Any]]:
    """Flags and typed parameters for the options."""
    flags = libvirt.VIR_MIGRATE_LIVE if options.live else 0
    params: dict[str, Any] = {}
    if options.post_copy:
        flags |= libvirt.VIR_MIGRATE_POSTCOPY
    if options.auto_converge:
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if options.compression:
        flags |= libvirt.VIR_MIGRATE_COMPRESSED
        params[libvirt.VIR_MIGRATE_PARAM_COMPRESSION] = options.compression
    if options.parallel:
        flags |= libvirt.VIR_MIGRATE_PARALLEL
        params[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = options.parallel
    if options.zero_copy:
        flags |= libvirt.VIR_MIGRATE_ZEROCOPY
    if options.tls:
        flags |= libvirt.VIR_MIGRATE_TLS
    if options.uri:
        params[libvirt.VIR_MIGRATE_PARAM_URI] = options.uri
    if options.disks_uri:
        params[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = options.disks_uri
    if options.disks:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_INC  # what the files stand on is at the target already
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES if options.synchronous else 0
        params[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(options.disks)
    return flags, params


def start_postcopy(domain: Domain) -> None:
    """Switch a migration that was begun with `post_copy` over now: the guest goes on at the target.

    From here on neither host has all of the guest's memory until the transfer has ended.

    Raises:
        RefusedError: no such migration runs on it.
    """
    with translated(f"switch of {domain.name} to post-copy"):
        domain.handle.migrateStartPostCopy(0)


def forget(domain: Domain) -> None:
    """Remove the definition and nothing else: NVRAM and TPM state may lie on storage that the other host uses."""
    with translated(f"removal of the definition of {domain.name}"):
        try:
            domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM)
        except libvirt.libvirtError:
            domain.handle.undefineFlags(0)


def adopt(host: Host, xml: str) -> Domain:
    """Define a domain from XML that another libvirt gave out, elements unknown to the schema included."""
    with translated("definition"):
        return Domain(host, host.handle.defineXML(xml))
