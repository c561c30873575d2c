"""How data is printed: each form of -o, and colours only where a terminal shows them."""

from __future__ import annotations

import json
from dataclasses import dataclass

import click
import pytest
import yaml
from click.testing import CliRunner

from vmkit.cli import render
from vmkit.errors import NotFoundError
from vmkit.plan import Plan, Step


@dataclass(frozen=True)
class Row:
    name: str
    state: str
    vcpus: int
    disks: tuple[str, ...] = ()


ROWS = [Row("a", "running", 2, ("vda",)), Row("long-name", "shut off", 1)]
COLUMNS = [("NAME", "name"), ("STATE", "state")]


def printed(*argv: str, data: object = ROWS, wide: render.Columns | None = None) -> str:
    @click.command()
    @render.output_option
    def show(output: str) -> None:
        rows = data
        if output == "table" and isinstance(rows, list):
            rows = [r for r in rows if isinstance(r, Row)]
        render.emit(rows, output=output, columns=COLUMNS if isinstance(data, list) else None, wide=wide)

    done = CliRunner().invoke(show, argv, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_table_has_the_columns_that_were_named() -> None:
    assert printed().splitlines() == ["NAME       STATE", "a          running", "long-name  shut off"]


def test_wide_adds_every_field_that_fits_into_a_cell() -> None:
    lines = printed("-o", "wide").splitlines()
    assert lines[0].split() == ["NAME", "STATE", "VCPUS"]
    assert lines[1].split() == ["a", "running", "2"]


def test_wide_adds_the_columns_that_a_command_names() -> None:
    assert printed("-o", "wide", wide=[("DISKS", "disks")]).splitlines()[0].split() == ["NAME", "STATE", "DISKS"]


def test_names_json_and_yaml() -> None:
    assert printed("-o", "name") == "a\nlong-name\n"
    assert json.loads(printed("-o", "json"))[0] == {"name": "a", "state": "running", "vcpus": 2, "disks": ["vda"]}
    assert yaml.safe_load(printed("-o", "yaml")) == json.loads(printed("-o", "json"))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (ROWS[0], "a"),
        ({"id": 7, "name": None}, "7"),
        ({"steps": [1], "uri": "qemu:///system"}, "qemu:///system"),
        ("x", "x"),
    ],
)
def test_one_thing_is_named_by_its_name_or_its_first_field(data: object, name: str) -> None:
    assert printed("-o", "name", data=data) == f"{name}\n"


def test_one_thing_prints_as_keys_and_values_also_wide() -> None:
    assert printed("-o", "wide", data=ROWS[1]) == printed(data=ROWS[1])
    assert "state  shut off" in printed(data=ROWS[1])


def test_a_plan_is_named_by_its_title(capsys: pytest.CaptureFixture[str]) -> None:
    render.show_plan(Plan("create a", steps=(Step("define", "domain a", "so"),)), "name")
    assert capsys.readouterr().out == "create a\n"


@pytest.mark.parametrize(
    ("variable", "value", "coloured"), [("NO_COLOR", "1", False), ("TERM", "dumb", False), ("TERM", "xterm", None)]
)
def test_colours_can_be_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, coloured: bool | None
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, value)
    assert render.colour() is coloured


def test_an_error_that_is_not_on_a_terminal_has_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    from vmkit.cli.main import fail

    assert fail(NotFoundError("no VM named 'x'", hint="vmkit list", details=("near: y",))) == 3
    assert capsys.readouterr().err == "error: no VM named 'x'\n  near: y\nhint: vmkit list\n"
