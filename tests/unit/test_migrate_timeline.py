"""Pictures of transfers that were recorded."""

from __future__ import annotations

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


def marked(root: ET.Element, start: str) -> dict[str, ET.Element]:
    """What is drawn under a name that begins so."""
    return {name: e for e in root.iter(f"{SVG}g") if (name := e.get("id", "")).startswith(start)}


def test_every_curve_is_in_the_picture(recording: Recording) -> None:
    root = ET.fromstring(draw(recording))
    _, _, width, height = map(float, root.get("viewBox", "").split())
    lines = marked(root, "curve-")
    assert set(lines) == {f"curve-{c.name}" for p in panels(recording) for c in p.curves}
    for line in lines.values():
        path = next(line.iter(f"{SVG}path")).get("d", "")
        numbers = [float(word) for word in path.replace("M", " ").replace("L", " ").split()]
        places = list(zip(numbers[::2], numbers[1::2], strict=True))
        assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
        assert [x for x, _ in places] == sorted(x for x, _ in places)
    texts = [t.text or "" for t in root.iter(f"{SVG}text")]
    assert any(recording.vm in t for t in texts)
    assert sum(t.startswith(("total:", "downtime:", "sent:")) for t in texts) == 3


def test_rounds_and_decisions_are_marked(recording: Recording) -> None:
    root = ET.fromstring(draw(recording))
    assert len(marked(root, "round-")) == len(rounds(recording)) * len(panels(recording))
    assert len(marked(root, "decision-")) == len(recording.made) * len(panels(recording))


def test_the_same_recording_is_the_same_picture(recording: Recording) -> None:
    assert draw(recording) == draw(recording)


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
    for name, begin in (("a.svg", b"<?xml"), ("a.html", b"<!DOCTYPE html>"), ("a.png", b"\x89PNG")):
        picture(recording, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)
    with pytest.raises(SpecError, match="--report"):
        check_picture(tmp_path / "a.pdf")


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UnsupportedError, match="matplotlib") as caught:
        check_picture(tmp_path / "a.svg")
    assert "vmkit[plot]" in str(caught.value.hint)
