"""A host that has booted, saved: the hosts of every lab with the same hardware are loaded from it in seconds."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from vmkit.errors import EffectError
from vmkit.lab import cache
from vmkit.lab.layout import Layout
from vmkit.lab.nested import machine
from vmkit.lab.nested.emulator import machine_text
from vmkit.lab.nested.flavour import Flavour
from vmkit.lab.nested.hardware import PAYLOAD_SIZE, Engine, Files
from vmkit.lab.nested.image import HostImage
from vmkit.lab.nested.options import HostOptions
from vmkit.lab.reality import end_processes
from vmkit.lab.together import step
from vmkit.progress import Advanced, Note, Reporter
from vmkit.system.files import ensure_dir
from vmkit.system.lines import LineSocket, free_port
from vmkit.system.process import run
from vmkit.values import Bytes

NEEDS: Final = Bytes.parse("2G")
"""Space on disk for one; it takes 0.5 to 1 G (measured)."""
_PLACE: Final = "booting"
ATTEMPTS: Final = 3
"""How often hosts are started at most where emulation makes one of them crash."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Booted:
    """A saved machine.

    Attributes:
        name: in the cache.
        disk: what its disk was then; overlays of it are made.
        state: its memory and devices; None where it could not be saved, and `disk` is the image's own.
        format: of the disk: 'qcow2' or 'raw'.
    """

    name: str
    disk: Path
    state: Path | None
    format: str


class UnsavedError(EffectError):
    """The machine has booted and cannot be saved."""


def booted(
    layout: Layout, flavour: Flavour, engine: Engine, options: HostOptions, image: HostImage, reporter: Reporter
) -> Booted:
    """The saved machine for some hardware. If there is none, one is booted and saved, in the lab's name.

    Raises:
        EffectError, DeadlineError: it does not boot; nothing is left in the cache.
        RefusedError: no space.
    """
    text = flavour.key_text(engine, options, image.key, machine_text(engine))
    name = f"booted-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    try:
        folder = cache.make(name, NEEDS, lambda half: _boot(layout, flavour, engine, options, image, half, reporter))
    except UnsavedError as e:
        reporter(Note(f"{e.message}: every host boots by itself", warning=True))
        return Booted(image.name, image.disk, None, "raw")
    return Booted(name, folder / "disk.qcow2", folder / "state", "qcow2")


def overlay(base: Booted | HostImage, target: Path) -> None:
    """Make a disk that keeps only what is written to it."""
    kind = base.format if isinstance(base, Booted) else "raw"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.disk, "-F", kind, target])


def again_after_crash(layout: Layout, folders: Sequence[Path], attempt: Callable[[], T], reporter: Reporter) -> T:
    """Do something that starts machines of a lab; after a crash of one of them, again, up to ATTEMPTS times.

    Before that the lab's processes are ended, and the sockets and consoles of its hosts' folders removed.

    Raises:
        CrashedError: the last attempt's.
    """
    for number in range(1, ATTEMPTS):
        try:
            return attempt()
        except machine.CrashedError as e:
            reporter(Note(f"{e.message}; started again, attempt {number + 1} of {ATTEMPTS}", warning=True))
        end_processes(layout)
        for folder in folders:
            for path in (folder / "console.log", *(p for p in folder.iterdir() if p.is_socket())):
                path.unlink(missing_ok=True)
    return attempt()


def _boot(
    layout: Layout,
    flavour: Flavour,
    engine: Engine,
    options: HostOptions,
    image: HostImage,
    half: Path,
    reporter: Reporter,
) -> None:
    own = ensure_dir(layout.folder / _PLACE, 0o700)
    share = ensure_dir(own / "share")
    payload, disk = own / "payload", half / "disk.qcow2"
    payload.touch()
    with payload.open("r+b") as f:
        f.truncate(PAYLOAD_SIZE)
    files = Files(own, disk, image.kernel, image.initrd, payload, share, free_port(), hypervisor=image.hypervisor)

    def advance(seconds: float) -> None:
        reporter(Advanced("first boot", seconds, None, f"on {engine.accel}"))

    def attempt() -> machine.Machine:
        overlay(image, disk)
        running = machine.start(layout.folder, _PLACE, flavour, engine, options, files)
        machine.listens(running)
        with LineSocket.open(files.channel, timeout=60.0) as channel:
            machine.booted(running, channel, advance)
        return running

    with step(reporter, "first boot", f"on {engine.accel}"):
        running = again_after_crash(layout, [own], attempt, reporter)
    with step(reporter, "saving", "the booted machine"):
        try:
            machine.save(running, half / "state")
        except EffectError as e:
            raise UnsavedError(e.message, details=e.details) from e
    half.chmod(0o755)
    shutil.rmtree(own)
