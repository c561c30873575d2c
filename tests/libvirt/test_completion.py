"""Completion: asked of bash itself, and by the protocol that zsh and fish speak."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from tests.unit.test_startup import SLOW
from vmkit.cli.completion_names import FILES, FOLDERS, KINDS
from vmkit.cli.main import COMMANDS, cli

BIN = Path(sys.executable).parent
URI = "test:///default"


def environment(home: Path, **more: str) -> dict[str, str]:
    path = f"{BIN}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "VMKIT_HOME": str(home), "VMKIT_CONNECT": URI, **more}


def vmkit(*argv: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "vmkit"), *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(home, **more),
    )


def in_bash(line: str, home: Path) -> list[str]:
    """What bash would offer behind this line."""
    script = """
    source <(vmkit completion bash) || exit 1
    complete -p vmkit >/dev/null || exit 1
    COMP_LINE=$1 COMP_POINT=${#1}
    read -ra COMP_WORDS <<< "$1x"
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _vmkit_completion vmkit
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", line],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(home),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vmkit com", ["completion"]),
        ("vmkit image l", ["list"]),
        ("vmkit show ", ["test"]),
        ("vmkit show te", ["test"]),
        ("vmkit show nothing", []),
        (f"vmkit -c {URI} show ", ["test"]),
        (f"vmkit show -c {URI} t", ["test"]),
        ("vmkit stop ", ["test"]),
        ("vmkit start ", []),  # it runs
        ("vmkit stop test ", []),  # the line has it already
        ("vmkit create ", []),  # a new name
        ("vmkit create a --nic d", ["default"]),
        ("vmkit network show ", ["default"]),
        ("vmkit network create ", []),
        ("vmkit clone test ", []),
        ("vmkit snapshot revert test ", []),  # it has none
        ("vmkit list -o w", ["wide"]),
        ("vmkit list --out", ["--output"]),
        ("vmkit wait test --for b", ["boot"]),
        ("vmkit -c nonsense show ", []),
        ("vmkit show 'te", ["test"]),
        ("vmkit frobnicate --x", []),
    ],
)
def test_bash(line: str, expected: list[str], tmp_path: Path) -> None:
    assert in_bash(line, tmp_path) == expected


def test_each_entry_of_the_table_is_of_a_parameter_that_exists() -> None:
    """So that it does not go stale when a command is renamed."""

    def parameters(command: click.Command, path: str) -> set[str]:
        if isinstance(command, click.Group):
            return {p for name, sub in command.commands.items() for p in parameters(sub, f"{path} {name}")}
        return {
            form
            for param in command.params
            for form in (f"{path} {param.name}", f"{path.split()[0]} {param.name}", str(param.name))
        }

    context = click.Context(cli)
    known = {p for name in COMMANDS for p in parameters(cli.get_command(context, name) or cli, name)}
    assert set(KINDS) - {"vms"} <= known
    assert known >= FILES | FOLDERS


@pytest.mark.parametrize(("shell", "words"), [("zsh", ("vmkit show ", "2")), ("fish", ("vmkit show ", ""))])
def test_zsh_and_fish_get_names_with_their_states(shell: str, words: tuple[str, str], tmp_path: Path) -> None:
    asked = {"_VMKIT_COMPLETE": f"{shell}_complete", "COMP_WORDS": words[0], "COMP_CWORD": words[1]}
    done = vmkit(home=tmp_path, **asked)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "test" in done.stdout
    assert "running" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_it_can_read(shell: str, tmp_path: Path) -> None:
    done = vmkit("completion", shell, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "_VMKIT_COMPLETE" in done.stdout
    if program := shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        assert subprocess.run([program, "-n", str(script)], check=False, timeout=60).returncode == 0


def test_another_shell_is_refused_with_the_ones_there_are(tmp_path: Path) -> None:
    done = vmkit("completion", "csh", home=tmp_path)
    assert done.returncode == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr


def test_commands_are_completed_without_importing_them(tmp_path: Path) -> None:
    program = f"""
import sys
from vmkit.cli.main import main
try:
    main()
finally:
    sys.stderr.write(" ".join(m for m in {SLOW!r} if m in sys.modules))
"""
    asked = {"_VMKIT_COMPLETE": "bash_complete", "COMP_WORDS": "vmkit st", "COMP_CWORD": "st"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(tmp_path, **asked),
    )
    assert done.stdout.split() == ["plain,start", "plain,stop"]
    assert done.stderr == ""


def test_an_unfinished_operation_is_not_taken_up_by_a_tab(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "x.json").write_text("not a record")
    assert in_bash("vmkit show ", tmp_path) == ["test"]


def test_a_host_that_does_not_answer_completes_nothing_and_does_not_keep_the_shell(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert in_bash("vmkit -c qemu+tcp://192.0.2.1/system show ", tmp_path) == []
    assert time.monotonic() - begin < 40
