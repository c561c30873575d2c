"""Patches that are active, and processes that come later: small ones in the part of QEMU."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.hotfix_targets import NEW, OLD, FakeDomain, FakeHost, Target, World, compile_target, patch_text
from vmkit.errors import EffectError
from vmkit.hotfix import history, recovery, undo
from vmkit.hotfix.lifetime import attend_newcomers
from vmkit.hotfix.newcomers import Newcomers
from vmkit.hotfix.transaction import KILL_VARIABLE
from vmkit.hypervisor import newcomers
from vmkit.hypervisor.host import Host
from vmkit.progress import Note
from vmkit.recovery import recover_all
from vmkit.system.journal import records


class Startable(FakeDomain):
    """A domain that starts a target; a file says whether its guest runs."""

    def __init__(self, folder: Path, name: str, binary: Path) -> None:
        super().__init__(folder, name, str(uuid.uuid4()))
        self.host = SimpleNamespace(uri=FakeHost.uri)
        self.binary = binary
        self.target: Target | None = None
        self.file.write_text("shut off")

    def start(self, *, paused: bool = False) -> None:
        assert paused
        self.target = Target(self.binary, uuid_=self.uuid)
        self._become("paused user")

    def answer(self) -> int:
        assert self.target
        return self.target.ask()[0]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def world(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """One guest that runs, to which a patch was applied."""
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path / "home"))
    target = Target(binary)
    host = FakeHost([FakeDomain(tmp_path, "vm0", target.uuid)])
    monkeypatch.setattr(Host, "connect", lambda _uri: host)
    monkeypatch.setattr(recovery, "SECOND_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(newcomers, "_find", [])
    attend_newcomers()
    patch = tmp_path / "answer.toml"
    patch.write_text(patch_text(binary))
    world = World([target], host.domains(), host, patch)
    assert newcomers.attendant() is None
    world.hotfixes().apply(patch, max_pause=60)
    yield world
    late = [d.target for d in world.domains if isinstance(d, Startable) and d.target]
    for started in (target, *world.targets, *late):
        started.stop()


def late(world: World, binary: Path, folder: Path) -> Startable:
    domain = Startable(folder, "late", binary)
    world.domains.append(domain)
    return domain


def start(domain: Startable) -> None:
    by = newcomers.attendant()
    assert by
    by.start(domain)  # type: ignore[arg-type]


def told() -> list[str]:
    return [e.what for e in history.read()]


def test_a_vm_that_is_started_later_is_patched_while_it_is_paused(
    world: World, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = late(world, binary, tmp_path)
    answers: list[int] = []
    resume = domain.resume

    def resumed() -> None:
        answers.append(domain.answer())
        resume()

    monkeypatch.setattr(domain, "resume", resumed)
    start(domain)
    assert answers == [NEW]
    assert domain.file.read_text() == "running"
    assert told() == ["applied", "patched at start"]
    assert history.read()[-1].processes[0].startswith("the QEMU of late (process ")
    assert {r.state for r in world.hotfixes().status()} == {"patched"}
    assert records() == []
    assert world.hotfixes().revert("answer", max_pause=60).state == "reverted"
    assert domain.answer() == OLD
    assert newcomers.attendant() is None
    assert told() == ["applied", "patched at start", "reverted"]


def test_a_vm_that_cannot_be_patched_does_not_run(world: World, binary: Path, tmp_path: Path) -> None:
    domain = late(world, binary, tmp_path)
    remembered = undo.recall("answer")
    assert remembered
    wrong = remembered.text.replace("44 33 22 11", "44 33 22 12")
    path = Path(os.environ["VMKIT_HOME"]) / "hotfix/answer/record.json"
    path.write_text(path.read_text().replace("44 33 22 11", "44 33 22 12"))
    assert wrong != remembered.text
    with pytest.raises(EffectError, match=r"late does not run, since it cannot be patched: .* expected") as error:
        start(domain)
    assert error.value.left == "it is paused, and nothing of it has run"
    assert domain.file.read_text() == "paused user"
    assert domain.answer() == OLD
    assert records() == []


def test_another_build_is_let_run_and_a_patch_without_its_file_retires(
    world: World, tmp_path: Path, binary: Path
) -> None:
    other = compile_target(tmp_path, flags=("-O2", "-DOTHER", "-g"))
    domain = late(world, other, tmp_path)
    start(domain)
    assert domain.file.read_text() == "running"
    assert domain.answer() == OLD
    assert newcomers.attendant() is not None, "its file is still installed"
    assert domain.target
    domain.target.stop()
    world.targets[0].stop()
    kept = binary.read_bytes()
    binary.write_bytes(other.read_bytes())
    try:
        start(domain)
    finally:
        binary.unlink()
        binary.write_bytes(kept)
        binary.chmod(0o755)
        world.targets[0] = Target(binary)
    assert newcomers.attendant() is None
    assert told() == ["applied", "retired"]


@pytest.mark.parametrize("step", ["record", "journal", "stop", "write", "write:2", "read-back", "finish"])
def test_after_a_kill_the_next_command_patches_it_and_lets_it_run(
    world: World, binary: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = late(world, binary, tmp_path)
    domain.target = Target(binary, uuid_=domain.uuid)  # as libvirt has it, which outlives vmkit
    monkeypatch.setattr(domain, "start", lambda *, paused: domain._become("paused user") if paused else None)
    monkeypatch.setattr("vmkit.hotfix.newcomers.processes_of", lambda _uuid: frozenset())
    monkeypatch.setenv(KILL_VARIABLE, step)
    child = os.fork()
    if child == 0:
        try:
            start(domain)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    monkeypatch.delenv(KILL_VARIABLE)
    assert domain.file.read_text() == "paused user"
    lines = list(recover_all())
    assert "the start of late was cut off" in lines[-1], lines
    assert domain.answer() == NEW
    assert domain.file.read_text() == "running"
    assert records() == []
    assert list(recover_all()) == []


def test_a_vm_that_arrives_is_patched_in_its_new_process(world: World, binary: Path) -> None:
    moving: Any = world.domains[0]
    moving.host = SimpleNamespace(uri=FakeHost.uri)
    notes: list[str] = []
    with Newcomers().arriving(moving, lambda e: notes.append(e.text) if isinstance(e, Note) else None) as refused:
        arrived = Target(binary, "-incoming", "defer", uuid_=moving.uuid)
    try:
        assert refused() == ""
        assert arrived.ask()[0] == NEW
        assert notes == ["vm0: answer put into its new process before it ran there"]
        assert told() == ["applied", "patched on arrival"]
    finally:
        arrived.stop()


def test_a_vm_that_must_not_go_over_says_why(world: World, binary: Path) -> None:
    moving: Any = world.domains[0]
    moving.host = SimpleNamespace(uri=FakeHost.uri)
    path = Path(os.environ["VMKIT_HOME"]) / "hotfix/answer/record.json"
    path.write_text(path.read_text().replace("44 33 22 11", "44 33 22 12"))
    with Newcomers().arriving(moving) as refused:
        arrived = Target(binary, uuid_=moving.uuid)
    arrived.stop()
    assert "the new process of vm0 cannot be patched" in refused()


def test_nothing_arrives(world: World) -> None:
    moving: Any = world.domains[0]
    moving.host = SimpleNamespace(uri=FakeHost.uri)
    with Newcomers().arriving(moving) as refused:
        assert refused() == ""
    assert told() == ["applied"]
