"""The table, the claims and the picture of scripts/bench migrate, from runs that were made up."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from vmkit.migrate.record import Accuracy

FILE = Path(__file__).parents[2] / "scripts/benches/migrate_table.py"


@dataclass
class Run:
    end: str
    total: float
    wall: float = 0.0
    downtime: float | None = None
    gap: float | None = None
    evidence: float | None = None


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("migrate_table", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SEEN = {
    ("idle", "virsh"): [Run("arrived", 1000.0, downtime=50.0, gap=80.0), Run("arrived", 1200.0, downtime=70.0)],
    ("idle", "vmkit"): [Run("arrived", 1050.0, downtime=60.0, gap=90.0), Run("arrived", 1150.0, downtime=48.0)],
    ("3 x 16M", "virsh"): [Run("not at an end", 45000.0)],
    ("3 x 16M", "vmkit"): [Run("given up", 6000.0, evidence=5500.0)],
}


def result(table: ModuleType, accuracy: Accuracy) -> dict[str, Any]:
    made: dict[str, Any] = table.result_of(SEEN, {}, accuracy, 0.3)
    return made


def test_what_is_said_of_each_cell(table: ModuleType) -> None:
    made = result(table, Accuracy(4, 0))
    assert made["table"]["columns"][1:] == ["virsh", "vmkit"]
    assert made["table"]["lines"] == [
        ["idle", "1.1 s, 60 / 80 ms", "1.1 s, 54 / 90 ms"],
        ["3 x 16M", "not at an end (45.0 s)", "given up (6.0 s)"],
    ]
    assert [(r["cell"], r["tool"], r["arrived"], r["relative"]) for r in made["rows"][:2]] == [
        ("idle", "virsh", 2, 1.0),
        ("idle", "vmkit", 2, 1.0),
    ]


def test_claims(table: ModuleType) -> None:
    held = {c["claim"].partition(",")[0]: (c["ratio"], c["holds"]) for c in result(table, Accuracy(4, 0))["claims"]}
    assert held["total of vmkit at most 1.1 x that of virsh"] == (1.0, True)
    assert held["downtime of vmkit at most 1 x that of virsh"] == (0.9, True)
    assert held["given up within 5 s of the first pass (1 runs)"] == (5.5, False)
    assert held["downtime within the budget of 0.3 s (2 runs)"] == (0.2, True)
    foretold = result(table, Accuracy(60, 60, total_error=12.0, verdicts=40, verdicts_right=97.5))["claims"][-2:]
    assert [(c["ratio"], c["holds"]) for c in foretold] == [(12.0, False), (97.5, True)]


def test_the_picture_is_svg_with_a_bar_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FILE.parent)
    root = ET.fromstring(importlib.import_module("migrate_picture").draw(SEEN))
    bars = [name for g in root.iter("{http://www.w3.org/2000/svg}g") if (name := g.get("id", "")).count("-") == 3]
    assert sorted(b.partition("-")[0] for b in bars) == ["arrived"] * 4 + ["ended"] * 2
