"""Judging, before anything is touched, whether a VM can move: pure functions of facts.

Every check says something, also when all is well, so that one report holds everything there is to mend.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vmkit.errors import ConflictError, RefusedError, UnsupportedError
from vmkit.migrate.facts import GuestFacts, HostFacts, Presence, TargetFacts
from vmkit.migrate.files import GuestFile
from vmkit.migrate.storage import Kind, copies, pool_fix, room, unfit
from vmkit.migrate.traps import show_version, sprung
from vmkit.migrate.wish import PLAIN, Wish
from vmkit.values import Bytes

CLOCK_S: Final = 2.0
"""Seconds between two hosts' clocks from which on it is said: far more than hosts that are set by NTP differ."""
FEW: Final = 4
_LACKING = re.compile(r"required features: ([\w.,\s-]+)\Z")


class Level(enum.Enum):
    """How much a finding weighs."""

    OK = "ok"
    WARNING = "warning"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at: 'cpu', 'disk', 'name'.
        text: what it is, in one line.
        fix: the smallest thing that would mend it; None where nothing has to be.
    """

    check: str
    level: Level
    text: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Preflight:
    """The report on one VM and one target."""

    vm: str
    source: str
    target: str
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> tuple[Finding, ...]:
        """What stands against the migration."""
        return tuple(f for f in self.findings if f.level is Level.REFUSED)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What the user should know beforehand."""
        return tuple(f for f in self.findings if f.level is Level.WARNING)

    def require(self) -> None:
        """Raise RefusedError if anything stands against the migration; it carries all of it."""
        if not (against := self.refused):
            return
        first, *rest = against
        kinds: dict[str, type[RefusedError]] = {
            "name": ConflictError,
            "job": ConflictError,
            "devices": UnsupportedError,
        }
        more = tuple(f"also: {f.text}" + (f" ({f.fix})" if f.fix else "") for f in rest)
        kind = kinds.get(first.check, RefusedError)
        raise kind(f"{self.vm} cannot move to {self.target}: {first.text}", hint=first.fix, details=more)


@dataclass(frozen=True, slots=True)
class Case:
    """All the facts of one migration."""

    guest: GuestFacts
    source: HostFacts
    target: HostFacts
    meeting: TargetFacts
    wish: Wish = PLAIN


def judge(case: Case) -> Preflight:
    """Look at everything; nothing is left out because something else already stands against it."""
    findings = tuple(f for check in CHECKS for f in check(case))
    return Preflight(case.guest.name, case.source.uri, case.target.uri, findings)


def _ok(check: str, text: str) -> Finding:
    return Finding(check, Level.OK, text)


def _warn(check: str, text: str, fix: str | None = None) -> Finding:
    return Finding(check, Level.WARNING, text, fix)


def _no(check: str, text: str, fix: str | None = None) -> Finding:
    return Finding(check, Level.REFUSED, text, fix)


def _hosts(c: Case) -> Iterator[Finding]:
    if c.source.uuid and c.source.uuid == c.target.uuid:
        yield _no(
            "hosts",
            f"{c.source.uri} and {c.target.uri} are the same host (host uuid {c.source.uuid})",
            "name another host; if two hosts were cloned from one image, set host_uuid in libvirtd.conf of one",
        )
    else:
        yield _ok("hosts", f"{c.source.hostname} and {c.target.hostname} both answer and are two hosts")
    if c.source.driver != c.target.driver:
        yield _no(
            "hosts", f"the source is {c.source.driver} and the target {c.target.driver}: memory does not carry over"
        )


def _state(c: Case) -> Iterator[Finding]:
    g = c.guest
    if g.running or g.paused:
        yield _ok("state", "paused, and stays so at the target" if g.paused else "running")
    elif not g.off:
        fix = f"bring it to an end: vmkit stop --force {g.name}"
        yield _no("state", f"{g.name} is {g.state}: it moves while it runs, is paused, or is shut off", fix)
    elif c.source.driver != "QEMU":
        fix = f"start it, and move it while it runs: vmkit start {g.name}"
        yield _no("state", f"libvirt's {c.source.driver} driver moves no VM that is shut off", fix)
    elif g.saved:
        fix = f"go on with it: vmkit restore {g.name}; then move it while it runs"
        yield _no("state", f"the memory of {g.name} is saved, and libvirt does not take that along", fix)
    elif g.tpm:
        fix = f"start it, and move it while it runs: vmkit start {g.name}"
        yield _no("state", "libvirt carries the state of its TPM over only while the VM runs", fix)
    else:
        yield _ok("state", "shut off: its disks and its definition move")
    if g.job:
        yield _no("job", f"another job works on {g.name}", "see it: vmkit jobs; stop it: vmkit jobs cancel " + g.name)


