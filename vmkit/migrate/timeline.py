"""What a transfer went through as a picture: SVG, and the same in an HTML page with the decisions. Pure.

Drawn as the picture of `vmkit bench host` is: a plotting library would be the heaviest thing that vmkit needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET

from vmkit.migrate.replay import Recording
from vmkit.values import Bytes, show_duration

_WIDTH: Final = 960
_LEFT, _RIGHT, _TOP = 96, 24, 112
_PANEL, _GAP, _FOOT = 132, 40, 92
_INK, _SOFT, _LINE = "#22303c", "#6b7a88", "#dfe5ea"
_FONT: Final = "DejaVu Sans, Helvetica, Arial, sans-serif"
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
    """Curves with one scale, and how a value of it is written."""

    title: str
    curves: tuple[Curve, ...]
    show: Callable[[float], str]

    @property
    def top(self) -> float:
        """The largest value; 1 where there is none."""
        return max((v for c in self.curves for _, v in c.points), default=0.0) or 1.0


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
    root = _picture(recording)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _picture(recording: Recording) -> ET.Element:
    shown = panels(recording)
    height = _TOP + len(shown) * (_PANEL + _GAP) + _FOOT
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH} {height}",
            "width": str(_WIDTH),
            "height": str(height),
            "font-family": _FONT,
        },
    )
    ET.SubElement(root, "rect", {"width": str(_WIDTH), "height": str(height), "fill": "#ffffff"})
    end = max([0.1, *(k.t for k in recording.looks), *(m.t for m in recording.made)])
    _head(root, recording)
    for i, panel in enumerate(shown):
        y = _TOP + i * (_PANEL + _GAP)
        _draw_panel(root, panel, y, end)
        for t, number in rounds(recording):
            _upright(root, _x(t, end), y, _LINE)
            if i == 0:
                _text(root, _x(t, end) + 2, y + 10, str(number), size=9, colour=_SOFT)
        for made in recording.made:
            _upright(root, _x(made.t, end), y, _DECIDED)
    bottom = _TOP + len(shown) * (_PANEL + _GAP) - _GAP
    for part in (0, 0.25, 0.5, 0.75, 1):
        _text(root, _x(part * end, end), bottom + 18, f"{part * end:.1f} s", size=11, colour=_SOFT, anchor="middle")
    for i, (what, told, came) in enumerate(compared(recording)):
        _text(root, _LEFT, bottom + 46 + 16 * i, f"{what}: foretold {told}; came {came}", size=12)
    return root


def page(recording: Recording) -> str:
    """The picture in an HTML page that stands alone, with the decisions as a table."""
    html = ET.Element("html", {"lang": "en"})
    head = ET.SubElement(html, "head")
    ET.SubElement(head, "meta", {"charset": "utf-8"})
    ET.SubElement(head, "title").text = f"Migration of {recording.vm}"
    style = f"body{{font-family:{_FONT};color:{_INK};max-width:{_WIDTH}px;margin:2em auto}}"
    ET.SubElement(head, "style").text = f"{style}td,th{{text-align:left;padding:.2em 1em .2em 0;vertical-align:top}}"
    body = ET.SubElement(html, "body")
    body.append(_picture(recording))
    _table(body, ("", "foretold", "came"), compared(recording))
    decisions = [(f"{m.t:.1f} s", m.what, m.why) for m in recording.made]
    _table(body, ("after", "decision", "because"), decisions or [("-", "none", "it ended by itself, or from outside")])
    return "<!DOCTYPE html>\n" + ET.tostring(html, encoding="unicode", method="html") + "\n"


def _table(body: ET.Element, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = ET.SubElement(body, "table")
    for tag, row in [("th", heads), *(("td", row) for row in rows)]:
        line = ET.SubElement(table, "tr")
        for cell in row:
            ET.SubElement(line, tag).text = cell


def _head(root: ET.Element, recording: Recording) -> None:
    result = str(recording.outcome.get("result", "?"))
    technique = recording.outcome.get("technique") or recording.terms.mode.value
    _text(root, 24, 36, f"Migration of {recording.vm}: {result}", size=20, weight="600")
    budget, deadline = show_duration(recording.terms.budget), show_duration(recording.terms.deadline)
    _text(root, 24, 58, f"{technique}; {budget} of downtime and {deadline} in all allowed", size=12, colour=_SOFT)
    text = "grey: a round over the memory begins; violet: a decision"
    if recording.made:
        last = recording.made[-1]
        why = last.why if len(last.why) <= 90 else last.why[:89] + "…"
        text += f" (the last one: {last.what}, {why})"
    _text(root, 24, 76, text, size=11, colour=_SOFT)


def _draw_panel(root: ET.Element, panel: Panel, y: int, end: float) -> None:
    frame = {"x": str(_LEFT), "y": str(y), "width": str(_WIDTH - _LEFT - _RIGHT), "height": str(_PANEL)}
    ET.SubElement(root, "rect", {**frame, "fill": "#f8fafb", "stroke": _LINE})
    _text(root, _LEFT, y - 8, panel.title, size=12, weight="600")
    _text(root, _LEFT - 8, y + 10, panel.show(panel.top), size=11, colour=_SOFT, anchor="end")
    _text(root, _LEFT - 8, y + _PANEL, "0", size=11, colour=_SOFT, anchor="end")
    x = _WIDTH - _RIGHT
    for curve in reversed(panel.curves if len(panel.curves) > 1 else ()):
        _text(root, x, y - 8, curve.name, size=11, colour=curve.colour, anchor="end")
        x -= 8 * len(curve.name) + 16
    for curve in panel.curves:
        if curve.points:
            line = {"points": _points(curve, y, end, panel.top), "stroke": curve.colour, "data-curve": curve.name}
            ET.SubElement(root, "polyline", {**line, "fill": "none", "stroke-width": "1.8"})


def _points(curve: Curve, y: int, end: float, top: float) -> str:
    found: list[tuple[float, float]] = []
    for t, value in curve.points:
        if curve.steps and found:
            found.append((_x(t, end), found[-1][1]))
        found.append((_x(t, end), y + _PANEL * (1 - value / top)))
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in found)


def _x(t: float, end: float) -> float:
    return _LEFT + min(1.0, t / end) * (_WIDTH - _LEFT - _RIGHT)


def _upright(root: ET.Element, x: float, y: int, colour: str) -> None:
    line = {"x1": f"{x:.1f}", "x2": f"{x:.1f}", "y1": str(y), "y2": str(y + _PANEL), "stroke": colour}
    ET.SubElement(root, "line", line)


def _text(
    root: ET.Element,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    colour: str = _INK,
    weight: str = "400",
    anchor: str = "start",
) -> None:
    style = {"font-size": f"{size:g}", "fill": colour, "font-weight": weight, "text-anchor": anchor}
    ET.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **style}).text = text
