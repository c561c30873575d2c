"""Atomic files, locks and where vmkit's own state lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vmkit.errors import ConflictError, EffectError, RefusedError
from vmkit.system import files


def test_home_is_where_it_is_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.home() == home
    monkeypatch.delenv("VMKIT_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert files.home() == Path("/var/lib/vmkit")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert files.home() == Path("/data/vmkit")


def test_a_relative_home_does_not_move_with_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VMKIT_HOME", "state")
    assert files.home() == tmp_path / "state"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    files.write_atomic(target, "one", mode=0o600)
    files.write_atomic(target, b"two", mode=0o600)
    assert target.read_text() == "two"
    assert target.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    files.write_atomic(target, "one")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RefusedError, match="no space left"):
        files.write_atomic(target, "two")
    assert target.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EffectError, match="No such file"):
        files.write_atomic(tmp_path / "no" / "file", "x")


def test_folders(tmp_path: Path) -> None:
    made = files.ensure_dir(tmp_path / "a" / "b", 0o700)
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    assert files.ensure_dir(made, 0o700).stat().st_mode & 0o777 == 0o755  # what is there is left alone
    (tmp_path / "file").touch()
    with pytest.raises((RefusedError, EffectError)):
        files.ensure_dir(tmp_path / "file" / "b")


def test_one_holder_of_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "x"
    with files.locked(path, busy="web1 is being created"):
        with (
            pytest.raises(ConflictError, match="web1 is being created"),
            files.locked(path, busy="web1 is being created"),
        ):
            pass
        with pytest.raises(ConflictError), files.locked(path, busy="b", wait=0.2):
            pass
    with files.locked(path, busy="b"):
        pass


def test_kill_9_lets_go_of_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = f"""
import sys
from pathlib import Path
from vmkit.system.files import locked
with locked(Path({str(path)!r}), busy="b"):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(ConflictError), files.locked(path, busy="b"):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait(20)
        with files.locked(path, busy="b"):
            pass


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert files.free_space(tmp_path / "a" / "b") == pytest.approx(files.free_space(tmp_path), rel=0.5)
