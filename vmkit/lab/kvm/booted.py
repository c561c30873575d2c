"""A host that has booted, saved: the hosts of every lab with the same hardware are loaded from it in seconds."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkit.errors import EffectError
from vmkit.lab import cache
from vmkit.lab.kvm import machine
from vmkit.lab.kvm.command import PAYLOAD_SIZE, Engine, Files, key_text
from vmkit.lab.kvm.engine import machine_text
from vmkit.lab.kvm.image import HostImage
from vmkit.lab.kvm.options import KvmOptions
from vmkit.lab.layout import Layout
from vmkit.lab.together import step
from vmkit.progress import Advanced, Note, Reporter
from vmkit.system.files import ensure_dir
from vmkit.system.lines import LineSocket, free_port
from vmkit.system.process import run
from vmkit.values import Bytes

NEEDS: Final = Bytes.parse("2G")
"""Space on disk for one; it takes 0.5 to 1 G (measured)."""
_PLACE: Final = "booting"


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


def booted(layout: Layout, engine: Engine, options: KvmOptions, image: HostImage, reporter: Reporter) -> Booted:
    """The saved machine for some hardware. If there is none, one is booted and saved, in the lab's name.

    Raises:
        EffectError, DeadlineError: it does not boot; nothing is left in the cache.
        RefusedError: no space.
    """
    text = key_text(engine, options, image.key, machine_text(engine))
    name = f"booted-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    try:
        folder = cache.make(name, NEEDS, lambda half: _boot(layout, engine, options, image, half, reporter))
    except UnsavedError as e:
        reporter(Note(f"{e.message}: every host boots by itself", warning=True))
        return Booted(image.name, image.disk, None, "raw")
    return Booted(name, folder / "disk.qcow2", folder / "state", "qcow2")


def overlay(base: Booted | HostImage, target: Path) -> None:
    """Make a disk that keeps only what is written to it."""
    kind = base.format if isinstance(base, Booted) else "raw"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.disk, "-F", kind, target])


def _boot(
    layout: Layout, engine: Engine, options: KvmOptions, image: HostImage, half: Path, reporter: Reporter
) -> None:
    own = ensure_dir(layout.folder / _PLACE, 0o700)
    share = ensure_dir(own / "share")
    payload, disk = own / "payload", half / "disk.qcow2"
    payload.touch()
    with payload.open("r+b") as f:
        f.truncate(PAYLOAD_SIZE)
    overlay(image, disk)
    files = Files(own, disk, image.kernel, image.initrd, payload, share, free_port())

    def advance(seconds: float) -> None:
        reporter(Advanced("first boot", seconds, None, f"on {engine.accel}"))

    with step(reporter, "first boot", f"on {engine.accel}"):
        running = machine.start(layout.folder, _PLACE, engine, options, files, image.cmdline)
        machine.listens(running)
        with LineSocket.open(files.channel, timeout=60.0) as channel:
            machine.booted(running, channel, advance)
    with step(reporter, "saving", "the booted machine"):
        try:
            machine.save(running, half / "state")
        except EffectError as e:
            raise UnsavedError(e.message, details=e.details) from e
    half.chmod(0o755)
    shutil.rmtree(own)
