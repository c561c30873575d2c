"""Running other programs, and knowing a process again later."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmkit.errors import DeadlineError, EffectError, UnsupportedError


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same number.

    Attributes:
        pid: number of the process in this PID namespace.
        start: start time in clock ticks since boot, field 22 of /proc/PID/stat (proc_pid_stat(5)).
    """

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of the process that has this number now; None where there is none, or only a zombie."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @classmethod
    def this(cls) -> ProcessId:
        """The identity of the calling process."""
        me = cls.of(os.getpid())
        assert me is not None  # noqa: S101 - a running process has a /proc entry
        return me

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessId.of(self.pid) == self

    def kill(self, signal_number: int) -> bool:
        """Send a signal to this very process and no other (through a pidfd). False if it is gone."""
        import signal

        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(fd, signal_number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program left: exit status (negative: the signal that ended it), and its output as text."""

    status: int
    stdout: str
    stderr: str


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | bytes | None = None,
    timeout: float = 120.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Completed:
    """Run a program to its end. Never through a shell.

    Args:
        argv: program and arguments; secrets belong into `stdin`, since every user can read argv.
        stdin: what it reads; nothing if None.
        timeout: seconds until it is killed.
        check: raise if the exit status is not 0.
        env: variables on top of the caller's own; LC_ALL is set to C either way.
        cwd: where it runs.

    Raises:
        UnsupportedError: the program is not installed.
        EffectError: it failed, and `check` is set.
        DeadlineError: it did not end in time, and was killed.
    """
    words = [str(a) for a in argv]
    data = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        done = subprocess.run(
            words,
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=timeout,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as e:
        raise UnsupportedError(
            f"the program '{words[0]}' is not installed", hint="scripts/setup installs what vmkit needs"
        ) from e
    except subprocess.TimeoutExpired as e:
        raise DeadlineError(
            f"'{words[0]}' did not end within {timeout:.0f} s and was stopped",
            hint="the machine may be busy: see what runs (top), and try again",
        ) from e
    result = Completed(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
    if check and result.status != 0:
        tail = tuple((result.stderr.strip() or result.stdout.strip()).splitlines()[-8:])
        last = f": {tail[-1]}" if tail else ""
        full = "No space left on device" in result.stderr + result.stdout
        raise EffectError(
            f"'{words[0]}' failed with status {result.status}{last}",
            details=tail[:-1],
            hint="free some space: df -h" if full else None,
        )
    return result


def spawn(
    argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> ProcessId:
    """Start a program in a session of its own that outlives the caller; its output is appended to the file `log`.

    Raises:
        UnsupportedError: the program is not installed.
        EffectError: it ended at once.
    """
    words = [str(a) for a in argv]
    with log.open("ab") as out:
        try:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, "LC_ALL": "C", **(env or {})},
                pass_fds=tuple(pass_fds),
            )
        except FileNotFoundError as e:
            raise UnsupportedError(
                f"the program '{words[0]}' is not installed", hint="scripts/setup installs what vmkit needs"
            ) from e
    me = ProcessId.of(child.pid)
    if me is None:
        raise EffectError(f"'{words[0]}' ended at once with status {child.wait()}", hint=f"see {log}")
    return me


def replace(argv: Sequence[str | Path]) -> None:
    """Become another program (execvp). Returns only by raising UnsupportedError where it is not installed."""
    words = [str(a) for a in argv]
    try:
        os.execvp(words[0], words)  # noqa: S606 - an argument list, no shell
    except FileNotFoundError as e:
        raise UnsupportedError(
            f"the program '{words[0]}' is not installed", hint="scripts/setup installs what vmkit needs"
        ) from e


def find_program(name: str, *, package: str) -> Path:
    """Where a program is.

    Raises:
        UnsupportedError: it is not installed; the hint names the Debian package.
    """
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise UnsupportedError(f"the program '{name}' is not installed", hint=f"apt-get install {package}")
    return Path(found)
