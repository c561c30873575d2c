"""What a transfer went through as a picture, drawn by matplotlib, and the same in an HTML page with the decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

from vmkit.migrate.replay import Recording
from vmkit.plotting import INK, LINE, SOFT, as_png, as_svg
from vmkit.values import Bytes, show_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES: Final = (9.6, 9.0)
_FONTS: Final = "DejaVu Sans, Helvetica, Arial, sans-serif"
_DECIDED: Final = "#6a51a3"


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a panel: its name, its colour, and (seconds, value) points; with `steps` it holds until the next."""

    name: str
    colour: str
    points: tuple[tuple[float, float], ...]
    steps: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves with one scale, how a value of it is written, and what the scale holds at least."""

    title: str
    curves: tuple[Curve, ...]
    show: Callable[[float], str]
    least: float = 0.0

    @property
    def top(self) -> float:
        """The largest value; 1 where there is none."""
        return max((self.least, *(v for c in self.curves for _, v in c.points))) or 1.0


def panels(recording: Recording) -> list[Panel]:
    """What is drawn: what is left, the rates, and what was allowed of the guest."""
    looks = recording.looks
    end = looks[-1].t if looks else 0.0
    allowed = [(0.0, recording.terms.start_downtime * 1000)]
    for made in recording.made:
        words = made.what.split()
        if words[0] == "allow":
            allowed.append((made.t, float(words[1])))
    allowed.append((end, allowed[-1][1]))
    return [
        Panel(
            "to be sent in this round",
            (Curve("remaining", "#1f77b4", tuple((k.t, float(k.remaining)) for k in looks)),),
            lambda v: str(Bytes(int(v))),
        ),
        Panel(
            "bytes a second",
            (
                Curve("sent", "#1b7f5c", tuple((k.t, float(k.bandwidth)) for k in looks)),
                Curve("becomes dirty", "#c9543f", tuple((k.t, float(k.dirty_rate)) for k in looks)),
            ),
            lambda v: f"{Bytes(int(v))}/s",
        ),
        Panel(
            "allowed downtime",
            (Curve("allowed", _DECIDED, tuple(allowed), steps=True),),
            lambda v: show_duration(v / 1000),
        ),
        Panel(
            "guest slowed down",
            (Curve("throttle", "#ff9e2c", tuple((k.t, float(k.throttle)) for k in looks), steps=True),),
            lambda v: f"{v:.0f} %",
            least=100.0,
        ),
    ]


def rounds(recording: Recording) -> list[tuple[float, int]]:
    """When each round was first seen, and its number."""
    found: list[tuple[float, int]] = []
    for look in recording.looks:
        if not found or look.iteration > found[-1][1]:
            found.append((look.t, look.iteration))
    return found


def compared(recording: Recording) -> list[tuple[str, str, str]]:
    """(what, as it was foretold, as it came): what is left of it where there was no prediction, or no end."""
    told, came = recording.predicted, recording.outcome
    rows = []
    for what, key, result, show in (
        ("total", "total", came.get("total_ms"), _milliseconds),
        ("downtime", "downtime", came.get("downtime_ms"), _milliseconds),
        ("sent", "bytes", came.get("bytes_sent"), lambda v: str(Bytes(int(v)))),
    ):
        rows.append((what, _range(told.get(key), what == "sent"), "-" if result is None else show(result)))
    gap = came.get("guest_gap_ms")
    return rows if gap is None else [*rows, ("gap that the guest's users saw", "-", _milliseconds(gap))]


def _milliseconds(value: float) -> str:
    return show_duration(value / 1000)


def _range(told: dict[str, Any] | None, size: bool) -> str:
    if not told:
        return "-"
    low, likely, high = (
        str(Bytes(int(told[k]))) if size else show_duration(told[k]) for k in ("low", "likely", "high")
    )
    return f"{likely} ({low} to {high})"


def draw(recording: Recording) -> str:
    """The picture, as SVG."""
    return as_svg(lambda: _figure(recording))


def raster(recording: Recording) -> bytes:
    """The picture, as PNG."""
    return as_png(lambda: _figure(recording))


def _figure(recording: Recording) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES)
    shown = panels(recording)
    end = max([0.1, *(k.t for k in recording.looks), *(m.t for m in recording.made)])
    axes = figure.subplots(len(shown), 1, sharex=True)
    for ax, panel in zip(axes, shown, strict=True):
        _draw_panel(ax, panel, recording, end)
    for t, number in rounds(recording):
        top = shown[0].top * 1.05
        axes[0].annotate(str(number), (t, top), (2, -8), textcoords="offset points", color=SOFT, fontsize=7)
    axes[-1].xaxis.set_major_formatter(lambda t, _: f"{t:g} s")
    _head(figure, recording)
    for i, (what, told, came) in enumerate(compared(recording)):
        figure.text(0.1, 0.075 - 0.017 * i, f"{what}: foretold {told}; came {came}", fontsize=9)
    figure.subplots_adjust(left=0.1, right=0.975, top=0.875, bottom=0.125, hspace=0.28)
    return figure


def page(recording: Recording) -> str:
    """The picture in an HTML page that stands alone, with the decisions as a table."""
    head = ET.Element("head")
    ET.SubElement(head, "meta", {"charset": "utf-8"})
    ET.SubElement(head, "title").text = f"Migration of {recording.vm}"
    style = f"body{{font-family:{_FONTS};color:{INK};max-width:960px;margin:2em auto}}"
    ET.SubElement(head, "style").text = f"{style}td,th{{text-align:left;padding:.2em 1em .2em 0;vertical-align:top}}"
    decisions = [(f"{m.t:.1f} s", m.what, m.why) for m in recording.made]
    none = [("-", "none", "it ended by itself, or from outside")]
    tables = (
        _table(("", "foretold", "came"), compared(recording)),
        _table(("after", "decision", "because"), decisions or none),
    )
    picture = draw(recording)
    parts = [_html(head), "<body>", picture[picture.index("<svg") :], *map(_html, tables), "</body>"]
    return "\n".join(['<!DOCTYPE html>\n<html lang="en">', *parts, "</html>\n"])


def _html(element: ET.Element) -> str:
    return ET.tostring(element, encoding="unicode", method="html")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> ET.Element:
    table = ET.Element("table")
    for tag, row in [("th", heads), *(("td", row) for row in rows)]:
        line = ET.SubElement(table, "tr")
        for cell in row:
            ET.SubElement(line, tag).text = cell
    return table


def _head(figure: Figure, recording: Recording) -> None:
    result = str(recording.outcome.get("result", "?"))
    technique = recording.outcome.get("technique") or recording.terms.mode.value
    figure.text(0.025, 0.965, f"Migration of {recording.vm}: {result}", fontsize=15, weight="bold")
    budget, deadline = show_duration(recording.terms.budget), show_duration(recording.terms.deadline)
    allowed = f"{technique}; {budget} of downtime and {deadline} in all allowed"
    figure.text(0.025, 0.942, allowed, fontsize=9, color=SOFT)
    text = "grey: a round over the memory begins; violet: a decision"
    if recording.made:
        last = recording.made[-1]
        why = last.why if len(last.why) <= 90 else last.why[:89] + "…"
        text += f" (the last one: {last.what}, {why})"
    figure.text(0.025, 0.922, text, color=SOFT)


def _draw_panel(ax: Axes, panel: Panel, recording: Recording, end: float) -> None:
    ax.set_title(panel.title, loc="left")
    ax.set_xlim(0, end)
    ax.set_ylim(0, panel.top * 1.05)
    ax.set_yticks([0, panel.top / 2, panel.top], ["0", panel.show(panel.top / 2), panel.show(panel.top)])
    for i, (t, _) in enumerate(rounds(recording)):
        ax.axvline(t, color=LINE, linewidth=0.8, gid=f"round-{i}-{panel.title}")
    for i, made in enumerate(recording.made):
        ax.axvline(made.t, color=_DECIDED, linewidth=0.8, gid=f"decision-{i}-{panel.title}")
    for curve in panel.curves:
        if curve.points:
            x, y = zip(*curve.points, strict=True)
            (line,) = ax.plot(x, y, color=curve.colour, label=curve.name, linewidth=1.4, clip_on=False, zorder=3)
            line.set_gid(f"curve-{curve.name}")
            if curve.steps:
                line.set_drawstyle("steps-post")
    if sum(bool(c.points) for c in panel.curves) > 1:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, frameon=False, labelcolor="linecolor")
