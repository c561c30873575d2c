"""New code in memory that a running process maps for it: there and used, given back, and kill -9 on the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hotfix_builds import Server, answers, build, hotfixes
from vmkit.errors import RefusedError
from vmkit.hotfix import manifest, recovery
from vmkit.hotfix.api import Hotfixes
from vmkit.hypervisor.host import Host
from vmkit.recovery import recover_all
from vmkit.system import ptrace, remotecall
from vmkit.system.journal import records
from vmkit.system.process import ProcessId
from vmkit.system.procmem import Mapping, ProcessMemory, mappings
from vmkit.system.ptrace import stopped

LARGE = ("-DLARGE",)


@dataclass
class Place:
    """A server that runs the old build, and a patch whose new code needs memory."""

    server: Server
    fixes: Hotfixes
    patch: Path

    def rooms(self) -> list[Mapping]:
        maps = mappings(self.server.process.pid)
        return [m for m in maps if m.permissions == "r-xp" and not m.path]

    def remember(self) -> str:
        return self.server.tell("r 7")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("builds")
    fixed = ("-no-pie", "-fno-pie")
    return {
        "PIE": (build(folder, "old"), build(folder, "large", *LARGE)),
        "fixed": (build(folder, "old-fixed", *fixed), build(folder, "large-fixed", *fixed, *LARGE)),
    }


@pytest.fixture
def place(
    request: pytest.FixtureRequest,
    built: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    builds = built[getattr(request, "param", "PIE")]
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(recovery, "SECOND_LOOK_SECONDS", 0.02)
    server = Server(builds[0])
    fixes = hotfixes(tmp_path, server)
    monkeypatch.setattr(Host, "connect", lambda _uri: fixes._connect())
    path = tmp_path / "large.toml"
    fixes.make_from_builds(*builds, id="large", path=path)
    yield Place(server, fixes, path)
    server.stop()


def killed(place: Place, action: str, number: int) -> bool:
    """Apply or revert in another process that kills itself at a numbered request of ptrace. False if it did not."""
    child = os.fork()
    if child == 0:
        try:
            _kill_at_request(number)
            getattr(place.fixes, action)(place.patch)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _kill_at_request(number: int) -> None:
    """Before the n-th request of the first system call that is made in the target."""
    real, left = ptrace.request, number

    def request(what: int, tid: int, address: int = 0, data: int | bytearray = 0) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(what, tid, address, data)

    def call(*arguments: object) -> int:
        ptrace.request = remotecall.request = request
        return real_call(*arguments)  # type: ignore[arg-type]

    real_call = remotecall.call
    from vmkit.hotfix.targets import room

    room.call = call


def alive(place: Place) -> None:
    before = place.server.count()
    end = time.monotonic() + 30
    while place.server.count() <= before + 5:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("place", ["PIE", "fixed"], indirect=True)
def test_code_that_does_not_fit_goes_into_new_memory(place: Place) -> None:
    patch = manifest.load(place.patch)
    assert patch.room
    assert manifest.parse(manifest.render(patch)) == patch
    before, code, maps = answers(place.server), place.server.code(), place.rooms()
    assert [s.verb for s in place.fixes.plan(place.patch).steps].count("room") == 1
    assert place.rooms() == maps == []
    assert place.fixes.apply(place.patch).state == "applied"
    (room,) = place.rooms()
    assert room.end - room.start == patch.room.length
    assert place.remember() == "1007"
    assert place.fixes.apply(place.patch).state == "already applied"
    assert [r.state for r in place.fixes.status()] == ["patched"]
    alive(place)
    assert place.fixes.revert("large").state == "reverted"
    assert place.rooms() == []
    assert place.server.code() == code
    assert answers(place.server) == before
    assert place.fixes.apply("large").state == "applied"
    assert place.remember() == "1007"
    assert records() == []


def test_a_call_leaves_no_trace_in_the_thread_that_makes_it(place: Place) -> None:
    """A hundred times, while its threads sleep and count."""
    pid = place.server.process.pid
    process = ProcessId.of(pid)
    assert process
    with ProcessMemory(process) as memory:
        gadgets = remotecall.find_gadgets(memory, mappings(pid))
        assert gadgets
        made, getppid, close = 0, 110, 3
        for _ in range(100):
            with stopped(pid) as held:
                before = held.registers()
                try:
                    assert remotecall.call(held, memory, gadgets, getppid) == os.getpid()
                except remotecall.BusyError:
                    continue
                assert held.registers() == before
                with pytest.raises(OSError, match="Bad file descriptor"):
                    remotecall.call(held, memory, gadgets, close, -1)
                made += 1
        assert made > 50
    alive(place)
    assert place.remember() == "7"


@pytest.mark.parametrize("action", ["apply", "revert"])
def test_a_kill_at_each_request_of_the_call(place: Place, action: str) -> None:
    """While the process maps memory or gives it back: it goes on, and the next command puts all right."""
    code, kills = place.server.code(), 0
    # In the short run each third, of the revert the others.
    for number in range(1 + (action == "revert"), 60, 1 if os.environ.get("VMKIT_CAMPAIGN") else 3):
        if action == "revert":
            place.fixes.apply(place.patch)
        done = not killed(place, action, number)
        kills += not done
        alive(place)
        list(recover_all())
        assert place.remember() in ("7", "1007")
        place.fixes.revert("large")
        assert place.rooms() == []
        assert place.server.code() == code
        if done:
            break
    print(f"\n{action}: {kills} kills on the way")
    assert done
    assert number > 10


def test_something_else_in_its_place(place: Place) -> None:
    patch = manifest.load(place.patch)
    assert patch.room
    pid = place.server.process.pid
    process = ProcessId.of(pid)
    assert process
    place.fixes.apply(place.patch)
    (room,) = place.rooms()
    place.fixes.revert("large")
    with ProcessMemory(process) as memory:
        gadgets = remotecall.find_gadgets(memory, mappings(pid))
        assert gadgets
        end = time.monotonic() + 10
        while True:
            try:
                with stopped(pid) as held:
                    remotecall.call(held, memory, gadgets, 9, room.start, 4096, 0x3, 0x100022, -1, 0)
                break
            except remotecall.BusyError:
                assert time.monotonic() < end
    maps, code = mappings(pid), place.server.code()
    with pytest.raises(RefusedError, match="has something else at 0x"):
        place.fixes.apply(place.patch)
    assert (mappings(pid), place.server.code()) == (maps, code)
    assert place.remember() == "7"
    assert records() == []
