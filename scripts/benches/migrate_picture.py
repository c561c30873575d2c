"""What a bench of migrations came to, as a picture: bars for each cell and tool, drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate_table import Seen, ended, middle

from vmkit.plotting import INK, LINE, SOFT, as_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "virsh": "#9aa5af",
    "virsh --auto-converge": "#ff9e2c",
    "virsh --postcopy": "#6a51a3",
    "vmkit": "#1b7f5c",
}
_ROW, _HEAD = 0.16, 0.85
"""Inches of a bar, and above them all."""


def draw(seen: Seen) -> str:
    """The transfer, and the guest standing still, as SVG; what did not arrive is only outlined."""
    return as_svg(lambda: _figure(seen))


def _figure(seen: Seen) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    tools = list(dict.fromkeys(t for _, t in seen))
    cells = list(dict.fromkeys(c for c, _ in seen))
    rows = (len(tools) + 1) * len(cells)
    height = _HEAD + rows * _ROW + 0.2
    figure = Figure(figsize=(9.6, height))
    figure.text(0.02, 1 - 0.3 / height, "Migrations of one guest over one link", fontsize=13, weight="bold")
    handles = [Patch(color=COLOURS.get(tool, INK), label=tool) for tool in tools]
    figure.legend(handles=handles, loc="upper right", ncols=len(tools), frameon=False, handlelength=1)
    axes = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.15, right=0.98, top=1 - _HEAD / height, bottom=0.15 / height, wspace=0.12)
    _half(axes[0], seen, "transfer, s", "total", 1000.0)
    _half(axes[1], seen, "guest stands still, ms", "downtime", 1.0)
    middles = [i * (len(tools) + 1) + len(tools) / 2 for i in range(len(cells))]
    axes[0].set_yticks(middles, cells)
    axes[0].tick_params(axis="y", length=0, labelcolor=INK)
    return figure


def _half(ax: Axes, seen: Seen, title: str, what: str, unit: float) -> None:
    """One figure of all runs. `what` names it, in milliseconds; it is shown in so many of them."""
    tools = list(dict.fromkeys(t for _, t in seen))
    cells = list(dict.fromkeys(c for c, _ in seen))
    values = {key: middle([getattr(run, what) for run in runs]) for key, runs in seen.items()}
    top = max((v for v in values.values() if v), default=1.0) / unit
    ax.set_title(title, loc="left", color=SOFT)
    ax.set_xlim(0, top * 1.2)
    ax.set_ylim((len(tools) + 1) * len(cells), 0)
    ax.set_xticks([])
    ax.set_yticks([])
    for row, cell in enumerate(cells):
        start = row * (len(tools) + 1)
        ax.axhline(start, color=LINE, linewidth=0.8)
        for i, tool in enumerate(tools):
            if (value := values.get((cell, tool))) is None:
                continue
            arrived, colour = ended(seen[cell, tool]), COLOURS.get(tool, INK)
            (bar,) = ax.barh(start + 0.5 + i + 0.5, value / unit, 0.85, color=colour, edgecolor=colour, fill=arrived)
            bar.set_gid(f"{'arrived' if arrived else 'ended'}-{what}-{row}-{i}")
            label = f"{value / unit:.1f}" if unit > 1 else f"{value:.0f}"
            words = label if arrived else f"{label}, ended"
            ax.text(value / unit + top * 0.01, start + 0.5 + i + 0.5, words, fontsize=7, color=SOFT, va="center")
