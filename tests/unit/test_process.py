"""Running programs, and knowing a process from a later one with the same number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vmkit.errors import DeadlineError, EffectError, UnsupportedError
from vmkit.system import process
from vmkit.system.clock import Deadline
from vmkit.system.process import ProcessId


def test_what_a_program_says() -> None:
    done = process.run(["sh", "-c", "cat; echo err >&2; exit 3"], stdin="in", check=False)
    assert (done.status, done.stdout, done.stderr) == (3, "in", "err\n")


def test_arguments_are_no_shell_words() -> None:
    assert process.run(["printf", "%s", "$(id); `id` && x"]).stdout == "$(id); `id` && x"


def test_a_program_speaks_english_whatever_the_caller_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert process.run(["sh", "-c", "echo $LC_ALL $EXTRA"], env={"EXTRA": "x"}).stdout == "C x\n"


def test_a_program_that_fails() -> None:
    with pytest.raises(EffectError, match="'sh' failed with status 4: last") as e:
        process.run(["sh", "-c", "echo first >&2; echo last >&2; exit 4"])
    assert e.value.details == ("first",)


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(UnsupportedError, match="'no-such-program' is not installed") as e:
        process.run(["no-such-program"])
    assert e.value.hint
    with pytest.raises(UnsupportedError) as found:
        process.find_program("no-such-program", package="no-such-package")
    assert found.value.hint == "apt-get install no-such-package"


def test_a_program_that_does_not_end() -> None:
    with pytest.raises(DeadlineError, match="'sleep' did not end within"):
        process.run(["sleep", "600"], timeout=0.2)


def test_output_that_is_not_text() -> None:
    assert process.run(["printf", r"\377"]).stdout == "\ufffd"


def test_the_identity_of_a_process() -> None:
    me = ProcessId.this()
    assert me.pid == os.getpid()
    assert me.alive()
    assert not ProcessId(me.pid, me.start + 1).alive()
    assert not ProcessId(me.pid, me.start + 1).kill(signal.SIGKILL)  # a later process of the same number is spared


def test_a_zombie_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    who = ProcessId.of(child.pid)
    assert who is not None
    assert who.kill(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert ProcessId.of(child.pid) is None
    assert not who.alive()
    child.communicate()
    assert not who.kill(signal.SIGKILL)


def test_a_program_that_outlives_its_caller(tmp_path: Path) -> None:
    log = tmp_path / "log"
    who = process.spawn(["sh", "-c", "echo $MARK; exec sleep 600"], log=log, env={"MARK": "here"})
    try:
        assert os.getsid(who.pid) == who.pid
        Deadline(20).wait_for("the line in the log", lambda: log.read_text() == "here\n")
    finally:
        who.kill(signal.SIGKILL)
        os.waitpid(who.pid, 0)
    assert not who.alive()
    with pytest.raises(UnsupportedError):
        process.spawn(["no-such-program"], log=log)


def test_a_deadline_names_what_was_waited_for() -> None:
    deadline = Deadline(0.05)
    with pytest.raises(DeadlineError, match="the moon: not within"):
        deadline.wait_for("the moon", lambda: None, interval=0.01)
    assert deadline.passed
    assert deadline.left == 0.0
    assert Deadline(60).wait_for("now", lambda: "x") == "x"


def test_a_full_disk_is_named_in_the_hint() -> None:
    with pytest.raises(EffectError) as caught:
        process.run(["dd", "if=/dev/zero", "of=/dev/full", "bs=4k", "count=1"])
    assert caught.value.hint == "free some space: df -h"
