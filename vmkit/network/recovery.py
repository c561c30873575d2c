"""What was cut off: a network that was being made or removed goes; one that was being changed runs again."""

from __future__ import annotations

from vmkit.hypervisor.host import Host
from vmkit.network.make import restart, undo
from vmkit.progress import Reporter
from vmkit.system.journal import Entry


def recover(entry: Entry, reporter: Reporter) -> str:
    """Settle one entry; returns what was found and done.

    Raises:
        UnreachableError: the host does not answer; the entry is kept.
    """
    del reporter
    record = entry.record
    what = {"create": "making", "delete": "deletion", "change": "change"}[record.data["action"]]
    with Host.connect(record.data["uri"]) as host:
        if record.data["action"] == "change":
            return f"{what} of network {record.subject} was cut off; {restart(host, record.data)}"
        return f"{what} of network {record.subject} was cut off at '{record.phase}'; {undo(host, record.data)}"
