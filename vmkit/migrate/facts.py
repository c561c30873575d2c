"""What is known of the VM and of both hosts before a migration: frozen values, read from libvirt, judged elsewhere."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from vmkit.errors import UnsupportedError, VmkitError
from vmkit.migrate.around import UNSEEN, Around, look_around
from vmkit.migrate.files import GuestFile, files_of

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain
    from vmkit.hypervisor.host import Host
    from vmkit.hypervisor.migration import Sighting
    from vmkit.hypervisor.storage import VolumeFacts

Version = tuple[int, int, int]

STALE_S: Final = 120
"""A network file system may show another host's change this much later, seconds (nfs(5): acdirmax is 60 s)."""
_MEMORY_UNITS: Final = {"b": 1, "bytes": 1, "KB": 1000, "k": 2**10, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One host.

    Attributes:
        uuid: libvirt's uuid of the host; '' where it has none.
        driver: 'QEMU', 'Xen', 'TEST'.
        libvirt, hypervisor: versions.
        memory_free: bytes that can be had now.
        guests: what it offers to run: (domain type, architecture) -> names of the machine types.
        cpu_model: of the host itself, as libvirt names it; '' if unknown.
        networks: libvirt networks, each with whether it is active.
        userfaultfd: whether its kernel has it, for post-copy; None if that was not, or could not be, looked at.
        locks: whether its libvirt can let QEMU lock the guest's memory; None as above.
    """

    uri: str
    hostname: str
    uuid: str
    driver: str
    libvirt: Version
    hypervisor: Version
    memory_free: int
    guests: dict[tuple[str, str], frozenset[str]]
    cpu_model: str
    networks: dict[str, bool]
    userfaultfd: bool | None = None
    locks: bool | None = None


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """The VM at its source.

    Attributes:
        virt_type: 'kvm', 'qemu', 'xen'.
        machine: machine type with its version, 'pc-q35-10.0'.
        cpu_mode: 'custom', 'host-model', 'host-passthrough', 'maximum' or '' where the XML names no CPU.
        cpu_xml: its <cpu> element as it runs; '' without one.
        features: CPU features that the guest must have.
        memory: bytes, at most.
        hugepages: whether its memory has to be huge pages.
        networks: libvirt networks that its interfaces are on.
        bridges: bridges of the host that its interfaces are on.
        devices: host devices that it holds, and others that cannot move, in a person's words.
        passthrough_args: QEMU arguments that libvirt does not look into (qemu:commandline).
        hugepage_size: bytes of the largest page that its memory has to be; 0 where it does not, or the size is the
            host's own choice.
        snapshots: how many libvirt knows of.
        blocked: why its QEMU would not let it leave, in QEMU's words.
        saved: its memory is saved, and its next start goes on from there.
        tpm: it has an emulated TPM, whose state libvirt keeps beside it.
    """

    name: str
    uuid: str
    state: str
    paused: bool
    running: bool
    persistent: bool
    autostart: bool
    job: bool
    virt_type: str
    arch: str
    machine: str
    cpu_mode: str
    cpu_xml: str
    features: frozenset[str]
    memory: int
    hugepages: bool
    files: tuple[GuestFile, ...]
    networks: tuple[str, ...]
    bridges: tuple[str, ...]
    devices: tuple[str, ...]
    passthrough_args: bool
    hugepage_size: int = 0
    snapshots: int = 0
    blocked: tuple[str, ...] = ()
    saved: bool = False
    tpm: bool = False

    @property
    def off(self) -> bool:
        """Whether it is shut off, so that nothing of it runs anywhere."""
        return self.state == "shut off"


class Presence(enum.Enum):
    """Whether the target has a file at the path where the source has it."""

    SAME = "the very same file"
    PRESENT = "present"
    OTHER = "another file of the same name"
    ABSENT = "absent"
    UNKNOWN = "could not be checked"


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """The target, in view of this VM.

    Attributes:
        by_uuid, by_name: the domain there that has the VM's uuid, its name.
        files: path -> presence.
        cpu_lack: what its CPU lacks for the guest, as libvirt says; None if nothing.
        cpu_unknown: why that could not be told; None if it could.
        volumes: what the source says of the files that the target does not have, by path; of those in a pool.
        pool_free: bytes that the target's pool of each folder has left, where a file is missing there.
        cpu_common: the CPU model that both hosts have; '' where the VM's will do, or it is not known.
        around: what libvirt does not tell.
    """

    by_uuid: Sighting | None
    by_name: Sighting | None
    files: dict[str, Presence]
    cpu_lack: str | None
    cpu_unknown: str | None
    volumes: dict[str, VolumeFacts] = field(default_factory=dict)
    pool_free: dict[str, int] = field(default_factory=dict)
    cpu_common: str = ""
    around: Around = UNSEEN


def observe_host(host: Host) -> HostFacts:
    """Ask a host about itself.

    Raises:
        UnreachableError: it stopped answering.
    """
    root = ET.fromstring(host.capabilities())  # noqa: S314 - libvirt's own answer
    guests: dict[tuple[str, str], frozenset[str]] = {}
    for arch in root.iterfind("guest/arch"):
        common = {m.text or "" for m in arch.iterfind("machine")} | {
            m.get("canonical", "") for m in arch.iterfind("machine")
        }
        for domain in arch.iterfind("domain"):
            own = {m.text or "" for m in domain.iterfind("machine")}
            key = (domain.get("type", ""), arch.get("name", ""))
            guests[key] = guests.get(key, frozenset()) | frozenset((own or common) - {""})
    return HostFacts(
        uri=host.uri,
        hostname=host.hostname(),
        uuid=root.findtext("host/uuid", ""),
        driver=host.driver,
        libvirt=host.libvirt_version(),
        hypervisor=host.hypervisor_version(),
        memory_free=_free(host),
        guests=guests,
        cpu_model=root.findtext("host/cpu/model", ""),
        networks=_networks(host),
    )


def has_userfaultfd(uri: str) -> bool | None:
    """Whether the kernel of the host behind a URI has userfaultfd; None if there is no way to look."""
    from vmkit.system.shell import Shell

    # there since Linux 5.2 where userfaultfd is built in (Documentation/admin-guide/sysctl/vm.rst)
    script = "test -d /proc/sys/vm || echo unknown; test -e /proc/sys/vm/unprivileged_userfaultfd && echo there\n"
    try:
        words = Shell.of_uri(uri).run_script(script, timeout=15.0).stdout.split()
    except VmkitError:
        return None
    return None if "unknown" in words else "there" in words


def can_lock(uri: str, memory: int) -> bool | None:
    """Whether root of the host behind a URI can lock so many bytes (RLIMIT_MEMLOCK, getrlimit(2)); None if unknown.

    Raising the limit needs CAP_SYS_RESOURCE, which root of a container may lack.
    """
    from vmkit.system.shell import Shell

    script = "(ulimit -l unlimited) 2>/dev/null && echo unlimited || ulimit -H -l\n"
    try:
        word = Shell.of_uri(uri).run_script(script, timeout=15.0).stdout.strip()
    except VmkitError:
        return None
    if word.isdigit():
        return int(word) * 1024 >= memory
    return True if word == "unlimited" else None


def observe_guest(domain: Domain) -> GuestFacts:
    """Ask the source about the VM.

    Raises:
        NotFoundError: it is gone meanwhile.
    """
    from vmkit.errors import NotFoundError
    from vmkit.hypervisor.migration import sight
    from vmkit.hypervisor.preflight import blocked_reasons

    seen = sight(domain)
    if seen is None:
        raise NotFoundError(f"no VM named {domain.name} on {domain.host.uri}")
    guest = replace(parse_guest(domain.xml(), seen), snapshots=_snapshots(domain))
    if seen.state.active:
        return replace(guest, blocked=blocked_reasons(domain))
    return replace(guest, saved=_saved(domain), files=_with_images(domain.host, guest.files))


def _with_images(host: Host, files: tuple[GuestFile, ...]) -> tuple[GuestFile, ...]:
    """With the images below the disks, which libvirt names in the XML of a domain only while it runs."""
    from vmkit.hypervisor.storage import volume_of

    found: list[GuestFile] = []
    for file in files:
        top = volume_of(host, file.path) if file.role == "disk" and not file.network else None
        found.append(file if top is None else replace(file, backing=top.backing))
        below, seen = top, {file.path}
        while below is not None and below.backing and below.backing not in seen:
            path, kind = below.backing, below.backing_format
            seen.add(path)
            below = volume_of(host, path)
            on = "" if below is None else below.backing
            found.append(GuestFile(path, "image", readonly=True, format=kind, backing=on))
    return tuple(dict.fromkeys(found))


def _saved(domain: Domain) -> bool:
    from vmkit.hypervisor.snapshot import saved

    try:
        return saved(domain)
    except UnsupportedError:  # a driver without
        return False


def _snapshots(domain: Domain) -> int:
    from vmkit.hypervisor.snapshot import snapshots

    try:
        return len(snapshots(domain))
    except UnsupportedError:  # a driver without
        return 0


def parse_guest(xml: str, seen: Sighting) -> GuestFacts:
    """Read the XML of a domain. Pure."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    kind = root.find("os/type")
    cpu = root.find("cpu")
    networks, bridges = _interfaces(root)
    features = root.iterfind("cpu/feature")
    state = seen.state.value
    return GuestFacts(
        name=seen.name,
        uuid=seen.uuid,
        state=state,
        paused=state == "paused",
        running=state in ("running", "blocked"),
        persistent=seen.persistent,
        autostart=seen.autostart,
        job=seen.job,
        virt_type=root.get("type", ""),
        arch="" if kind is None else kind.get("arch", ""),
        machine="" if kind is None else kind.get("machine", ""),
        cpu_mode="" if cpu is None else cpu.get("mode", "custom" if cpu.find("model") is not None else ""),
        cpu_xml="" if cpu is None else ET.tostring(cpu, encoding="unicode"),
        features=frozenset(f.get("name", "") for f in features if f.get("policy", "require") in ("require", "force")),
        memory=_memory(root),
        hugepages=root.find("memoryBacking/hugepages") is not None,
        files=files_of(root),
        networks=networks,
        bridges=bridges,
        devices=tuple(_immovable(root)),
        passthrough_args=root.find("{http://libvirt.org/schemas/domain/qemu/1.0}commandline") is not None,
        hugepage_size=max((_size(p, "size") for p in root.iterfind("memoryBacking/hugepages/page")), default=0),
        tpm=root.find("devices/tpm/backend[@type='emulator']") is not None,
    )


def observe_target(source: Host, target: Host, guest: GuestFacts) -> TargetFacts:
    """Ask the target about what this VM needs."""
    from vmkit.hypervisor.migration import cpu_shortcoming, find, sight
    from vmkit.hypervisor.preflight import common_cpu
    from vmkit.hypervisor.storage import pool_of, volume_of

    same, namesake = find(target, uuid=guest.uuid), find(target, name=guest.name)
    lack = unknown = None
    if guest.cpu_xml and guest.cpu_mode == "custom":
        try:
            lack = cpu_shortcoming(
                target, guest.cpu_xml, arch=guest.arch, machine=guest.machine, virt_type=guest.virt_type
            )
        except VmkitError as e:
            unknown = e.message
    kind = {"arch": guest.arch, "machine": guest.machine, "virt_type": guest.virt_type}
    other = lack is not None or guest.cpu_mode in ("host-passthrough", "maximum")
    files = {f.path: presence(source, target, f) for f in guest.files if not f.network}
    absent = [path for path, where in files.items() if where is Presence.ABSENT]
    return TargetFacts(
        by_uuid=None if same is None else sight(same),
        by_name=None if namesake is None else sight(namesake),
        files=files,
        cpu_lack=lack,
        cpu_unknown=unknown,
        volumes={path: volume for path in absent if (volume := volume_of(source, path))},
        cpu_common=common_cpu(source, target, **kind) if other else "",
        around=look_around(source, target, guest),
        pool_free={f: pool.free() for f in {p.rpartition("/")[0] for p in absent} if (pool := pool_of(target, f))},
    )


def presence(source: Host, target: Host, file: GuestFile) -> Presence:
    """Whether the target has the file, and whether it is the very same one.

    The guest may be writing to it, so the source is asked before and after the target: the target's stamp then has to
    lie between the two.
    """
    from vmkit.hypervisor.migration import file_stamp

    try:
        there = file_stamp(target, file.path)
    except UnsupportedError:
        return Presence.UNKNOWN
    if there is None:
        return Presence.ABSENT
    apart = 0
    for _ in range(3):
        try:
            before, there, after = (file_stamp(h, file.path) for h in (source, target, source))
        except UnsupportedError:
            return Presence.PRESENT
        if before and there and after and there.changed:
            low, seen, high = (_seconds(s.changed) for s in (before, there, after))
            if low <= seen <= high:
                return Presence.SAME
            apart = max(abs(seen[0] - low[0]), abs(seen[0] - high[0]))
    return Presence.OTHER if apart > STALE_S else Presence.PRESENT


def _seconds(stamp: str) -> tuple[int, int]:
    """'1700000000.000123456' as two numbers; both libvirts write the nanoseconds alike."""
    whole, _, part = stamp.partition(".")
    return int(whole or 0), int(part or 0)


def _free(host: Host) -> int:
    try:
        return host.memory()[1]
    except UnsupportedError:  # the test driver
        return host.node()[1]


def _networks(host: Host) -> dict[str, bool]:
    try:
        return host.network_names()
    except UnsupportedError:  # a host whose libvirt has no network driver
        return {}


def _memory(root: ET.Element) -> int:
    top = root.find("maxMemory")
    element = top if top is not None else root.find("memory")
    if element is None:
        return 0
    return int(element.text or 0) * _MEMORY_UNITS.get(element.get("unit", "KiB"), 1024)


def _size(element: ET.Element, key: str) -> int:
    return int(element.get(key, "0")) * _MEMORY_UNITS.get(element.get("unit", "KiB"), 1024)


def _interfaces(root: ET.Element) -> tuple[tuple[str, ...], tuple[str, ...]]:
    networks: dict[str, None] = {}
    bridges: dict[str, None] = {}
    for source in root.iterfind("devices/interface/source"):
        if name := source.get("network"):
            networks[name] = None
        elif bridge := source.get("bridge"):
            bridges[bridge] = None
    return tuple(networks), tuple(bridges)


def _immovable(root: ET.Element) -> list[str]:
    found = []
    for device in root.iterfind("devices/hostdev"):
        address = device.find("source/address")
        where = "" if address is None else " " + _address(address)
        found.append(f"host device ({device.get('type', '?')}){where}")
    found += [
        f"network interface on a host device ({i.findtext('target', '') or i.get('type')})"
        for i in root.iterfind("devices/interface")
        if i.get("type") == "hostdev"
    ]
    found += [
        "shared folder by 9p" for f in root.iterfind("devices/filesystem") if f.find("driver[@type='virtiofs']") is None
    ]
    return found


def _address(address: ET.Element) -> str:
    try:
        numbers = [int(address.get(k, "0"), 16) for k in ("domain", "bus", "slot", "function")]
    except ValueError:
        return ""
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)