def _versions(c: Case) -> Iterator[Finding]:
    shown = " -> ".join(
        f"{h.driver} {show_version(h.hypervisor)}, libvirt {show_version(h.libvirt)}" for h in (c.source, c.target)
    )
    traps = () if c.guest.off else sprung(c.guest, c.source, c.target, c.wish)  # they are of memory that moves
    if not traps:
        yield _ok("versions", shown)
    for trap in traps:
        make = _no if trap.fatal else _warn
        yield make("versions", f"{trap.harm} ({shown})", trap.fix)


def _kind(c: Case) -> Iterator[Finding]:
    g = c.guest
    machines = c.target.guests.get((g.virt_type, g.arch))
    if machines is None:
        offered = sorted({t for t, arch in c.target.guests if arch == g.arch})
        what = f"offers {', '.join(offered)}" if offered else f"runs no {g.arch} guests"
        fix = "see that /dev/kvm works on the target" if g.virt_type == "kvm" else None
        yield _no("type", f"the target has no domain type '{g.virt_type}' for {g.arch}: it {what}", fix)
    elif g.machine and machines and g.machine not in machines:
        yield _no(
            "machine",
            f"the target does not know the machine type {g.machine}",
            "bring the target to a QEMU that has it, or give the VM an older machine type and restart it",
        )
    else:
        yield _ok("type", f"'{g.virt_type}' and machine type {g.machine or '-'} are there")


def _cpu(c: Case) -> Iterator[Finding]:
    g, m = c.guest, c.meeting
    if m.cpu_lack:
        yield _no("cpu", f"the target cannot run the VM's CPU: {m.cpu_lack}", _cpu_fix(c))
    elif m.cpu_unknown:
        yield _warn("cpu", f"could not be compared: {m.cpu_unknown}")
    elif g.off:
        yield _ok("cpu", "it starts on the target's CPU")
    elif g.cpu_mode == "host-passthrough":
        same = bool(c.source.cpu_model) and c.source.cpu_model == c.target.cpu_model
        text = (
            f"the VM has its host's own CPU ({c.source.cpu_model or '?'}); the target's is {c.target.cpu_model or '?'}"
        )
        yield (_warn if same else _no)("cpu", text, _cpu_fix(c))
    elif g.cpu_mode == "maximum" and c.source.hypervisor != c.target.hypervisor:
        yield _no("cpu", "the VM has 'all that QEMU can do' as its CPU, and the QEMU versions differ", _cpu_fix(c))
    else:
        yield _ok("cpu", "the target can run the VM's CPU")


def _cpu_fix(c: Case) -> str:
    """The smallest change with which the CPU would do: a few features off, or another model."""
    found = _LACKING.search(c.meeting.cpu_lack or "")
    lacking = found[1].replace(" ", "").split(",") if found else []
    if 0 < len(lacking) <= FEW:
        off = " ".join(f"<feature policy='disable' name='{name}'/>" for name in lacking)
        return f"switch off what is lacking and restart it: virsh edit {c.guest.name}, in <cpu>: {off}"
    model = c.meeting.cpu_common
    what = f"the CPU model {model}, which both hosts have," if model else "a CPU model that both hosts have"
    return f"give the VM {what} and restart it: vmkit edit {c.guest.name}"


