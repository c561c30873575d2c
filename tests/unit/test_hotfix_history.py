"""The history of hotfixes: a chain that shows what was changed in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import IndeterminateError, RefusedError
from vmkit.hotfix import history


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path))
    return tmp_path / "hotfix" / "history.jsonl"


def written(count: int) -> list[history.Event]:
    for i in range(count):
        history.add("applied", f"fix{i}", "qemu:///system", [f"vm{i} (process 1)"], "")
    return list(history.read())


def test_what_is_added_is_read_in_order(path: Path) -> None:
    assert history.read() == ()
    events = written(3)
    assert [(e.number, e.what, e.id, e.processes) for e in events] == [
        (i + 1, "applied", f"fix{i}", (f"vm{i} (process 1)",)) for i in range(3)
    ]
    assert [e.before for e in events] == [history.FIRST, events[0].hash, events[1].hash]
    assert path.stat().st_mode & 0o777 == 0o600


def changed(line: str, **what: object) -> str:
    return json.dumps({**json.loads(line), **what})


def rehashed(line: str, **what: object) -> str:
    body = {**json.loads(line), **what}
    return json.dumps({**body, "hash": history.digest(body)})


BREAKS: dict[str, tuple[Callable[[list[str]], list[str]], int]] = {
    "a word": (lambda x: [x[0], changed(x[1], what="reverted"), x[2]], 2),
    "a word, with a hash that fits": (lambda x: [x[0], rehashed(x[1], what="reverted"), x[2]], 3),
    "a line is gone": (lambda x: [x[0], x[2]], 2),
    "the first line is gone": (lambda x: x[1:], 1),
    "a line twice": (lambda x: [x[0], x[0], x[1]], 2),
    "another order": (lambda x: [x[1], x[0], x[2]], 1),
    "a field more": (lambda x: [rehashed(x[0], more=1), *x[1:]], 1),
    "a field less": (lambda x: [json.dumps({"number": 1}), *x[1:]], 1),
    "half a line": (lambda x: [*x[:2], x[2][:40]], 3),
    "no JSON": (lambda x: ["", *x], 1),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_change_shows(path: Path, name: str) -> None:
    written(3)
    how, number = BREAKS[name]
    path.write_text("\n".join(how(path.read_text().splitlines())) + "\n")
    with pytest.raises(IndeterminateError, match=f"line {number} of"):
        history.read()


def test_a_broken_chain_is_gone_on_with(path: Path) -> None:
    written(2)
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][:50])
    history.add("reverted", "fix0", "qemu:///system")
    *_, half, last = path.read_text().splitlines()
    assert half == lines[1][:50]
    assert json.loads(last)["before"] == json.loads(lines[0])["hash"]


def test_a_failing_write_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(1)
    before = path.read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
    with pytest.raises(RefusedError, match="No space left"):
        history.add("applied", "fix", "qemu:///system")
    assert history.note("applied", "fix", "qemu:///system") is False
    monkeypatch.undo()
    assert path.read_bytes() == before


@given(st.text(), st.lists(st.text()), st.text())
def test_any_text_is_kept(patch_id: str, processes: list[str], detail: str) -> None:
    body = {
        "number": 1,
        "time": "t",
        "uid": 0,
        "what": "applied",
        "id": patch_id,
        "host": "h",
        "processes": processes,
        "detail": detail,
        "before": history.FIRST,
    }
    line = json.dumps({**body, "hash": history.digest(body)})
    (event,) = history.check([line], "it")
    assert (event.id, event.processes, event.detail) == (patch_id, tuple(processes), detail)
