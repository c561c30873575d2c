"""Running a program that takes minutes: what it says is passed on, and it never outlives its caller."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from vmkit.errors import DeadlineError, EffectError, UnsupportedError
from vmkit.system.clock import Deadline

_GRACE: Final = 5.0


def contained(argv: Sequence[str | Path]) -> list[str]:
    """The command that runs another one, as root, in mount and PID namespaces of its own.

    What it mounts is seen by it alone, and when the caller dies, however that is, the kernel ends everything in it:
    setpriv(1) has its child killed with the parent, and unshare(1) likewise.
    """
    outer = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*outer, "--", *(str(a) for a in argv)]


def run_long(
    argv: Sequence[str | Path],
    *,
    log: Path,
    advance: Callable[[float, str], None],
    timeout: float,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a program to its end. If the caller is interrupted the program is ended first.

    Args:
        argv: program and arguments.
        log: file that its output goes to.
        advance: called twice a second with the seconds that have passed, and the last line of the output.
        timeout: seconds until it is ended.
        env: variables on top of the caller's own; LC_ALL is set to C either way.

    Raises:
        UnsupportedError: the program is not installed.
        EffectError: it failed; the details are the end of its output.
        DeadlineError: it did not end in time.
    """
    words = [str(a) for a in argv]
    deadline = Deadline(timeout)
    with log.open("wb") as out:
        try:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, "LC_ALL": "C", **(env or {})},
            )
        except FileNotFoundError as e:
            raise UnsupportedError(
                f"the program '{words[0]}' is not installed", hint="scripts/setup installs what vmkit needs"
            ) from e
    try:
        while child.poll() is None:
            deadline.check(f"the end of '{words[0]}'")
            advance(deadline.elapsed, last_line(log))
            try:
                child.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
    except DeadlineError as e:
        raise DeadlineError(e.message, details=tail(log)) from None
    finally:
        _end(child)
    if child.returncode != 0:
        full = any("No space left on device" in line for line in tail(log, 30))
        raise EffectError(
            f"'{_named(words)}' failed with status {child.returncode}",
            details=tail(log),
            hint="free some space: df -h" if full else None,
        )


def _named(words: Sequence[str]) -> str:
    return words[words.index("--") + 1] if words[0] == "setpriv" and "--" in words else words[0]


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        end = time.monotonic() + _GRACE
        while child.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        child.kill()
        child.wait()


def last_line(log: Path) -> str:
    """The last line of a growing file that has anything printable in it."""
    lines = tail(log, 1)
    return lines[0][-100:] if lines else ""


def tail(log: Path, lines: int = 8) -> tuple[str, ...]:
    """The last lines of a file; none if it is not there."""
    try:
        with log.open("rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 8192))
            text = f.read().decode(errors="replace")
    except OSError:
        return ()
    found = ("".join(c for c in line if c.isprintable()).strip() for line in text.replace("\r", "\n").splitlines())
    return tuple(line for line in found if line)[-lines:]
