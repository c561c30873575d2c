"""Faults at every step of applying a hot-fix and of taking it back, in processes in the part of QEMU.

Some in every run; with VMKIT_CAMPAIGN=full (scripts/test --campaign) all of them. After each: no guest stands that ran,
the one that an operator had paused still stands, every process has all old or all new code, and all the same; what was
cut off the next command explains and puts right, and the one after that has nothing to do.
"""

from __future__ import annotations

import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.hotfix_builds import Server, build
from tests.hotfix_targets import FakeDomain, FakeHost
from vmkit.errors import EffectError
from vmkit.hotfix import recovery
from vmkit.hotfix.api import Hotfixes
from vmkit.hypervisor.host import Host
from vmkit.recovery import recover_all
from vmkit.system.journal import records
from vmkit.system.procmem import ProcessMemory, mappings

FULL = os.environ.get("VMKIT_CAMPAIGN") == "full"
SHORT_EACH = 17
"""In the short run one of so many faults."""
MOST_WRITES = 8
OPERATOR_STEPS = ("record", "journal", "room")
"""Once guests are paused, another's pause of them cannot be told from ours: libvirt does not count them."""


@dataclass(frozen=True)
class Fault:
    """What happens, and before which step: its name and which of its times, from 1."""

    what: str
    step: str
    time: int = 1


@dataclass
class Arena:
    """Two guests that run and one that an operator paused; their processes run whether a guest stands or not."""

    binary: Path
    patch: Path
    host: FakeHost
    servers: list[Server]
    domains: list[FakeDomain]
    old: bytes = b""
    new: bytes = b""
    steps: list[str] = field(default_factory=list)

    def fixes(self, hook: Callable[[str], None] | None = None) -> Hotfixes:
        return Hotfixes(lambda: self.host, hook=hook, allow_unsigned=True)  # type: ignore[arg-type,return-value]

    def run(self, action: str, hook: Callable[[str], None] | None = None) -> None:
        fixes = self.fixes(hook)
        if action == "apply":
            fixes.apply(self.patch, max_pause=60.0)
        else:
            fixes.revert(self.patch, max_pause=60.0)

    def prepare(self, action: str) -> None:
        """All run, and all hold the old code, or the new one that is to be taken back."""
        for i, (server, domain) in enumerate(zip(self.servers, self.domains, strict=True)):
            if server.process.poll() is not None:
                server.stop()
                self.servers[i] = Server(self.binary)
                domain.uuid = self.servers[i].uuid
            domain._become("paused user" if i == 2 else "running")
        self.run("revert")
        if action == "revert":
            self.run("apply")

    def rooms(self, server: Server) -> int:
        return sum(m.permissions == "r-xp" and not m.path for m in mappings(server.process.pid))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("builds")
    return {n: build(folder, n, *f) for n, f in (("old", ()), ("near", ("-DNEW",)), ("room", ("-DLARGE",)))}


@pytest.fixture
def arena(
    request: pytest.FixtureRequest, built: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Arena]:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(recovery, "SECOND_LOOK_SECONDS", 0.02)
    servers = [Server(built["old"]) for _ in range(3)]
    domains = [FakeDomain(tmp_path, f"vm{i}", s.uuid) for i, s in enumerate(servers)]
    host = FakeHost(domains)
    monkeypatch.setattr(Host, "connect", lambda _uri: host)
    made = Arena(built["old"], tmp_path / "fix.toml", host, servers, domains)
    made.fixes().make_from_builds(built["old"], built[request.param], id="fix", path=made.patch)
    domains[2]._become("paused user")
    made.old = servers[0].code()
    made.run("apply")
    made.new = servers[0].code()
    assert made.new != made.old
    yield made
    for server in made.servers:
        server.stop()


