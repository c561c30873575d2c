"""The figures of a bench as a picture: part of the host's own speed, beside the classic ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmkit.bench.report import CLASSIC, TITLES, amount, percent, title, where
from vmkit.host.measured import Measured, Mode, Result
from vmkit.plotting import FIELD, LINE, SOFT, as_png, as_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES: Final = 9.6
_ROW: Final = 0.165
_GAP: Final = 1.1
"""Inches of a bar, and bars between two groups."""
_HEAD: Final = 0.95
_FOOT: Final = 0.75
_LIMIT: Final = 1.15
"""Bars end here; what is faster than that says so by its label."""
_RANGE: Final = "#b9a3d6"
_COLOURS: Final = {
    Mode.NESTED: "#1f77b4",
    Mode.SHADOW: "#ff9e2c",
    Mode.TCG: "#9aa5af",
    Mode.VHOST: "#1b7f5c",
    Mode.VIRTIO: "#53b38a",
    Mode.EMULATED: "#c9543f",
    Mode.VF: "#6a51a3",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its colour, the part of the host's speed from `low` (0 for a plain bar) to `high`, and its label."""

    mode: Mode | None
    low: float
    high: float
    label: str


@dataclass(frozen=True, slots=True)
class Group:
    """Bars that belong together, with the name that stands before them."""

    name: str
    note: str
    bars: tuple[Bar, ...]


def groups(measured: Measured) -> list[Group]:
    """What is drawn: the classic ranges, then each workload that was measured in a guest."""
    found = [
        Group(
            "classic figures",
            "",
            tuple(Bar(c.mode, c.low, c.high, f"{c.name}: {_range(c.low, c.high)}") for c in CLASSIC),
        )
    ]
    order = list(Mode)
    for area, workload in dict.fromkeys((r.area, r.workload) for r in measured.results):
        mine = [r for r in measured.results if (r.area, r.workload) == (area, workload) and r.efficiency is not None]
        guests = sorted((r for r in mine if r.mode is not Mode.NATIVE), key=lambda r: order.index(r.mode))
        if guests:
            host = f"host: {amount(guests[0].native or 0)} {guests[0].unit}"
            found.append(Group(f"{area.value}: {workload.replace('-', ' ')}", host, tuple(_bar(r) for r in guests)))
    return found


def draw(measured: Measured) -> str:
    """The picture, as SVG."""
    return as_svg(lambda: _figure(measured))


def raster(measured: Measured) -> bytes:
    """The picture, as PNG."""
    return as_png(lambda: _figure(measured))


def _figure(measured: Measured) -> Figure:
    from matplotlib.figure import Figure

    shown = groups(measured)
    rows = sum(len(g.bars) + _GAP for g in shown)
    height = _HEAD + rows * _ROW + _FOOT
    figure = Figure(figsize=(_INCHES, height))
    figure.text(0.025, 1 - 0.3 / height, "Guests beside the host itself", fontsize=15, weight="bold")
    figure.text(0.025, 1 - 0.53 / height, where(measured), fontsize=9, color=SOFT)
    when = f"{measured.when[:10]}, medians of samples of {measured.seconds:g} s; 100 % is the same program on the host"
    figure.text(0.025, 1 - 0.72 / height, when, fontsize=9, color=SOFT)
    ax = figure.add_axes((0.2, _FOOT / height, 0.54, rows * _ROW / height), frameon=False)
    ax.set_xlim(0, _LIMIT)
    ax.set_ylim(rows, 0)
    ax.set_yticks([])
    parts = (0, 0.25, 0.5, 0.75, 1)
    ax.set_xticks(parts, [f"{p * 100:g} %" for p in parts], fontsize=8)
    ax.tick_params(length=0)
    for part in parts:
        ax.axvline(part, color=SOFT if part == 1 else LINE, linewidth=0.8, zorder=0)
    y = _GAP / 2
    for i, group in enumerate(shown):
        if i == 0:
            ax.axhspan(0, len(group.bars) + _GAP, -0.36, 1.46, color=FIELD, clip_on=False, zorder=-1)
        _draw_group(ax, group, y)
        y += len(group.bars) + _GAP
    _legend(figure, shown)
    return figure


def _range(low: float, high: float) -> str:
    return percent(low) if low == high else f"{low * 100:.0f}-{high * 100:.0f} %"


def _bar(result: Result) -> Bar:
    part = result.efficiency or 0.0
    label = f"{percent(part)}, {amount(result.median)} {result.unit}"
    devices = (Mode.VIRTIO, Mode.VHOST, Mode.EMULATED, Mode.VF)
    return Bar(result.mode, 0.0, part, f"{label}, {title(result)}" if result.mode in devices else label)


def _draw_group(ax: Axes, group: Group, y: float) -> None:
    middle = y + len(group.bars) / 2
    left = -0.02 * _LIMIT
    ax.text(left, middle - (0.35 if group.note else 0), group.name, weight="bold", ha="right", va="center")
    if group.note:
        ax.text(left, middle + 0.55, group.note, fontsize=7, color=SOFT, ha="right", va="center")
    for i, bar in enumerate(group.bars):
        low, high = min(bar.low, _LIMIT), min(bar.high, _LIMIT)
        width = max(0.003, high - low)
        colour = _COLOURS[bar.mode] if bar.mode else _RANGE
        ax.barh(y + i + 0.5, width, height=0.8, left=low, color=colour)
        ax.text(low + width + 0.01, y + i + 0.5, bar.label, fontsize=7.5, va="center_baseline")


def _legend(figure: Figure, shown: list[Group]) -> None:
    from matplotlib.patches import Patch

    used = dict.fromkeys(b.mode for g in shown[1:] for b in g.bars if b.mode)
    names = {m: "emulated (AHCI, e1000)" if m is Mode.EMULATED else TITLES[m] for m in _COLOURS if m in used}
    if names:
        handles = [Patch(color=_COLOURS[mode], label=name) for mode, name in names.items()]
        figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, handlelength=1)
