"""Hotfix on real processes: small ones in the part of QEMU, with a host whose guests are files."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hotfix_targets import NEW, OLD, FakeDomain, FakeHost, Target, World, compile_target, patch_text, raising
from vmkit.errors import CancelledError, ConflictError, EffectError, NotFoundError, RefusedError, SpecError
from vmkit.hotfix import recovery
from vmkit.hotfix.plans import Action
from vmkit.hotfix.targets.process import ProcessImage
from vmkit.hotfix.transaction import KILL_VARIABLE
from vmkit.hotfix.verify import Span
from vmkit.hypervisor.host import Host
from vmkit.recovery import recover_all
from vmkit.system.journal import records
from vmkit.system.process import ProcessId
from vmkit.system.procmem import mappings

WRITE_STEPS = ("write", "write:2", "write:3", "write:4", "read-back", "read-back:2", "let-go")
TRANSACTION_STEPS = ("pause", "pause:2", "stop", "stop:2", "compare", "compare:2", *WRITE_STEPS)
KILL_STEPS = ("record", "journal", *TRANSACTION_STEPS, "resume", "resume:2", "note-written", "finish")


RUNNING = ["running", "running", "paused user"]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for each test, and not the one that this tier shares."""
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def world(binary: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    targets = [Target(binary) for _ in range(3)]
    domains = [FakeDomain(tmp_path, f"vm{i}", t.uuid) for i, t in enumerate(targets)]
    domains[2].file.write_text("paused user")
    host = FakeHost(domains)
    monkeypatch.setattr(Host, "connect", lambda _uri: host)
    monkeypatch.setattr(recovery, "SECOND_LOOK_SECONDS", 0.02)
    patch = tmp_path / "answer.toml"
    patch.write_text(patch_text(binary))
    yield World(targets, domains, host, patch)
    for target in targets:
        target.stop()


def test_apply_and_revert(world: World) -> None:
    before = world.code()
    counters = [t.ask()[2] for t in world.targets]
    report = world.hotfixes().apply(world.patch)
    assert report.state == "applied"
    assert [t.ask()[:2] for t in world.targets] == [(NEW, 0x0A0B0C0D)] * 3
    assert world.states() == RUNNING
    assert [p.pause_ms is not None for p in report.processes] == [True, True, False]
    assert report.pause_ms == max(p.pause_ms or 0 for p in report.processes)
    assert [[w.new for w in p.writes] for p in report.processes] == [["88 77 66 55", "0d 0c 0b 0a"]] * 3
    changed = [sum(a != b for a, b in zip(x, y, strict=True)) for x, y in zip(before, world.code(), strict=True)]
    assert changed == [8, 8, 8]
    assert {r.state for r in world.hotfixes().status()} == {"patched"}

    again = world.code()
    assert world.hotfixes().apply(world.patch).state == "already applied"
    assert world.hotfixes().check("answer").state == "already applied"
    assert world.code() == again

    assert world.hotfixes().plan("answer", Action.REVERT).steps
    assert world.hotfixes().revert("answer").state == "reverted"
    assert world.code() == before
    assert world.states() == RUNNING
    assert world.hotfixes().revert("answer").state == "not applied"
    assert world.hotfixes().apply("answer").state == "applied"
    assert world.hotfixes().revert(world.patch).state == "reverted"
    assert world.code() == before
    assert all(t.ask()[2] > c for t, c in zip(world.targets, counters, strict=True))
    assert records() == []


def test_a_vm_started_later_is_patched_by_the_next_apply_alone(world: World, binary: Path, tmp_path: Path) -> None:
    world.hotfixes().apply(world.patch)
    late = Target(binary)
    try:
        world.domains.append(FakeDomain(tmp_path, "late", late.uuid))
        assert late.ask()[0] == OLD
        assert [r.state for r in world.hotfixes().status()] == ["patched"] * 3 + ["not patched"]
        report = world.hotfixes().apply("answer")
        assert [bool(p.writes) for p in report.processes] == [False, False, False, True]
        assert [p.pause_ms is None for p in report.processes] == [True, True, True, False]
        assert late.ask()[0] == NEW
        assert world.hotfixes().revert("answer").state == "reverted"
        assert {*world.answers(), late.ask()[0]} == {OLD}
    finally:
        late.stop()


def test_wildcards_are_put_back_from_the_record(world: World) -> None:
    before = world.code()
    world.patch.write_text(world.patch.read_text().replace("44 33 22 11", "44 ?? ?? ??"))
    world.hotfixes().apply(world.patch)
    assert world.answers() == {NEW}
    world.hotfixes().revert("answer")
    assert world.code() == before


def test_without_the_record_wildcards_cannot_be_put_back(world: World, home: Path) -> None:
    world.patch.write_text(world.patch.read_text().replace("44 33 22 11", "44 ?? ?? ??"))
    world.hotfixes().apply(world.patch)
    (home / "hotfix/answer/record.json").unlink()
    with pytest.raises(RefusedError, match="nothing on this machine says"):
        world.hotfixes().revert(world.patch)
    assert world.answers() == {NEW}


REFUSALS = {
    "another build": (lambda t: t.replace('build_ids = ["', 'build_ids = ["00'), RefusedError),
    "one wrong byte of context": (lambda t: t.replace("44 33 22 11 c3", "44 33 22 11 c2"), RefusedError),
    "one wrong byte": (lambda t: t.replace("44 33 22 11", "45 33 22 11"), RefusedError),
    "a wrong byte in the last edit only": (lambda t: t.replace("04 03 02 01", "04 03 02 00"), RefusedError),
    "an address in no code": (lambda t: t.replace('address = "0x', 'address = "0x7'), SpecError),
    "a symbol that is not there": (lambda t: t.replace('address = "0x', 'symbol = "no_such_'), NotFoundError),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_memory_unchanged(world: World, name: str) -> None:
    change, kind = REFUSALS[name]
    text = world.patch.read_text()
    assert change(text) != text
    world.patch.write_text(change(text))
    before = world.code()
    with pytest.raises(kind):
        world.hotfixes().apply(world.patch)
    assert world.code() == before
    assert world.states() == RUNNING
    assert records() == []


def test_one_process_that_does_not_fit_refuses_all(world: World, tmp_path: Path) -> None:
    other = Target(compile_target(tmp_path, name="qemu-system-other", flags=("-O2", "-DOTHER", "-g")))
    before = world.code()
    try:
        world.domains.append(FakeDomain(tmp_path, "other", other.uuid))
        with pytest.raises(RefusedError, match=r"the QEMU of other .* is build"):
            world.hotfixes().apply(world.patch)
    finally:
        other.stop()
    assert world.code() == before


def test_processes_that_cannot_be_told(world: World, binary: Path, tmp_path: Path) -> None:
    before = world.code()
    world.domains.append(FakeDomain(tmp_path, "elsewhere", "00000000-0000-0000-0000-000000000000"))
    with pytest.raises(NotFoundError, match="elsewhere is not visible from here"):
        world.hotfixes().apply(world.patch)
    world.domains.pop()
    twin = subprocess.Popen([binary, "-uuid", world.targets[0].uuid], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        with pytest.raises(ConflictError, match="2 QEMU processes"):
            world.hotfixes().apply(world.patch)
    finally:
        twin.communicate()
    world.domains[1].moving = True
    with pytest.raises(ConflictError, match="job"):
        world.hotfixes().apply(world.patch)
    world.domains[1].moving = False
    world.domains[2].file.write_text("paused migration")
    with pytest.raises(ConflictError, match="paused"):
        world.hotfixes().apply(world.patch)
    assert world.code() == before


def test_a_traced_process_is_refused_with_the_tracer(world: World) -> None:
    from vmkit.system.ptrace import stopped

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with stopped(world.targets[1].process.pid):
            os.write(writer, b"x")
            time.sleep(60)
        os._exit(0)
    try:
        os.read(reader, 1)
        with pytest.raises(ConflictError, match=f"traced by process {child}"):
            world.hotfixes().apply(world.patch)
        with pytest.raises(RefusedError, match=f"traced by process {child}"), stopped(world.targets[1].process.pid):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
    assert world.answers() == {OLD}
    assert world.states() == RUNNING


def test_a_thread_that_stays_in_the_bytes(world: World, binary: Path, tmp_path: Path) -> None:
    spinning = Target(binary, "spin")
    world.domains.append(FakeDomain(tmp_path, "spinning", spinning.uuid))
    edit = '[[edits]]\nsymbol = "hot"\nexpected = "f3 90 eb fc"\nreplacement = "90 90 eb fc"\n'
    world.patch.write_text(world.patch.read_text() + edit)
    before = world.code()
    try:
        with pytest.raises(EffectError, match=r"stays at 0x.*in code that changes"):
            world.hotfixes().apply(world.patch)
        spinning.ask()
    finally:
        spinning.stop()
    assert world.code() == before
    assert world.states() == [*RUNNING, "running"]
    assert records() == []


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("step", TRANSACTION_STEPS)
def test_a_failing_step_leaves_all_as_it_was(world: World, step: str, action: Action) -> None:
    if action is Action.REVERT:
        world.hotfixes().apply(world.patch)
    before = world.code()
    with pytest.raises(EffectError, match="injected") as error:
        getattr(world.hotfixes(raising(step, OSError("injected"))), action.value)(world.patch)
    assert f"the step '{step.partition(':')[0]}' failed" in error.value.message
    assert world.code() == before
    assert world.states() == RUNNING
    assert records() == []
    getattr(world.hotfixes(), action.value)(world.patch)
    assert world.answers() == {NEW if action is Action.APPLY else OLD}


def test_a_guest_that_does_not_resume_is_named_and_taken_up_again(world: World) -> None:
    stuck = world.domains[0].file.with_suffix(".stuck")
    stuck.touch()
    with pytest.raises(EffectError, match="still paused: 1 guests"):
        world.hotfixes().apply(world.patch)
    assert world.states() == ["paused user", "running", "paused user"]
    (line,) = recover_all()
    assert "vm0 is not resumed" in line
    stuck.unlink()
    (line,) = recover_all()
    assert "resumed vm0" in line
    assert world.states() == RUNNING
    assert world.answers() == {NEW}
    assert list(recover_all()) == []


def test_a_guest_that_somebody_pauses_at_the_last_moment_is_left_to_them(world: World) -> None:
    before = world.code()

    def hook(step: str) -> None:
        if step == "journal":
            world.domains[0].suspend()

    with pytest.raises(EffectError, match="vm0 is paused now"):
        world.hotfixes(hook).apply(world.patch)
    assert world.states() == ["paused user", "running", "paused user"]
    assert world.code() == before
    assert records() == []


def test_a_process_that_dies_in_the_middle(world: World) -> None:
    before = world.code()

    def hook(step: str) -> None:
        if step == "read-back":
            os.kill(
                world.targets[1].process.pid, signal.SIGKILL
            )  # not waited for: its threads are held by this process
            time.sleep(0.1)

    with pytest.raises(EffectError):
        world.hotfixes(hook).apply(world.patch)
    assert [world.targets[i].code() for i in (0, 2)] == [before[0], before[2]]
    assert records() == []


def test_ctrl_c_before_the_first_write_stops_it(world: World) -> None:
    before = world.code()

    def hook(step: str) -> None:
        if step == "compare":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(CancelledError):
        world.hotfixes(hook).apply(world.patch)
    assert world.code() == before
    assert world.states() == RUNNING
    assert records() == []


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("step", KILL_STEPS)
def test_after_a_kill_the_next_command_puts_it_right(
    world: World, step: str, action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    if action is Action.REVERT:
        world.hotfixes().apply(world.patch)
    before = world.code()
    monkeypatch.setenv(KILL_VARIABLE, step)
    child = os.fork()
    if child == 0:
        try:
            getattr(world.hotfixes(), action.value)(world.patch)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the step was not reached"
    assert os.WTERMSIG(status) == signal.SIGKILL
    monkeypatch.delenv(KILL_VARIABLE)

    lines = list(recover_all())
    assert len(lines) == (step not in ("record", "journal")), lines
    assert all("was cut off" in line for line in lines)
    assert world.states() == RUNNING
    done = step == "finish"
    assert (world.code() != before) is done
    assert len(world.answers()) == 1
    assert records() == []
    assert list(recover_all()) == []
    getattr(world.hotfixes(), action.value)(world.patch)
    assert world.answers() == {NEW if action is Action.APPLY else OLD}


def test_the_next_hotfix_takes_up_what_was_cut_off_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KILL_VARIABLE, "write:3")
    child = os.fork()
    if child == 0:
        world.hotfixes().apply(world.patch)
        os._exit(0)
    os.waitpid(child, 0)
    monkeypatch.delenv(KILL_VARIABLE)
    assert world.states() == ["paused user"] * 3
    notes: list[str] = []
    report = world.hotfixes().apply(world.patch, reporter=lambda e: notes.append(getattr(e, "text", "")))
    assert report.state == "applied"
    assert any("was cut off" in n and "resumed vm0, vm1" in n for n in notes)
    assert world.states() == RUNNING


def test_another_edition_of_an_applied_patch_is_refused(world: World) -> None:
    world.hotfixes().apply(world.patch)
    applied = world.code()
    other = world.patch.with_name("other.toml")
    other.write_text(world.patch.read_text().replace("another answer", "a third answer"))
    with pytest.raises(ConflictError, match="another edition"):
        world.hotfixes().apply(other)
    assert world.code() == applied
    assert world.hotfixes().revert(other).state == "reverted"
    assert world.hotfixes().apply(other).state == "applied"


def test_the_file_of_the_executable_may_be_gone(world: World, tmp_path: Path) -> None:
    binary = compile_target(tmp_path, name="qemu-system-upgraded")
    world.patch.write_text(patch_text(binary))
    target = Target(binary)
    world.host.domains()[:] = [FakeDomain(tmp_path, "upgraded", target.uuid)]
    binary.unlink()
    try:
        assert world.hotfixes().apply(world.patch).state == "applied"
        assert target.ask()[0] == NEW
    finally:
        target.stop()


def test_a_process_that_a_signal_stopped_is_not_waited_for(world: World) -> None:
    pid = world.targets[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ConflictError, match="stopped by a signal"):
            world.hotfixes().apply(world.patch)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_an_unknown_id(world: World) -> None:
    for call in (world.hotfixes().apply, world.hotfixes().revert, world.hotfixes().check):
        with pytest.raises(NotFoundError):
            call("no-such-patch")


KERNEL_THREAD = """
import ctypes, os, struct, sys
params = ctypes.create_string_buffer(120)
struct.pack_into("<I", params, 8, 2)  # IORING_SETUP_SQPOLL: a thread that runs in the kernel alone, as those of vhost
done = ctypes.CDLL(None, use_errno=True).syscall(425, 4, params)
print(len(os.listdir("/proc/self/task")) if done >= 0 else os.strerror(ctypes.get_errno()), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of io_uring_setup is x86's")
def test_threads_that_run_in_the_kernel_alone_have_no_stack_to_look_at() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KERNEL_THREAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as target:
        try:
            assert target.stdout
            said = target.stdout.readline().strip()
            if not said.isdigit():
                pytest.skip(f"this kernel gives no io_uring: {said}")
            assert said == "2"
            process = ProcessId.of(target.pid)
            assert process
            with ProcessImage(process, "target") as image:
                text = next(m for m in mappings(target.pid) if "x" in m.permissions)
                with image.still([Span(text.start, 4)], seconds=0.1):
                    assert image.read(text.start, 4)
        finally:
            target.kill()