def faults(steps: list[str]) -> list[Fault]:
    """For the steps of one operation, in their order."""
    seen: Counter[str] = Counter()
    moments = []
    for step in steps:
        seen[step] += 1
        moments.append((step, seen[step]))
    writes = [m for m in moments if m[0] == "write"]
    kept = set(writes[:: max(1, len(writes) // MOST_WRITES)]) | set(writes[-1:])
    moments = [m for m in moments if m[0] != "write" or m in kept]
    found = [Fault("kill vmkit", *m) for m in moments]
    found += [Fault(f"kill QEMU {i}", *m) for m in moments for i in (0, 2)]
    found += [Fault(what, "write", n) for _, n in kept for what in ("no write", "half a write")]
    found += [Fault("full disk", s) for s in dict.fromkeys(steps)]
    found += [Fault("Ctrl-C", s) for s in dict.fromkeys(steps)]
    found += [Fault("operator", s) for s in dict.fromkeys(steps) if s in OPERATOR_STEPS]
    return found


def strike(arena: Arena, action: str, fault: Fault) -> tuple[bool, bool]:
    """Carry the operation out in another process, with the fault. Whether it was killed, and whether it failed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if "write" in fault.what:
                _break_writes(fault)
            arena.run(action, _hook(arena, fault))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status), status != 0


def _hook(arena: Arena, fault: Fault) -> Callable[[str], None]:
    left = fault.time

    def hook(step: str) -> None:
        nonlocal left
        left -= step == fault.step
        if left or step != fault.step:
            return
        left = -1
        match fault.what:
            case "kill vmkit":
                os.kill(os.getpid(), signal.SIGKILL)
            case "kill QEMU 0" | "kill QEMU 2":
                arena.servers[int(fault.what[-1])].process.kill()
            case "full disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            case "Ctrl-C":
                os.kill(os.getpid(), signal.SIGINT)
            case "operator":
                arena.domains[0]._become("paused user")

    return hook


def _break_writes(fault: Fault) -> None:
    real, left = ProcessMemory.write, fault.time

    def write(self: ProcessMemory, address: int, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            if fault.what == "half a write":
                real(self, address, data[: len(data) // 2])
            raise EffectError("cannot write: broken by a test")
        real(self, address, data)

    ProcessMemory.write = write  # type: ignore[method-assign]


def wrong(arena: Arena, fault: Fault, killed: bool) -> list[str]:
    """What is not as it has to be after a fault and the next command."""
    found = []
    entries = records()
    lines = list(recover_all())
    if killed and len(lines) != len(entries):
        found.append(f"{len(entries)} entries of the journal, and said of them: {lines}")
    if records() or list(recover_all()):
        found.append("the command after the next has something to do")
    living = [(s, d) for s, d in zip(arena.servers, arena.domains, strict=True) if s.process.poll() is None]
    held = {s.code() for s, _ in living}
    if held not in ({arena.old}, {arena.new}):
        found.append("not all old and not all new")
    new = held == {arena.new}
    rooms = {arena.rooms(s) for s, _ in living}
    if not rooms <= ({0, 1} if new else {0}):
        found.append(f"memory for new code: {rooms}, new: {new}")
    for server, domain in living:
        paused = domain is arena.domains[2] or (fault.what == "operator" and domain is arena.domains[0])
        if domain.file.read_text() != ("paused user" if paused else "running"):
            found.append(f"{domain.name} is {domain.file.read_text()}")
        before = server.count()
        if server.tell("r 7") not in ("7", "1007") or server.count() < before:
            found.append(f"{domain.name} does not go on")
    if fault.what == "operator" and new is not (arena.steps[0] == "revert"):
        found.append("changed, although an operator had paused a guest meanwhile")
    return found


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("action", ["apply", "revert"])
@pytest.mark.parametrize("arena", ["near", "room"], indirect=True)
def test_faults_at_every_step(arena: Arena, action: str) -> None:
    arena.prepare(action)
    trace: list[str] = []
    arena.run(action, trace.append)
    arena.steps = [action, *trace]
    chosen = faults(trace)
    if not FULL:
        found_once = Fault("full disk", "note-written")  # it left memory mapped that nothing used
        chosen = [*chosen[len(trace) % SHORT_EACH :: SHORT_EACH], found_once]
    outcomes: Counter[str] = Counter()
    bad = []
    for fault in chosen:
        arena.prepare(action)
        killed, failed = strike(arena, action, fault)
        outcomes["killed" if killed else "failed" if failed else "done"] += 1
        if not killed and fault.what == "kill vmkit":
            bad.append(f"{fault}: it was not killed")
        bad += [f"{fault}: {w}" for w in wrong(arena, fault, killed)]
    print(f"\n{action}: {len(chosen)} faults: {dict(outcomes)}; wrong: {len(bad)}")
    assert not bad
