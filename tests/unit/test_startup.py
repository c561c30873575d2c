"""`vmkit --help` and friends start fast: asked of a real interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = ("libvirt", "libvirtmod", "rich", "paramiko", "pyroute2", "elftools", "msgspec", "yaml", "asyncio", "ssl")

PROGRAM = """
import sys
from vmkit.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as e:
    code = e.code
slow = {slow!r}
print("LOADED", *[m for m in slow if m in sys.modules])
sys.exit(code)
"""


def loaded(*argv: str) -> tuple[int, list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(slow=SLOW), *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    marker = next((line for line in done.stdout.splitlines() if line.startswith("LOADED")), None)
    assert marker is not None, done.stderr
    return done.returncode, marker.split()[1:], done.stdout


@pytest.mark.parametrize("argv", [("--help",), ("-h",), ("--version",), ()])
def test_the_overview_loads_nothing_slow(argv: tuple[str, ...]) -> None:
    code, slow, _ = loaded(*argv)
    assert slow == []
    assert code in (0, 2)  # click 8.2 gives 2 for a group without a command


def test_the_overview_names_every_command() -> None:
    from vmkit.cli.main import COMMANDS

    _, _, text = loaded("--help")
    for name in COMMANDS:
        assert f"\n  {name} " in text


def test_list_does_not_load_what_it_does_not_use() -> None:
    code, slow, text = loaded("-c", "test:///default", "list")
    assert code == 0, text
    assert set(slow) <= {"libvirt", "libvirtmod"}


INTERRUPTED = """
from vmkit.cli import main
def interrupted(**_):
    exec("raise KeyboardInterrupt")
main.cli.main = interrupted
main.main()
"""


def test_ctrl_c_while_python_evaluates_text_ends_with_its_code_and_not_by_the_signal(tmp_path: Path) -> None:
    (tmp_path / "evaluating.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "-m", "evaluating"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_ctrl_c_while_the_program_is_imported_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "-m", "vmkit", "list"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
