"""Faults in the middle of a migration: when they strike, what they do, and what must hold afterwards."""

from __future__ import annotations

import contextlib
import enum
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.qemu.mover import Mover, vmkit
from tests.qemu.witness import Witness, processes_in, qemu_of
from vmkit.errors import VmkitError
from vmkit.hypervisor.domain import DomainState
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.migration import find
from vmkit.image.place import POOL
from vmkit.lab.api import Lab
from vmkit.system.journal import records

RESTART_S = 3.0
"""After a crash of libvirtd somebody starts it again, as systemd does."""
SHORT_S = 3.0
END_S = 300.0


class Phase(enum.Enum):
    """How far the migration is."""

    PREFLIGHT = "preflight"
    FILES = "files"
    BEGIN = "begin"
    STORAGE = "storage"
    FIRST = "first pass"
    ROUNDS = "later rounds"
    SWITCH = "switch-over"
    FINISH = "finish"
    CLEANUP = "cleanup"


class Fault(enum.Enum):
    """What happens then."""

    SOURCE_QEMU = "source QEMU"
    TARGET_QEMU = "target QEMU"
    SOURCE_LIBVIRTD = "source libvirtd"
    TARGET_LIBVIRTD = "target libvirtd"
    VMKIT = "vmkit"
    LINK = "link for 3 s"
    LINK_LOST = "link for good"


NOTHING_THERE = {
    (Phase.PREFLIGHT, Fault.TARGET_QEMU),
    (Phase.FILES, Fault.TARGET_QEMU),
    (Phase.CLEANUP, Fault.SOURCE_QEMU),
}
"""There is no such process then."""
CELLS = [(p, f) for p in Phase for f in Fault if (p, f) not in NOTHING_THERE]

OPTIONS: dict[Phase, tuple[str, ...]] = {
    Phase.STORAGE: ("--bandwidth", "12M"),
    Phase.FIRST: ("--bandwidth", "24M"),
    Phase.ROUNDS: ("--bandwidth", "24M"),
}
JITTER_S = {
    Phase.PREFLIGHT: 0.6,
    Phase.FILES: 0.3,
    Phase.BEGIN: 0.5,
    Phase.STORAGE: 0.5,
    Phase.FIRST: 0.5,
    Phase.ROUNDS: 0.5,
    Phase.SWITCH: 0.1,
    Phase.FINISH: 0.1,
    Phase.CLEANUP: 0.05,
}
"""How long after the phase was seen to begin the fault strikes, at most."""


@dataclass(slots=True)
class Trial:
    """One fault, and what came of it.

    Attributes:
        hit: the phase was seen to begin before the fault; else the fault came when the migration was over.
        code: exit code of vmkit, negative if it was killed.
        said: the last line that it wrote.
        outcome: 'source', 'target', 'lost' (of a QEMU that was killed with the only copy), 'open' (vmkit says that it
            does not know).
        wrong: what should not be.
    """

    phase: str
    fault: str
    seed: int
    hit: bool = False
    code: int | None = None
    said: str = ""
    outcome: str = ""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, object]:
        return asdict(self)


class Arena(Mover):
    """A VM on two hosts that share no storage. What is asked of the hosts goes by no network that a fault can cut."""

    def __init__(self, lab: Lab, name: str, address: str, **extra: object) -> None:
        super().__init__(lab, name, address, **extra)
        self.lab = lab
        self.inits = [h.pid or 0 for h in lab.hosts[:2]]
        self.uuid = ""
        self.look_anew()

    def look_anew(self) -> None:
        """Connect again: a libvirtd may have been started anew."""
        for host in self.hosts:
            host.close()
        sockets = [f"/proc/{init}/root/run/libvirt/libvirt-sock" for init in self.inits]
        self.hosts = [Host.connect(f"qemu+unix:///system?socket={s}") for s in sockets]

    def enter(self, at: int, *argv: str) -> None:
        words = ["nsenter", f"--target={self.inits[at]}", "--net", "--mount", "--uts", "--pid", "--", *argv]
        subprocess.run(words, check=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)

    def start_libvirtd(self, at: int) -> None:
        self.enter(at, "libvirtd", "-d", "--config", "/etc/libvirt/libvirtd.conf")

    def restart_libvirtd(self, at: int) -> None:
        """As somebody would whose libvirtd hangs over a domain that has no process any more."""
        for pid in processes_in(self.inits[at], "libvirtd"):
            os.kill(pid, signal.SIGKILL)
        self.enter(at, "rm", "-f", f"/run/libvirt/qemu/{self.name}.xml")
        time.sleep(RESTART_S)
        self.start_libvirtd(at)
        self.look_anew()

    def link(self, at: int, state: str) -> None:
        self.enter(at, "ip", "link", "set", "uplink", state)

    def volumes(self, at: int) -> set[str]:
        pool = self.hosts[at].pool(POOL)
        pool.refresh()
        return {n for n in pool.names() if n.startswith((self.name, "vmkit-marker"))}

    def own(self, folder: Path) -> bool:
        """Whether something of a fuse is for these hosts."""
        with contextlib.suppress(OSError):
            return str(self.lab.folder) in (folder / "ssh-source").read_text()
        return False

    def journal(self) -> str:
        """Phase of the migration in the journal; '' for none."""
        return next((r.phase for r in records("migrate") if r.subject == self.name), "")


