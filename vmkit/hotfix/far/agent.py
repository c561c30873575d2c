"""What runs on the other host: carries one request out there, as vmkit does on a host of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from vmkit.errors import EffectError, VmkitError
from vmkit.hotfix.api import Hotfixes
from vmkit.hotfix.manifest import Patch
from vmkit.hotfix.operation import settle
from vmkit.hotfix.plans import Action
from vmkit.hotfix.transaction import KILL_VARIABLE
from vmkit.hypervisor.host import Host
from vmkit.progress import Note
from vmkit.system.files import write_atomic
from vmkit.values import to_plain


class _Carried(Hotfixes):
    """Whoever sent the patch has looked at its signature, by the keys that are trusted there."""

    def _trust(self, action: Action, patch: Patch, text: str, allow_unsigned: bool | None) -> None:
        del action, patch, text, allow_unsigned


def main(folder: str, how: str) -> None:
    """Carry out what FOLDER/request.json asks; FOLDER/result.json is the answer.

    With `how` being 'settle' what did so before was killed: what it left is put right, and the answer says that.
    """
    notes: list[str] = []
    try:
        request = json.loads(Path(folder, "request.json").read_text())
        if how == "run" and request.get("kill"):
            os.environ[KILL_VARIABLE] = request["kill"]
        if how == "settle":
            _settle(notes)
        found = {"value": to_plain(_do(request, Path(folder), notes))}
    except VmkitError as e:
        found = {
            "error": {"kind": type(e).__name__, "message": e.message, "hint": e.hint, "details": list(e.details)},
        }
    write_atomic(Path(folder, "result.json"), json.dumps({**found, "notes": notes}), mode=0o600)


def _do(request: dict[str, Any], folder: Path, notes: list[str]) -> Any:
    uri, what = request["uri"], request["what"]
    source: str | Path = request.get("id", "")
    if "text" in request:
        source = folder / "patch.toml"
        source.write_text(request["text"])

    def reporter(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    with Host.connect(uri) as host:
        hotfixes = _Carried(lambda: host)
        match what:
            case "plan":
                return hotfixes.plan(source, Action(request["action"]))
            case "check":
                return hotfixes.check(source)
            case "apply":
                return hotfixes.apply(source, max_pause=request["max_pause"], reporter=reporter)
            case "revert":
                return hotfixes.revert(source, max_pause=request["max_pause"], reporter=reporter)
            case "status":
                return hotfixes.status()
            case "history":
                return hotfixes.history()
    settle(reporter)
    return None


def _settle(notes: list[str]) -> NoReturn:
    """Put right what was killed.

    Raises:
        EffectError: always; it says what was found and done.
    """
    settle(lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    raise EffectError("what was carried there was killed", left="; ".join(notes) or "it had changed nothing")
