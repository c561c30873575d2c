"""What becomes of a lab whose making or tear-down was cut off."""

from __future__ import annotations

from pathlib import Path

from vmkit.errors import ConflictError, VmkitError
from vmkit.lab.cache import sweep_all
from vmkit.lab.layout import Layout
from vmkit.lab.reality import inside, processes
from vmkit.lab.state import Phase, load
from vmkit.lab.teardown import erase, exclusive, settled
from vmkit.progress import Reporter, silent
from vmkit.system.journal import Entry


def recover(entry: Entry, _reporter: Reporter = silent) -> str:
    """Tear down the lab that the entry speaks of, unless it was finished or has been made anew since.

    Returns:
        One line that says what was found and what was done.
    """
    record = entry.record
    layout = Layout(Path(record.data["folder"]))
    doing = "making" if record.phase == "up" else "tear-down"
    found = f"lab {layout.name}: its {doing} was cut off"
    if inside():
        entry.keep = True
        return f"{found}; a vmkit outside of the lab's hosts will deal with it"
    try:
        with exclusive(layout, wait=5.0):
            state = load(layout)
            if state is None and not layout.folder.exists() and not processes(layout):
                sweep_all()
                settled.add(layout.folder)
                return f"{found}; nothing is left of it"
            if state is not None and state.token != record.data["token"]:
                return f"{found}; it has been made anew since, and was left as it is"
            if state is not None and state.phase is Phase.UP:
                return f"{found} after its last step; it is up"
            erase(layout)
            sweep_all()
            settled.add(layout.folder)
            return f"{found}; torn down, nothing is left of it"
    except ConflictError:
        return f"{found}; another process works on it now"
    except VmkitError as e:
        entry.keep = True
        return f"{found}, and it cannot be torn down now: {e.message}"
