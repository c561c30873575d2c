"""Taking up a bench that was cut off."""

from __future__ import annotations

from vmkit.bench.cleanup import undo
from vmkit.errors import UnreachableError
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
    try:
        host = Host.connect(record.data["uri"])
    except UnreachableError as e:
        entry.keep = True
        raise UnreachableError(f"measuring {record.subject}: {e.message}", hint=e.hint) from e
    with host:
        done = undo(host, record.data, reporter)
    return f"measuring {record.subject} was cut off; {', '.join(done) if done else 'nothing was left of it'}"
