"""The figures of a bench as rows for people, beside the classic ones. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmkit.host.measured import Area, Measured, Mode, Result

TITLES: Final = {
    Mode.NATIVE: "host",
    Mode.NESTED: "KVM, EPT/NPT",
    Mode.SHADOW: "KVM, shadow paging",
    Mode.TCG: "TCG",
    Mode.VIRTIO: "virtio",
    Mode.VHOST: "virtio with vhost",
    Mode.EMULATED: "emulated",
    Mode.VF: "virtual function",
}


@dataclass(frozen=True, slots=True)
class Classic:
    """What the literature says of a technique: the part of native speed that it reaches, from `low` to `high`."""

    name: str
    low: float
    high: float
    mode: Mode | None


CLASSIC: Final = (
    Classic("binary translation (50-60 % lost)", 0.40, 0.50, Mode.TCG),
    Classic("para-virtualisation", 0.98, 0.98, None),
    Classic("shadow page tables", 0.65, 0.84, Mode.SHADOW),
    Classic("EPT/NPT", 0.95, 0.98, Mode.NESTED),
)
"""The classic textbook figures, of which vmkit.host.figures gives the context."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        workload: 'cpu integer'.
        mode: as in TITLES, with the accelerator where that is not said by it.
        value: median with unit.
        spread: half of lowest to highest, in percent of the median.
        native: percent of the host's own speed; '' for the host itself.
        classic: what the literature says of this mode; '' where it says nothing.
    """

    workload: str
    mode: str
    value: str
    spread: str
    native: str
    classic: str


def rows(measured: Measured) -> list[Row]:
    """The table: workloads in the order of their first sample, modes as in `Mode`."""
    order = list(Mode)
    seen = list(dict.fromkeys((r.area, r.workload) for r in measured.results))
    areas = list(Area)
    seen.sort(key=lambda k: areas.index(k[0]))
    found = []
    for area, workload in seen:
        mine = [r for r in measured.results if (r.area, r.workload) == (area, workload)]
        found += [
            Row(
                f"{area.value} {workload}",
                title(r),
                f"{amount(r.median)} {r.unit}",
                f"±{r.spread * 100:.0f} %" if len(r.samples) > 1 else "",
                percent(r.efficiency) if r.mode is not Mode.NATIVE else "",
                classic(r.mode) if area in (Area.CPU, Area.MEMORY) else "",
            )
            for r in sorted(mine, key=lambda r: order.index(r.mode))
        ]
    return found


def summary(measured: Measured) -> list[Row]:
    """One line for each way to run a CPU: the geometric mean over the workloads of CPU and memory."""
    found = []
    for mode in (Mode.NESTED, Mode.SHADOW, Mode.TCG):
        for area in (Area.CPU, Area.MEMORY):
            part = measured.efficiency(area, mode)
            if part is not None:
                found.append(Row(f"{area.value} (mean)", TITLES[mode], "", "", percent(part), classic(mode)))
    return found


def title(result: Result) -> str:
    """The mode of a result, with the accelerator below it where the mode is one of a device."""
    name = TITLES[result.mode]
    if result.mode is Mode.EMULATED:
        name = "AHCI" if result.area is Area.DISK else "e1000"
    if result.mode is Mode.NATIVE and result.area is not Area.CPU:
        name = {Area.DISK: "host, cached file", Area.NETWORK: "host, loopback"}.get(result.area, name)
    devices = (Mode.VIRTIO, Mode.VHOST, Mode.EMULATED, Mode.VF)
    return f"{name} ({result.accelerator.upper()})" if result.mode in devices else name


def classic(mode: Mode) -> str:
    """The literature on a mode: '95-98 %'."""
    for figure in CLASSIC:
        if figure.mode is mode:
            return f"{figure.low * 100:.0f}-{figure.high * 100:.0f} %"
    return ""


def amount(value: float) -> str:
    """Three figures that count: '3.21', '412', '21,400'."""
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def percent(part: float | None) -> str:
    """'97 %', and '1.4 %' below ten; '' for None."""
    if part is None:
        return ""
    return f"{part * 100:.0f} %" if part >= 0.0995 else f"{part * 100:.1f} %"


def where(measured: Measured) -> str:
    """The machine in one line."""
    m = measured.machine
    words = [f"{m.get('cpu') or 'unknown CPU'} x {m.get('cpus', '?')}", f"Linux {m.get('kernel', '?')}"]
    words += [f"QEMU {m['qemu']}"] if m.get("qemu") else []
    words += [f"itself a guest of {m['virtual']}"] if m.get("virtual") else []
    return ", ".join(words)