def _files(c: Case) -> Iterator[Finding]:
    g, to_copy = c.guest, {copy.path: copy for copy in copies(c.guest, c.meeting)}
    for f in g.files:
        if f.network:
            yield _ok(f.role, f"{f.path} is on network storage")
        elif f.written and f.path in to_copy and c.source.driver != "QEMU":
            text = f"{f.path} is not on the target, and {c.source.driver} copies no disks"
            yield _no(f.role, text, "put it on storage that both hosts share")
        elif (copy := to_copy.get(f.path)) is not None:
            when = " while the guest runs" if copy.kind is Kind.DISK else "" if g.off else " beforehand"
            yield _ok(f.role, f"{f.path} is copied to the target{when}: {copy}")
            if copy.disk and not copy.own:
                text = f"{f.path} stays at the source too: vmkit did not make it"
                yield _warn(f.role, text, "delete it there once the VM runs at the target")
        elif f.role != "log":  # libvirt makes a log
            yield _file(f, c)
    yield from _pool_room(c)


def _file(f: GuestFile, c: Case) -> Finding:
    """What is to be said of a file that is not copied."""
    match c.meeting.files.get(f.path, Presence.UNKNOWN):
        case Presence.SAME:
            return _ok(f.role, f"{f.path} is the very same file on both hosts")
        case Presence.ABSENT if f.role == "nvram" and not c.guest.off:
            return _ok(f.role, f"{f.path} is carried over by the migration")
        case Presence.ABSENT if f.role in ("cdrom", "floppy"):
            eject = f"eject it: virsh change-media {c.guest.name} {f.path} --eject"
            return _no(f.role, f"the medium {f.path} is not on the target", eject)
        case Presence.ABSENT:
            why = unfit(f, c.guest, c.meeting)
            text = f"{f.path} is not on the target, and cannot be copied: {why}"
            return _no(f.role, text, "put it there at the same path, or on shared storage")
        case Presence.OTHER if f.written:
            return _no(
                f.role,
                f"{f.path} is a file of its own on each host, and the VM would lose what it wrote",
                "remove the one at the target, so that the disk can be copied, or put it on storage that both share",
            )
        case Presence.PRESENT if f.written:
            return _warn(
                f.role,
                f"{f.path} is on both hosts, but is not shown to be one shared file",
                "if it is not on shared storage, the VM would lose what it wrote",
            )
        case Presence.PRESENT | Presence.OTHER:
            return _ok(f.role, f"{f.path} is on both hosts")
        case _:
            folder = f.path.rpartition("/")[0] or "/"
            return _warn(
                f.role,
                f"{f.path} could not be checked: no storage pool of the target covers its folder",
                f"make one: {pool_fix(c.target.uri, folder)}",
            )


def _pool_room(c: Case) -> Iterator[Finding]:
    for folder, (now, most) in room(copies(c.guest, c.meeting)).items():
        free = c.meeting.pool_free.get(folder, 0)
        if now > free:
            text = f"{Bytes(now)} are to be copied to {folder} of the target, which has {Bytes(free)} free"
            yield _no("room", text, "make room there first")
        elif most > free:
            text = f"the disks can grow to {Bytes(most)} in {folder} of the target, which has {Bytes(free)} free"
            yield _warn("room", text)
        else:
            yield _ok("room", f"{Bytes(now)} go to {folder}, which has {Bytes(free)} free")


def _networks(c: Case) -> Iterator[Finding]:
    for name in c.guest.networks:
        active = c.target.networks.get(name)
        if active is None:
            there = ", ".join(sorted(c.target.networks)) or "none"
            yield _no("network", f"the target has no network '{name}'", f"define it there (it has: {there})")
        elif not active:
            yield _no(
                "network",
                f"the network '{name}' of the target is not active",
                f"start it: virsh -c '{c.target.uri}' net-start {name}",
            )
        else:
            yield _ok("network", f"'{name}' is there and active")
    seen = dict(c.meeting.around.bridges)
    for bridge in c.guest.bridges:
        if bridge not in seen:
            fix = "use a libvirt network instead"
            yield _warn("network", f"the bridge {bridge} could not be checked at the target", fix)
        elif seen[bridge]:
            yield _ok("network", f"the bridge {bridge} is there")
        else:
            yield _no(
                "network", f"the target has no bridge {bridge}", f"make it there: ip link add {bridge} type bridge"
            )


