"""Pictures of transfers that were recorded."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vmkit.errors import SpecError, UnsupportedError
from vmkit.migrate.paint import check_picture, picture
from vmkit.migrate.replay import Recording, load
from vmkit.migrate.timeline import compared, draw, page, panels, rounds

RUNS = sorted((Path(__file__).parents[1] / "data" / "migrate" / "runs").glob("*.json"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(params=RUNS, ids=lambda p: p.stem)
def recording(request: pytest.FixtureRequest) -> Recording:
    return load(request.param)


def test_every_curve_is_in_the_picture(recording: Recording) -> None:
    root = ET.fromstring(draw(recording))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    lines = {line.get("data-curve"): line.get("points", "") for line in root.iter(f"{SVG}polyline")}
    assert set(lines) == {c.name for p in panels(recording) for c in p.curves}
    for points in lines.values():
        places = [tuple(map(float, pair.split(","))) for pair in points.split()]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
        assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert len(lines["remaining"].split()) == len(recording.looks)
    texts = [t.text or "" for t in root.iter(f"{SVG}text")]
    assert any(recording.vm in t for t in texts)
    assert sum(t.startswith(("total:", "downtime:", "sent:")) for t in texts) == 3


def test_rounds_and_decisions_are_marked(recording: Recording) -> None:
    root = ET.fromstring(draw(recording))
    marks = len(rounds(recording)) + len(recording.made)
    assert len(list(root.iter(f"{SVG}line"))) == marks * len(panels(recording))


def test_the_page_names_every_decision(recording: Recording) -> None:
    text = page(recording)
    assert text.startswith("<!DOCTYPE html>")
    assert text.count("<svg") == 1
    assert text.count("<td>") >= 3 * (len(recording.made) + 3)


def test_prediction_beside_outcome(recording: Recording) -> None:
    rows = {what: (told, came) for what, told, came in compared(recording)}
    assert set(rows) >= {"total", "downtime", "sent"}
    assert bool(recording.predicted) == (rows["total"][0] != "-")


def test_there_are_recordings() -> None:
    assert RUNS


def test_a_transfer_of_which_nothing_was_seen() -> None:
    empty = Recording("web<1>", load(RUNS[0]).terms)
    root = ET.fromstring(draw(empty))
    assert any("web<1>" in (t.text or "") for t in root.iter(f"{SVG}text"))
    assert "web&lt;1&gt;" in page(empty)


def test_files(tmp_path: Path) -> None:
    recording = load(RUNS[0])
    for name, begin in (("a.svg", b"<svg"), ("a.html", b"<!DOCTYPE html>"), ("a.png", b"\x89PNG")):
        if name == "a.png" and shutil.which("rsvg-convert") is None:
            with pytest.raises(UnsupportedError, match="rsvg-convert"):
                picture(recording, tmp_path / name)
            continue
        picture(recording, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)
    with pytest.raises(SpecError, match="--report"):
        check_picture(tmp_path / "a.pdf")
