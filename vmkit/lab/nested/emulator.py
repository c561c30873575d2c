"""The QEMU that runs nested hosts: where it is, how old, and what a machine saved by it depends on."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

from vmkit.errors import UnsupportedError
from vmkit.lab.nested.hardware import Engine
from vmkit.system.process import find_program, run

BINARY: Final = "qemu-system-x86_64"
OLDEST: Final = (7, 2)


def find() -> tuple[Path, tuple[int, ...]]:
    """QEMU and its version.

    Raises:
        UnsupportedError: it is not installed, or too old.
    """
    binary = find_program(BINARY, package="qemu-system-x86")
    number = version(binary)
    if number < OLDEST:
        raise UnsupportedError(
            f"QEMU {dotted(OLDEST)} or newer is needed, and this is {dotted(number)}",
            hint="scripts/setup installs a newer one",
        )
    return binary, number


def environment(engine: Engine) -> dict[str, str]:
    """Variables that its QEMU needs."""
    return {"LD_LIBRARY_PATH": str(engine.libraries)} if engine.libraries else {}


def machine_text(engine: Engine) -> str:
    """What a saved machine depends on beyond its command line: the build of QEMU, and with KVM the CPU."""
    build = hashlib.sha256(_version_text(engine.binary, environment(engine)).encode()).hexdigest()[:12]
    if engine.accel == "tcg":
        return build
    fields = ("model name", "flags", "microcode")
    lines = {line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(fields)}
    return "\n".join([build, os.uname().release, *sorted(lines)])


def _version_text(binary: Path, env: dict[str, str] | None = None) -> str:
    return run([binary, "--version"], env=env).stdout


def version(binary: Path, env: dict[str, str] | None = None) -> tuple[int, ...]:
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", _version_text(binary, env))
    if not match:
        raise UnsupportedError(
            f"{binary} does not say its version", hint="install it again: apt-get install --reinstall qemu-system-x86"
        )
    return tuple(int(n) for n in match.groups())


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