def begun(arena: Arena, phase: Phase, at: int) -> Callable[[], bool]:
    """A question that is answered with yes when the phase has begun."""
    domain = arena.hosts[at].domain(arena.name)

    def job(key: str) -> int:
        stats = domain.job()
        if stats is None:
            return 0
        return {"disks": stats.raw.get("disk_processed", 0), "sent": stats.processed, "round": stats.iteration}[key]

    def at_target() -> bool:
        there = find(arena.hosts[1 - at], name=arena.name)
        return there is not None and there.state() is DomainState.RUNNING

    asks: dict[Phase, Callable[[], bool]] = {
        Phase.PREFLIGHT: lambda: arena.journal() == "preflight",
        Phase.FILES: lambda: arena.journal() == "storage",
        Phase.BEGIN: lambda: arena.journal() == "transfer",
        Phase.STORAGE: lambda: job("disks") > 0,
        Phase.FIRST: lambda: job("sent") > 2**20,
        Phase.ROUNDS: lambda: job("round") > 1,
        Phase.SWITCH: lambda: domain.state() is DomainState.PAUSED,
        Phase.FINISH: at_target,
        Phase.CLEANUP: lambda: arena.journal() in ("verify", "cleanup"),
    }
    return asks[phase]


def wait_for(ask: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Until it is so; False if the process has ended before."""
    while process.poll() is None:
        try:
            if ask():
                return True
        except VmkitError:  # it has just left that host
            return False
        time.sleep(0.003)
    return False


class Strike:
    """A fault that is carried out, and mended where somebody would."""

    def __init__(self, arena: Arena, fault: Fault, at: int, chance: random.Random) -> None:
        self.arena, self.fault = arena, fault
        self.where = 1 - at if fault in (Fault.TARGET_QEMU, Fault.TARGET_LIBVIRTD) else at
        if fault in (Fault.LINK, Fault.LINK_LOST):
            self.where = chance.choice((at, 1 - at))

    def __call__(self, process: subprocess.Popen[str]) -> None:
        init = self.arena.inits[self.where]
        match self.fault:
            case Fault.VMKIT:
                process.send_signal(signal.SIGKILL)
            case Fault.SOURCE_QEMU | Fault.TARGET_QEMU:
                end = time.monotonic() + 10
                while (pid := qemu_of(init, self.arena.name)) is None and time.monotonic() < end:
                    time.sleep(0.01)  # the target's is about to come
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
            case Fault.SOURCE_LIBVIRTD | Fault.TARGET_LIBVIRTD:
                for pid in processes_in(init, "libvirtd"):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(RESTART_S)
                self.arena.start_libvirtd(self.where)
            case Fault.LINK:
                self.arena.link(self.where, "down")
                time.sleep(SHORT_S)
                self.arena.link(self.where, "up")
            case Fault.LINK_LOST:
                self.arena.link(self.where, "down")

    def mended(self) -> None:
        """What is mended only when the migration is over."""
        if self.fault is Fault.LINK_LOST:
            self.arena.link(self.where, "up")


def strike(arena: Arena, phase: Phase, fault: Fault, seed: int, options: tuple[str, ...] = ()) -> Trial:
    """Begin a migration, have the fault in that phase, wait for the end, and see what there is."""
    chance = random.Random(f"{seed} {phase.name} {fault.name}")  # noqa: S311
    trial, at, start = Trial(phase.value, fault.value, seed), arena.at, time.monotonic()
    if phase is Phase.ROUNDS:
        arena.guest("dirty", "16M", "8M")
    blow = Strike(arena, fault, at, chance)
    question = begun(arena, phase, at)
    with Witness(arena.name, arena.address, arena.inits[at], arena.inits[1 - at]) as witness:
        process = arena.start_migrate(*OPTIONS.get(phase, ()), *options)
        trial.hit = wait_for(question, process)
        time.sleep(chance.uniform(0.0, JITTER_S[phase]))
        struck = time.monotonic()
        blow(process)
        try:
            _, errors = process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            trial.wrong.append(f"vmkit did not end within {END_S:g} s")
            process.kill()
            _, errors = process.communicate()
        blow.mended()
        trial.code = process.returncode
        trial.said = next((s for s in reversed(errors.splitlines()) if s.startswith(("error", "warning"))), "")
        settle(arena, trial)
        time.sleep(0.5)
    judge(arena, trial, witness, blow, at, struck)
    trial.seconds = round(time.monotonic() - start, 1)
    return trial


def settle(arena: Arena, trial: Trial) -> None:
    """Give the next commands, until the journal is empty or what is left is not for them to decide."""
    arena.look_anew()
    end = time.monotonic() + 300
    said = ""
    while records() and time.monotonic() < end:
        said = vmkit("jobs", timeout=200).stderr.strip()
        if records():
            time.sleep(1.0)
    if records():
        trial.outcome = "open"
        trial.said = said or trial.said


def judge(arena: Arena, trial: Trial, witness: Witness, blow: Strike, at: int, struck: float) -> None:
    """What must hold after any fault."""
    states = arena.states()
    trial.wrong += witness.wrongs()
    qemu = blow.fault in (Fault.SOURCE_QEMU, Fault.TARGET_QEMU)
    held = witness.holder(struck)
    mine = qemu and (at if held is not True else 1 - at) == blow.where
    # libvirt lets the source go only when the target has said that the guest runs there, however short that was
    mine |= blow.fault is Fault.TARGET_QEMU and (states[at], states[1 - at]) == ("-", "shut off")
    if states.count("running") == 1 and sorted(states) == ["-", "running"]:
        there = states.index("running")
        trial.outcome = trial.outcome or ("target" if there != at else "source")
        if trial.outcome == "open":
            trial.wrong.append(f"vmkit does not see that it runs: {trial.said}")
        if trial.code == 0 and there == at:
            trial.wrong.append("vmkit said that it had arrived")
        if trial.code in (4, 5, 7) and there != at and not qemu:
            trial.wrong.append(f"it is at the target, and vmkit said {trial.said}")
        trial.wrong += debris(arena, there)
        return
    if "running" not in states and mine and any(s in ("shut off", "crashed") for s in states):
        trial.outcome = "lost" if trial.outcome != "open" else "open"
        return
    if trial.outcome == "open" and (fits_open(trial, blow, states) or stuck(arena, blow, states, at)):
        return
    trial.wrong.append(f"it is {states}, journal {[r.phase for r in records()]}, vmkit: {trial.said}")


def fits_open(trial: Trial, blow: Strike, states: list[str]) -> bool:
    """Whether nobody can know: the target's QEMU was killed when it may have begun to run the guest."""
    late = trial.phase in (Phase.SWITCH.value, Phase.FINISH.value, Phase.CLEANUP.value)
    return late and blow.fault is Fault.TARGET_QEMU and "running" not in states


def stuck(arena: Arena, blow: Strike, states: list[str], at: int) -> bool:
    """Whether the target's libvirtd hangs over a QEMU that is gone.

    libvirt 11.3 that was killed while it started the incoming QEMU can hold that domain's lock for good, through later
    starts too: nobody but root of that host, who removes its note of the domain, ends that.
    """
    gone = qemu_of(arena.inits[1 - at], arena.name) is None
    return blow.fault is Fault.TARGET_LIBVIRTD and gone and (states[at], states[1 - at]) == ("running", "paused")


def debris(arena: Arena, there: int) -> list[str]:
    """What is left of a migration that is over."""
    found = []
    end = time.monotonic() + 20
    while time.monotonic() < end:
        other = 1 - there
        domain = arena.hosts[there].domain(arena.name)
        found = [f"{v} is left at the other host" for v in arena.volumes(other)]
        found += [f"{p} is left" for p in Path(tempfile.gettempdir()).glob("vmkit-fuse-*") if arena.own(p)]
        if (missing := {f"{arena.name}-0.qcow2", f"{arena.name}-console.log"} ^ arena.volumes(there)) != set():
            found.append(f"its own host has not what it should: {missing}")
        if qemu_of(arena.inits[other], arena.name):
            found.append("a QEMU is left at the other host")
        if "<mirror" in domain.xml():
            found.append("a disk is still mirrored")
        try:
            if domain.job() is not None:
                found.append("a job is left")
        except VmkitError as e:
            found.append(e.message)
        if not found:
            break
        time.sleep(0.5)
    return found
