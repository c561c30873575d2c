"""Taking up a bench that was cut off."""

from __future__ import annotations

from vmkit.bench.cleanup import undo
from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter, silent
from vmkit.system.journal import Entry


def recover(entry: Entry, reporter: Reporter = silent) -> str:
    """Delete its guests and network, give the card that took part and KVM's paging back. Says in one line what it did.

    Raises:
        UnreachableError: the host does not answer; the entry is kept.
        VmkitError: something is left; the entry is kept.
    """
    record = entry.record
    with Host.connect(record.data["uri"]) as host:
        done = undo(host, record.data, reporter)
    return f"measuring {record.subject} was cut off; {', '.join(done) if done else 'nothing was left of it'}"
