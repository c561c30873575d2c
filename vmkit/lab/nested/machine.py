"""Running QEMUs of a lab: starting them, speaking with the host inside, saving and loading."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkit.errors import DeadlineError, EffectError, UnreachableError
from vmkit.lab.layout import MARK
from vmkit.lab.nested.emulator import environment
from vmkit.lab.nested.flavour import Flavour
from vmkit.lab.nested.hardware import Engine, Files
from vmkit.lab.nested.options import HostOptions
from vmkit.system.clock import Deadline
from vmkit.system.lines import LineSocket, Qmp
from vmkit.system.longrun import tail
from vmkit.system.process import ProcessId, spawn

CRASHES: Final = ("Kernel panic - not syncing", "Panic on CPU", "Domain 0 crashed", "Domain 0 shutdown:")
"""What Linux and Xen say on the console when a host will not come up any more (panic() of both; hwdom_shutdown)."""
SETTLE_WITHIN: Final = 600.0
"""Seconds for a host to take on its identity. It takes 5 (measured)."""
_SAY_AGAIN: Final = 3.0
_LOAD_WITHIN: Final = 180.0
_SAVE_WITHIN: Final = 180.0


class CrashedError(EffectError):
    """The kernel or the hypervisor of a host says on the console that it has crashed."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A QEMU that runs.

    Attributes:
        name: of the host: 'h1'.
        process: QEMU.
        files: what is its own.
        boot_within: seconds that its boot may take.
    """

    name: str
    process: ProcessId
    files: Files
    boot_within: float

    def failed(self, text: str) -> EffectError:
        """An error with the end of what host and QEMU have said."""
        said = tail(self.files.folder / "qemu.log", 4) + tail(self.files.console, 8)
        return EffectError(text, details=said)


def start(
    lab: Path,
    name: str,
    flavour: Flavour,
    engine: Engine,
    options: HostOptions,
    files: Files,
    state: Path | None = None,
) -> Machine:
    """Start a host's QEMU, which carries the mark of a lab's folder.

    Args:
        lab: folder of the lab that it belongs to.
        name: of the host.
        flavour: its kind.
        engine: what runs it.
        options: its hardware.
        files: what is its own.
        state: a saved machine to load; it is then paused.

    Raises:
        UnsupportedError, EffectError: QEMU does not start.
    """
    argv = flavour.command(f"{lab.name}/{name}", engine, options, files, flavour.cmdline)
    log = files.folder / "qemu.log"
    env = {MARK: str(lab), **environment(engine)}
    if state is None:
        return Machine(name, spawn(argv, log=log, env=env), files, flavour.boot_within)
    if engine.version >= (8, 2):
        return Machine(
            name, spawn([*argv, "-S", "-incoming", f"file:{state}"], log=log, env=env), files, flavour.boot_within
        )
    with state.open("rb") as f:
        # Older ones take an open file for a connection (docs of QEMU's migration, `fd:`).
        argv += ["-S", "-incoming", f"fd:{f.fileno()}"]
        return Machine(name, spawn(argv, log=log, env=env, pass_fds=(f.fileno(),)), files, flavour.boot_within)


def listens(machine: Machine) -> None:
    """Wait until a QEMU that was started has made its sockets.

    Raises:
        EffectError: it ended.
        DeadlineError: it did not in time.
    """

    def probe() -> bool:
        if not machine.process.alive():
            raise machine.failed(f"QEMU of {machine.name} ended at once")
        return machine.files.monitor.exists()

    Deadline(60.0).wait_for(f"QEMU of {machine.name}", probe, interval=0.02)


def loaded(machine: Machine) -> None:
    """Wait until a saved machine is loaded, and let it run.

    Raises:
        EffectError, DeadlineError: it was not.
    """
    deadline = Deadline(_LOAD_WITHIN)
    try:
        with Qmp.open(machine.files.monitor, timeout=deadline.left) as monitor:
            while monitor.execute("query-status")["status"] == "inmigrate":
                deadline.check(f"loading of {machine.name}")
                time.sleep(0.05)
            monitor.execute("cont")
    except (UnreachableError, EffectError) as e:
        raise machine.failed(f"the saved machine cannot be loaded as {machine.name}: {e.message}") from e


def connect_wires(machine: Machine, wires: Sequence[str]) -> None:
    """Tell a host that wires have carrier, now that another host is at their other end.

    A saved machine remembers that they had none, and QEMU takes its word for it.

    Raises:
        EffectError, UnreachableError: QEMU refuses, or is gone.
    """
    if wires:
        with Qmp.open(machine.files.monitor) as monitor:
            for wire in wires:
                monitor.execute("set_link", name=wire, up=True)


def booted(machine: Machine, channel: LineSocket, advance: Callable[[float], None]) -> None:
    """Wait until a host has said that it has booted.

    Raises:
        EffectError: it ended.
        CrashedError: it has crashed, by its console.
        DeadlineError: it did not in time.
    """
    for line in _said(machine, channel, machine.boot_within, advance, "the boot"):
        if line == "booted":
            return


def settle(machine: Machine, channel: LineSocket, advance: Callable[[str], None]) -> None:
    """Give a host the word to take on its identity, and wait until it has.

    The word is said until there is an answer: a port that is opened at both ends while the machine is loaded may lose
    what is sent just then.

    Raises:
        EffectError: it could not, and says why; or it ended.
        CrashedError: it has crashed, by its console.
        DeadlineError: it did not in time.
    """
    heard = False
    again = Deadline(0.0)

    def say(_seconds: float) -> None:
        nonlocal again
        if not heard and again.passed:
            channel.send(f"go {time.time():.3f}")
            again = Deadline(_SAY_AGAIN)

    say(0.0)
    for line in _said(machine, channel, SETTLE_WITHIN, say, "the identity"):
        heard = True
        word, _, rest = line.partition(" ")
        if word == "settled":
            return
        if word == "failed":
            raise machine.failed(f"{machine.name}: {rest}")
        if word == "doing":
            advance(rest)


def _said(
    machine: Machine, channel: LineSocket, seconds: float, advance: Callable[[float], None], what: str
) -> Iterator[str]:
    deadline = Deadline(seconds)
    while True:
        try:
            line = channel.receive(min(1.0, deadline.left))
        except UnreachableError as e:
            raise machine.failed(f"{machine.name} ended during {what}") from e
        if line is not None:
            yield line
        elif not machine.process.alive():
            raise machine.failed(f"{machine.name} ended during {what}")
        elif crash := crashed(machine.files.console):
            raise CrashedError(f"{machine.name} crashed during {what}: {crash}", details=tail(machine.files.console))
        elif deadline.passed:
            raise DeadlineError(
                f"{what} of {machine.name}: not within {seconds:g} s",
                details=tail(machine.files.console),
                hint="the machine may be busy: see what runs (top), and try again",
            )
        advance(deadline.elapsed)


def crashed(console: Path) -> str | None:
    """The line of a console that says that the host has crashed; None if there is none."""
    try:
        text = console.read_text(errors="replace")
    except OSError:
        return None
    return next((line.strip() for line in text.splitlines() if any(word in line for word in CRASHES)), None)


def save(machine: Machine, target: Path) -> None:
    """Write a running machine's memory and devices to a file, and end its QEMU; its disk then holds what belongs to it.

    Raises:
        EffectError, DeadlineError: it cannot be saved.
    """
    deadline = Deadline(_SAVE_WITHIN)
    with Qmp.open(machine.files.monitor) as monitor:
        monitor.execute("stop")
        monitor.execute("migrate-set-parameters", **{"max-bandwidth": 2**40})
        monitor.execute("migrate", uri=f"exec:cat >'{target}'")
        while (status := monitor.execute("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled"):
                raise machine.failed("the booted machine cannot be saved")
            deadline.check("saving of the booted machine")
            time.sleep(0.1)
        monitor.execute("quit")
    deadline.wait_for("the end of QEMU", lambda: not machine.process.alive())
