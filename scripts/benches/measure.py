"""Measuring programs side by side, and what a figure means without its machine: nothing."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


class BenchError(Exception):
    """The measurement cannot be made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Times of one thing in milliseconds.

    Attributes:
        name: what was measured.
        runs: how many times.
        median, q1, q3, fastest: of wall time in milliseconds.
    """

    name: str
    runs: int
    median: float
    q1: float
    q3: float
    fastest: float

    @classmethod
    def of(cls, name: str, seconds: Sequence[float]) -> Sample:
        ms = sorted(s * 1000 for s in seconds)
        q1, median, q3 = statistics.quantiles(ms, n=4, method="inclusive")
        return cls(name, len(ms), median, q1, q3, ms[0])

    def plain(self) -> dict[str, Any]:
        return {k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(self).items()}


def interleaved(
    commands: Mapping[str, Sequence[str]], *, runs: int, warm_up: int = 2, env: Mapping[str, str] | None = None
) -> dict[str, Sample]:
    """Run each command `runs` times, one after the other in rounds, so that a change in load strikes all alike.

    Each round begins with another command. The first `warm_up` rounds fill the page cache and are not counted.
    """
    names = list(commands)
    times: dict[str, list[float]] = {n: [] for n in names}
    full_env = {**os.environ, **(env or {})}
    full_env.pop("PYTHONDONTWRITEBYTECODE", None)  # as a user has it: compiled once, in the warm-up
    for i in range(warm_up + runs):
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            argv = list(commands[name])
            start = time.perf_counter()
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=full_env,
                timeout=120,
                check=False,
            )
            took = time.perf_counter() - start
            if done.returncode != 0:
                raise BenchError(f"'{' '.join(argv)}' failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
            if i >= warm_up:
                times[name].append(took)
    return {n: Sample.of(n, t) for n, t in times.items()}


def output_of(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Standard output of a program, stripped; '' where it fails or is not there."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **(env or {})}
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor() or "unknown",
    )
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return {
        "cpu": cpu,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release(),
        "system": release.get("PRETTY_NAME", "unknown").strip('"'),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }
