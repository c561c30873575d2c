"""What `vmkit bench host` found out: the layout of its file, HOME/bench/host.json. Reading is pure but for `load`.

Layout (format 1): an object with `format`, `when` (UTC, ISO 8601), `seconds` (of one sample), `machine` and `tools`
(text by name), `results` (a list of objects with the fields of `Result`) and `skipped` (with those of `Skipped`).
"""

from __future__ import annotations

import enum
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vmkit.errors import SpecError
from vmkit.system.files import home

FORMAT: Final = 1
"""Version of the layout; a reader refuses a higher one."""


class Area(enum.Enum):
    """What is measured."""

    CPU = "cpu"
    MEMORY = "memory"
    DISK = "disk"
    NETWORK = "network"


class Mode(enum.Enum):
    """How the work is done. The value is its name in the file and on the command line."""

    NATIVE = "native"
    NESTED = "kvm-nested"  # EPT or NPT: the hardware walks the guest's page tables and the host's
    SHADOW = "kvm-shadow"
    TCG = "tcg"
    VIRTIO = "virtio"  # of a NIC: without vhost
    VHOST = "vhost"
    EMULATED = "emulated"  # AHCI, e1000
    VF = "vf"  # virtual function of a card (SR-IOV), driven by the guest


@dataclass(frozen=True, slots=True)
class Result:
    """One workload in one mode.

    Attributes:
        area: what it stresses.
        workload: name of the workload: 'integer', 'page-tables', 'random-read'.
        mode: how the work was done.
        accelerator: how the guest's instructions were executed ('kvm', 'tcg'); '' on the host itself.
        unit: what the samples are in; more is better.
        samples: one a repetition, in the order of time.
        native: median of the same workload on the host itself; None where there is nothing to compare with.
    """

    area: Area
    workload: str
    mode: Mode
    accelerator: str
    unit: str
    samples: tuple[float, ...]
    native: float | None = None

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half of the distance between the lowest and the highest sample, as a part of the median."""
        return (max(self.samples) - min(self.samples)) / 2 / self.median if self.median else 0.0

    @property
    def efficiency(self) -> float | None:
        """Median as a part of the native one: 0.97 is 97 % of the host's own speed."""
        return self.median / self.native if self.native else None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A mode that was not measured, and why. `area` is None where that holds for all."""

    mode: Mode
    reason: str
    area: Area | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of `vmkit bench host`.

    Attributes:
        when: UTC, ISO 8601.
        seconds: length of one sample.
        machine: what it ran on: 'cpu', 'cpus', 'memory', 'kernel', 'qemu', 'libvirt', 'paging', 'virtual'.
        tools: versions of the programs that did the work.
        results: each workload in each mode.
        skipped: what was not measured.
    """

    when: str
    seconds: float
    machine: dict[str, str]
    tools: dict[str, str] = field(default_factory=dict)
    results: tuple[Result, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def find(self, area: Area, workload: str, mode: Mode) -> Result | None:
        """The result of a workload in a mode; None if it was not measured."""
        return next((r for r in self.results if (r.area, r.workload, r.mode) == (area, workload, mode)), None)

    def efficiency(self, area: Area, mode: Mode) -> float | None:
        """How much of native speed a mode reached in an area: the geometric mean over its workloads."""
        found = [e for r in self.results if r.area is area and r.mode is mode and (e := r.efficiency)]
        return statistics.geometric_mean(found) if found else None


def path() -> Path:
    """Where the last run of this machine is kept."""
    return home() / "bench" / "host.json"


def load(file: Path | None = None) -> Measured | None:
    """The last run; None if there was none.

    Raises:
        SpecError: the file is damaged, or of a later version.
    """
    where = file or path()
    try:
        text = where.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise SpecError(f"{where} cannot be read: {e}", hint="vmkit bench host makes it anew") from e
    return parse(text)


def parse(text: str) -> Measured:
    """The run in a text.

    Raises:
        SpecError: it is not a run of a known format.
    """
    hint = "vmkit bench host makes it anew"
    try:
        body = json.loads(text)
        if body["format"] > FORMAT:
            raise SpecError(f"{body['format']} is newer than this vmkit knows ({FORMAT})", path="format", hint=hint)
        return Measured(
            when=str(body["when"]),
            seconds=float(body["seconds"]),
            machine={str(k): str(v) for k, v in body["machine"].items()},
            tools={str(k): str(v) for k, v in body["tools"].items()},
            results=tuple(_result(r) for r in body["results"]),
            skipped=tuple(
                Skipped(Mode(s["mode"]), str(s["reason"]), Area(s["area"]) if s["area"] else None)
                for s in body["skipped"]
            ),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise SpecError(f"the measurements cannot be read: {type(e).__name__}: {e}", hint=hint) from e


def to_plain(measured: Measured) -> dict[str, Any]:
    """What the file holds, as plain values. Medians and efficiencies are in it for other readers, and not read back."""
    return {
        "format": FORMAT,
        "when": measured.when,
        "seconds": measured.seconds,
        "machine": measured.machine,
        "tools": measured.tools,
        "results": [
            {
                "area": r.area.value,
                "workload": r.workload,
                "mode": r.mode.value,
                "accelerator": r.accelerator,
                "unit": r.unit,
                "samples": list(r.samples),
                "native": r.native,
                "median": r.median,
                "spread": r.spread,
                "efficiency": r.efficiency,
            }
            for r in measured.results
        ],
        "skipped": [
            {"mode": s.mode.value, "reason": s.reason, "area": s.area.value if s.area else None}
            for s in measured.skipped
        ],
    }


def _result(body: Any) -> Result:
    samples = tuple(float(s) for s in body["samples"])
    if not samples:
        raise ValueError("a result without samples")
    return Result(
        area=Area(body["area"]),
        workload=str(body["workload"]),
        mode=Mode(body["mode"]),
        accelerator=str(body["accelerator"]),
        unit=str(body["unit"]),
        samples=samples,
        native=None if body["native"] is None else float(body["native"]),
    )
