"""One domain of one host."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import libvirt

from vmkit.errors import ConflictError, EffectError, NotFoundError, UnsupportedError
from vmkit.hypervisor.errors import translated
from vmkit.hypervisor.newcomers import attendant

if TYPE_CHECKING:
    from vmkit.hypervisor.host import Host


class DomainState(enum.Enum):
    """virDomainState in virsh's words."""

    NOSTATE = "no state"
    RUNNING = "running"
    BLOCKED = "blocked"
    PAUSED = "paused"
    SHUTDOWN = "in shutdown"
    SHUTOFF = "shut off"
    CRASHED = "crashed"
    PMSUSPENDED = "pmsuspended"

    @property
    def active(self) -> bool:
        """Whether there is a process (or a Xen domain) behind it."""
        return self not in (DomainState.SHUTOFF, DomainState.NOSTATE)


_STATES: Final = list(DomainState)  # libvirt numbers them in this order
PAUSED_REASONS: Final = (
    *("unknown", "user", "migration", "save", "dump", "I/O error", "watchdog", "from snapshot", "shutting down"),
    *("snapshot", "crashed", "starting up", "post-copy", "post-copy failed", "api error"),
)
"""virDomainPausedReason, in order."""
_SETTLES: Final = 10
"""How often libxl is waited for, each time up to 30 s (libxl_domain.h: LIBXL_JOB_WAIT_TIME)."""
_SHUTOFF_CRASHED: Final = 3
"""VIR_DOMAIN_SHUTOFF_CRASHED: the process ended without being asked to."""


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """A domain at one moment.

    Attributes:
        state, reason: as libvirt says; `reason` is set for paused domains ('user', 'migration', ...), and is 'crashed'
            for those that are shut off since their process ended by itself, else ''.
        vcpus: number of virtual CPUs in use.
        memory, max_memory: bytes.
        cpu_seconds: CPU time used since it was started.
    """

    state: DomainState
    reason: str
    vcpus: int
    memory: int
    max_memory: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class JobStats:
    """A running (or the last completed) job of a domain, from virDomainGetJobStats.

    Attributes:
        active: whether the job still runs.
        elapsed_ms: since the job began.
        total, processed, remaining: bytes of guest memory.
        bandwidth: bytes a second, by libvirt's measure; 0 if unknown.
        dirty_rate: bytes a second that the guest makes dirty, by QEMU's count; 0 if unknown.
        iteration: round of pre-copy, from 1.
        downtime_ms: while it runs what QEMU expects, after it what it was; None if unknown.
        raw: every field under libvirt's own name.
    """

    active: bool
    elapsed_ms: int
    total: int
    processed: int
    remaining: int
    bandwidth: int
    dirty_rate: int
    iteration: int
    downtime_ms: int | None
    raw: dict[str, Any]


class Domain:
    """A handle on a domain. Every call asks libvirt; nothing is remembered but name and uuid."""

    def __init__(self, host: Host, handle: libvirt.virDomain) -> None:
        self.host = host
        self.handle = handle
        self.name: str = handle.name()
        self.uuid: str = handle.UUIDString()

    def __repr__(self) -> str:
        return f"<Domain {self.name} on {self.host.uri}>"

    def _do(self, what: str, call: Callable[..., Any], *args: Any) -> Any:
        with translated(f"{what} of {self.name}"):
            return call(*args)

    # -- what it is

    def info(self) -> DomainInfo:
        """State, size and CPU time now."""
        state, reason = self._do("state", self.handle.state)
        _, max_kib, kib, vcpus, cpu_ns = self._do("info", self.handle.info)
        kind = _STATES[state]
        why = PAUSED_REASONS[reason] if kind is DomainState.PAUSED and reason < len(PAUSED_REASONS) else ""
        if kind is DomainState.SHUTOFF and reason == _SHUTOFF_CRASHED:
            why = "crashed"
        return DomainInfo(kind, why, vcpus, kib * 1024, max_kib * 1024, cpu_ns / 1e9)

    def state(self) -> DomainState:
        """State now. A domain on Xen that is being rebooted is waited for, since libxl has it shut off in between."""
        number: int = self._do("state", self.handle.state)[0]
        if _STATES[number] is DomainState.SHUTOFF and self.host.uri.startswith("xen"):
            # Undefined now, it would run on and nobody would know of it (seen with libvirt 9.0).
            self._settle()
            number = self._do("state", self.handle.state)[0]
        return _STATES[number]

    def _settle(self) -> None:
        """Change nothing, by a call that waits until whatever else changes the domain is through."""
        for left in reversed(range(_SETTLES)):
            try:
                self.set_autostart(self.autostart)
            except ConflictError:
                if not left:
                    raise
            else:
                return

    def exists(self) -> bool:
        """Whether the host still knows this domain (by uuid)."""
        try:
            with translated(f"look-up of {self.name}"):
                self.host.handle.lookupByUUIDString(self.uuid)
        except NotFoundError:
            return False
        return True

    def xml(self, *, inactive: bool = False, secure: bool = False, migratable: bool = False) -> str:
        """The domain's XML: what runs now, or (inactive) what the next start uses."""
        flags = (
            (libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0)
            | (libvirt.VIR_DOMAIN_XML_SECURE if secure else 0)
            | (libvirt.VIR_DOMAIN_XML_MIGRATABLE if migratable else 0)
        )
        return str(self._do("XML", self.handle.XMLDesc, flags))

    @property
    def persistent(self) -> bool:
        """Whether its definition outlives its shutting down."""
        return bool(self._do("look-up", self.handle.isPersistent))

    def metadata(self, namespace: str) -> str | None:
        """The XML element that was stored under a namespace URI; None if there is none."""
        try:
            return str(self._do("metadata", self.handle.metadata, libvirt.VIR_DOMAIN_METADATA_ELEMENT, namespace))
        except NotFoundError:
            return None

    @property
    def autostart(self) -> bool:
        """Whether it starts with its host."""
        return bool(self._do("autostart", self.handle.autostart))

    def set_autostart(self, on: bool) -> None:
        """Have it start with its host, or not."""
        self._do("autostart", self.handle.setAutostart, int(on))

    # -- life cycle

    def start(self, *, paused: bool = False) -> None:
        """Start a defined domain; where somebody attends to newcomers (see that module), by them."""
        if not paused and (by := attendant()) is not None:
            by.start(self)
            return
        self._do("start", self.handle.createWithFlags, libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def shutdown(self) -> None:
        """Ask the guest to shut down; returns at once."""
        self._do("shutdown", self.handle.shutdown)

    def reboot(self) -> None:
        """Ask the guest to reboot; returns at once."""
        self._do("reboot", self.handle.reboot)

    def reset(self) -> None:
        """Press the reset button."""
        self._do("reset", self.handle.reset)

    def destroy(self) -> None:
        """Pull the plug."""
        self._do("stop", self.handle.destroy)

    def suspend(self) -> None:
        """Pause the vCPUs. They stand still when this returns."""
        self._do("pause", self.handle.suspend)

    def resume(self) -> None:
        """Let paused vCPUs run again."""
        self._do("resume", self.handle.resume)

    def undefine(self) -> None:
        """Remove the definition and what libvirt keeps beside it: managed save, snapshots, checkpoints, NVRAM."""
        saved = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        snapshots = saved | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        more = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        for flags in (snapshots | more, snapshots):
            try:
                self._do("deletion", self.handle.undefineFlags, flags)
                return
            except UnsupportedError:  # drivers that know fewer: the test driver, Xen
                continue
        self._do("deletion", self.handle.undefineFlags, saved)

    # -- jobs

    def job(self) -> JobStats | None:
        """The job that runs on it; None if none does."""
        raw = self._do("job statistics", self.handle.jobStats)
        return None if raw.get("type", 0) == libvirt.VIR_DOMAIN_JOB_NONE else _stats(raw, active=True)

    def completed_job(self) -> JobStats | None:
        """The last completed job, as far as libvirt still knows it; reading it makes libvirt forget it."""
        try:
            raw = self._do("job statistics", self.handle.jobStats, libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
        except (NotFoundError, EffectError, UnsupportedError):
            return None
        return _stats(raw, active=False) if raw.get("type", 0) != libvirt.VIR_DOMAIN_JOB_NONE else None

    def abort_job(self) -> None:
        """Ask the running job to stop. Raises ConflictError if there is none."""
        self._do("cancelling the job", self.handle.abortJob)

    # -- inside the guest

    def agent(self, command: str, arguments: dict[str, Any] | None = None, *, timeout: int = 5) -> Any:
        """Call the QEMU guest agent and return what it returns.

        Args:
            command: as in the QEMU guest agent protocol reference: 'guest-ping'.
            arguments: its arguments.
            timeout: whole seconds to wait.

        Raises:
            UnreachableError, EffectError: the agent does not answer.
        """
        import libvirt_qemu

        request = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        answer = self._do(f"guest agent ({command})", libvirt_qemu.qemuAgentCommand, self.handle, request, timeout, 0)
        return json.loads(answer)["return"]

    def monitor(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Call QEMU's monitor (QMP) through libvirt, which marks the domain as tainted. For reading state only."""
        import libvirt_qemu

        request = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        answer = self._do(f"QMP ({command})", libvirt_qemu.qemuMonitorCommand, self.handle, request, 0)
        return json.loads(answer)["return"]

    def addresses(self) -> list[str]:
        """IP addresses that libvirt knows of, from DHCP leases, then the guest agent, then ARP; loopback left out."""
        found: dict[str, None] = {}
        for source in (
            libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
            libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
            libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
        ):
            try:
                with translated("addresses"):
                    interfaces = self.handle.interfaceAddresses(source)
            except Exception as e:
                del e
                continue
            for name, interface in interfaces.items():
                for address in interface.get("addrs") or ():
                    if name != "lo" and not address["addr"].startswith(("fe80:", "127.")):
                        found[address["addr"]] = None
        return list(found)

    def open_console(self, *, force: bool = False) -> libvirt.virStream:
        """Attach to the first console. `force` throws out whoever is attached.

        The stream is non-blocking; see vmkit.hypervisor.stream.
        """
        stream = self.host.handle.newStream(libvirt.VIR_STREAM_NONBLOCK)
        flags = libvirt.VIR_DOMAIN_CONSOLE_FORCE if force else libvirt.VIR_DOMAIN_CONSOLE_SAFE
        if not force and self.host.uri.startswith("xen"):
            flags = 0  # libxl refuses the flag, and a second one on the console without it
        self._do("console", self.handle.openConsole, None, stream, flags)
        return stream


def _stats(raw: dict[str, Any], *, active: bool) -> JobStats:
    page = raw.get("memory_page_size", 4096)
    return JobStats(
        active=active,
        elapsed_ms=raw.get("time_elapsed", 0),
        total=raw.get("memory_total", 0),
        processed=raw.get("memory_processed", 0),
        remaining=raw.get("memory_remaining", 0),
        bandwidth=raw.get("memory_bps", 0),
        dirty_rate=raw.get("memory_dirty_rate", 0) * page,
        iteration=raw.get("memory_iteration", 0),
        downtime_ms=raw.get("downtime"),
        raw=raw,
    )
