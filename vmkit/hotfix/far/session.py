"""One change on another host, journalled here: what is carried there finishes or undoes it, whatever becomes of us."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Final

from vmkit.errors import EffectError, IndeterminateError, RefusedError, UnreachableError, VmkitError
from vmkit.hotfix.far.line import Line, Stand, new_name, value_of
from vmkit.progress import Finished, Note, Reporter, Started, silent
from vmkit.system.clock import Deadline, stopwatch
from vmkit.system.interrupts import deferred
from vmkit.system.journal import Entry, journalled

KIND: Final = "hotfix-far"
"""Of the journal's entries."""
NOTHING: Final = "it had not begun there, and nothing was changed"
PATIENCE_SECONDS: Final = 20.0
"""How long to ask, once the connection broke, for how it ended there."""


def read(line: Line, request: dict[str, Any]) -> Any:
    """Have something looked at there. Raises what it ended with there, or what Line.run raises."""
    name = new_name()
    stand = line.run(name, request, forget=True)
    if stand.state != "ended":
        raise EffectError(f"what was carried to {line.where} was killed", hint="nothing was changed there; try again")
    return value_of(stand.result, line.where)


def change(line: Line, uri: str, subject: str, request: dict[str, Any], reporter: Reporter) -> Any:
    """Have something changed there, and wait for the end.

    Ctrl-C does not stop what goes on there; if it ends the connection, the outcome is asked for.

    Raises:
        RefusedError: nothing was begun there, or it was refused there.
        IndeterminateError: the connection broke and the host does not say how it ended. The next command asks it.
        VmkitError: what it ended with there.
    """
    what, name = request["what"], new_name()
    reporter(Started(f"{what} on {line.where}"))
    clock = stopwatch()
    with deferred(), journalled(KIND, subject, "sent", uri=uri, run=name, what=what) as entry:
        entry.keep = True
        broke: VmkitError | None = None
        try:
            stand = line.run(name, request)
        except VmkitError as e:
            if isinstance(e, RefusedError) and not isinstance(e, UnreachableError):
                entry.keep = False
                raise
            broke = e
            stand = _ask(line, name, f"{what} of patch {subject}", e)
        if stand.state == "nothing":
            entry.keep = False
            raise RefusedError(
                f"nothing was begun on {line.where}: {broke.message if broke else 'it did not take it'}",
                hint="see that ssh gets there, and try again",
            )
        settled = _settle(line) if stand.state == "cut" else ""
        with suppress(VmkitError):  # a full disk: then the host is asked once more
            entry.advance("ended", text=_outcome(stand, settled))
        with suppress(VmkitError):  # some KB stay there
            line.done(name)
        entry.keep = False
    reporter(Finished(f"{what} on {line.where}", clock(), "the connection broke meanwhile" if broke else ""))
    for note in stand.result.get("notes", ()):
        reporter(Note(f"{line.where}: {note}", warning=True))
    if stand.state != "ended":
        raise EffectError(f"what was carried to {line.where} was killed", left=settled)
    return value_of(stand.result, line.where)


def _ask(line: Line, name: str, what: str, broke: VmkitError) -> Stand:
    deadline = Deadline(PATIENCE_SECONDS)
    while True:
        runs = False
        with suppress(VmkitError):
            stand = line.ask(name)
            runs = stand.state == "runs"
            if not runs:
                return stand
        if deadline.passed:
            how = "it goes on there" if runs else "it is not known how it ended there; it ends by itself"
            raise IndeterminateError(
                f"{what} on {line.where}: the connection broke ({broke.message}), and {how}",
                hint="see that ssh gets there; then ask again: vmkit jobs",
            )
        time.sleep(1.0)


def _outcome(stand: Stand, settled: str) -> str:
    if stand.state == "cut":
        return f"there it was killed too: {settled}"
    error = stand.result.get("error")
    return f"there it ended: {error['message'] if error else stand.result['value']['state']}"


def _settle(line: Line) -> str:
    """Have what was killed there, with what watched over it, put right; what was done, in words."""
    stand = line.run(new_name(), {"what": "settle"}, forget=True)
    value_of(stand.result, line.where)
    return "; ".join(stand.result.get("notes", ())) or "it had changed nothing"


def recover(entry: Entry, reporter: Reporter = silent) -> str:
    """Ask the host how it ended, for a command that was killed; one line that says it.

    The entry is kept if the host does not answer, or if it still goes on there.
    """
    del reporter
    data, subject = entry.record.data, entry.record.subject
    what = f"{data['what']} of patch {subject}"
    try:
        line = Line(data["uri"])
        text = data.get("text") or _asked(line, data["run"])
        if not text:
            entry.keep = True
            return f"{what} goes on by itself on {line.where}"
        if text != NOTHING:  # what keeps it from beginning has to stay there, for a day
            with suppress(VmkitError):
                line.done(data["run"])
    except VmkitError as e:
        entry.keep = True
        return f"{what} was cut off here; it ends there by itself, but the host cannot be asked: {e.message}"
    return f"{what} on {line.where} was cut off here; {text}"


def _asked(line: Line, name: str) -> str:
    """What came of a run, in words; '' while it goes on."""
    stand = line.ask(name)
    if stand.state == "runs":
        return ""
    if stand.state == "nothing":
        return NOTHING
    return _outcome(stand, _settle(line) if stand.state == "cut" else "")