def _room(c: Case) -> Iterator[Finding]:
    if c.guest.off:
        return
    need, free = Bytes(c.guest.memory), Bytes(c.target.memory_free)
    if free < need:
        yield _no("room", f"the VM needs {need} of memory and the target has {free} free", "make room there first")
    else:
        yield _ok("room", f"{need} of {free} free memory")
    if c.guest.hugepages:
        yield _huge_pages(c)


def _huge_pages(c: Case) -> Finding:
    """Whether the target has enough huge pages of one size. That they are on the right node is seen at the start."""
    pages = c.meeting.around.pages
    if not pages:
        return _warn("room", "the VM's memory is huge pages; whether the target has enough is seen only at the start")
    best, count = max(pages.items(), key=lambda p: p[0] * p[1])
    need = -(-c.guest.memory // best)
    if count < need:
        text = f"the VM needs {need} huge pages of {Bytes(best)}, and the target has {count} free"
        fix = f"set more aside there: sysctl vm.nr_hugepages ({need} more pages of {Bytes(best)})"
        return _no("room", text, fix)
    return _ok("room", f"{need} of {count} free huge pages of {Bytes(best)}")


def _name(c: Case) -> Iterator[Finding]:
    g, same, namesake = c.guest, c.meeting.by_uuid, c.meeting.by_name
    if same is not None and same.state.active:
        yield _no(
            "name",
            f"the target already runs a domain with the uuid {g.uuid} ({same.name}, {same.state.value})",
            f"look at both: vmkit -c '{c.source.uri}' show {g.name}; vmkit -c '{c.target.uri}' show {same.name}",
        )
    elif same is not None and same.name != g.name:
        yield _no(
            "name",
            f"the target defines the uuid {g.uuid} under another name, {same.name}",
            f"remove that definition: virsh -c '{c.target.uri}' undefine {same.name} --keep-nvram",
        )
    elif namesake is not None and namesake.uuid != g.uuid:
        yield _no(
            "name",
            f"the target has another domain named {g.name} (uuid {namesake.uuid}, {namesake.state.value})",
            f"rename or delete that one: vmkit -c '{c.target.uri}' delete {g.name}",
        )
    elif same is not None:
        yield _ok("name", "the target holds an inactive definition of this very VM, which is replaced")
    else:
        yield _ok("name", "name and uuid are free at the target")


def _snapshots(c: Case) -> Iterator[Finding]:
    """A VM that has snapshots is moved by no libvirt: the other host would not know of them."""
    if c.guest.snapshots:
        count = f"{c.guest.snapshots} snapshot{'s' if c.guest.snapshots > 1 else ''}"
        fix = f"see them and delete them: vmkit snapshot list {c.guest.name}"
        yield _no("snapshots", f"it has {count}, which libvirt does not take along", fix)


def _devices(c: Case) -> Iterator[Finding]:
    for device in c.guest.devices:
        yield _no("devices", f"the VM holds a {device}, which cannot move", "detach it from the VM first")
    if not c.guest.devices:
        yield _ok("devices", "none that is bound to the host")


def _clock(c: Case) -> Iterator[Finding]:
    """A guest reads its host's clock at a start and, by some paravirtual clocks, after a migration."""
    apart, error = c.meeting.around.apart, c.meeting.around.apart_error
    if apart is None:
        yield _ok("clock", "not compared: there is no shell on both hosts")
    elif abs(apart) - error > CLOCK_S:
        way = "ahead of" if apart > 0 else "behind"
        text = f"the target's clock is {abs(apart):.1f} s {way} the source's"
        yield _warn("clock", text, "have both set by NTP: chronyc tracking")
    else:
        yield _ok("clock", f"the hosts' clocks are {abs(apart):.1f} s apart (to within {error:.1f} s)")


def _blocked(c: Case) -> Iterator[Finding]:
    for reason in c.guest.blocked:
        yield _no("blocked", f"QEMU does not let it leave: {reason}", "detach what it names, or move it shut off")


CHECKS: Final[tuple[Callable[[Case], Iterator[Finding]], ...]] = (
    *(_hosts, _state, _versions, _kind, _cpu, _name, _files, _networks, _room, _snapshots, _devices, _blocked, _clock),
)
