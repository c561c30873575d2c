"""The figures of a bench as a picture: part of the host's own speed, beside the classic ranges. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.bench.report import CLASSIC, TITLES, amount, percent, title, where
from vmkit.host.measured import Measured, Mode, Result

_WIDTH: Final = 960
_LEFT: Final = 190
_RIGHT: Final = 250
_TOP: Final = 108
_BAR: Final = 13
_GAP: Final = 3
_GROUP: Final = 16
_LIMIT: Final = 1.15
"""Bars end here; what is faster than that says so by its label."""
_INK: Final = "#22303c"
_SOFT: Final = "#6b7a88"
_LINE: Final = "#dfe5ea"
_COLOURS: Final = {
    Mode.NESTED: "#1f77b4",
    Mode.SHADOW: "#ff9e2c",
    Mode.TCG: "#9aa5af",
    Mode.VHOST: "#1b7f5c",
    Mode.VIRTIO: "#53b38a",
    Mode.EMULATED: "#c9543f",
    Mode.VF: "#6a51a3",
}
_FONT: Final = "DejaVu Sans, Helvetica, Arial, sans-serif"


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
    shown = groups(measured)
    height = _TOP + sum(_height(g) for g in shown) + 64
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
    _text(root, 24, 36, "Guests beside the host itself", size=20, weight="600")
    _text(root, 24, 58, where(measured), size=12, colour=_SOFT)
    when = f"{measured.when[:10]}, medians of samples of {measured.seconds:g} s; 100 % is the same program on the host"
    _text(root, 24, 76, when, size=12, colour=_SOFT)
    bottom = height - 64
    _axis(root, bottom)
    y = _TOP
    for i, group in enumerate(shown):
        if i == 0:
            box = {"x": "12", "y": str(y - 7), "width": str(_WIDTH - 24), "height": str(_height(group) - 2)}
            ET.SubElement(root, "rect", {**box, "rx": "6", "fill": "#f4f6f8"})
        _draw_group(root, group, y)
        y += _height(group)
    _legend(root, shown, bottom + 42)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _range(low: float, high: float) -> str:
    return percent(low) if low == high else f"{low * 100:.0f}-{high * 100:.0f} %"


def _bar(result: Result) -> Bar:
    part = result.efficiency or 0.0
    label = f"{percent(part)}, {amount(result.median)} {result.unit}"
    devices = (Mode.VIRTIO, Mode.VHOST, Mode.EMULATED, Mode.VF)
    return Bar(result.mode, 0.0, part, f"{label}, {title(result)}" if result.mode in devices else label)


def _height(group: Group) -> int:
    return len(group.bars) * (_BAR + _GAP) + _GROUP


def _x(part: float) -> float:
    return _LEFT + min(part, _LIMIT) / _LIMIT * (_WIDTH - _LEFT - _RIGHT)


def _axis(root: ET.Element, bottom: int) -> None:
    for percents in (0, 25, 50, 75, 100):
        x = _x(percents / 100)
        colour = _SOFT if percents == 100 else _LINE
        line = {"x1": f"{x:.1f}", "x2": f"{x:.1f}", "y1": str(_TOP - 8), "y2": str(bottom)}
        ET.SubElement(root, "line", {**line, "stroke": colour, "stroke-width": "1"})
        _text(root, x, bottom + 16, f"{percents} %", size=11, colour=_SOFT, anchor="middle")


def _draw_group(root: ET.Element, group: Group, y: int) -> None:
    middle = y + len(group.bars) * (_BAR + _GAP) / 2
    _text(root, _LEFT - 12, middle + (4 if not group.note else -2), group.name, size=12, weight="600", anchor="end")
    if group.note:
        _text(root, _LEFT - 12, middle + 12, group.note, size=10, colour=_SOFT, anchor="end")
    for i, bar in enumerate(group.bars):
        top = y + i * (_BAR + _GAP)
        start, end = _x(bar.low), _x(bar.high)
        width = max(2.0, end - start)
        box = {"x": f"{start:.1f}", "y": str(top), "width": f"{width:.1f}", "height": str(_BAR), "rx": "2"}
        colour = _COLOURS[bar.mode] if bar.mode else "#b9a3d6"
        ET.SubElement(root, "rect", {**box, "fill": colour})
        _text(root, start + width + 6, top + _BAR - 2.5, bar.label, size=10.5)


def _legend(root: ET.Element, shown: list[Group], y: int) -> None:
    used = dict.fromkeys(b.mode for g in shown[1:] for b in g.bars if b.mode)
    x = 24.0  # all of them together are as wide as the picture
    for mode in (m for m in _COLOURS if m in used):
        ET.SubElement(
            root,
            "rect",
            {"x": f"{x:.1f}", "y": str(y - 10), "width": "12", "height": "12", "rx": "2", "fill": _COLOURS[mode]},
        )
        name = "emulated (AHCI, e1000)" if mode is Mode.EMULATED else TITLES[mode]
        _text(root, x + 17, y, name, size=11)
        x += 34 + 6.4 * len(name)


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
    # A white rim keeps a label readable where it crosses a line.
    style |= {"stroke": "#ffffff", "stroke-width": "3", "stroke-linejoin": "round", "paint-order": "stroke"}
    ET.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **style}).text = text
