"""A creation that was cut off: the VM is kept if it was started, otherwise what was made of it is removed."""

from __future__ import annotations

from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter
from vmkit.system.journal import Entry
from vmkit.vm.create import undo


def recover(entry: Entry, reporter: Reporter) -> str:
    """Settle one entry; returns what was found and done.

    Raises:
        UnreachableError: the host does not answer; the entry is kept.
    """
    del reporter
    record = entry.record
    with Host.connect(record.data["uri"]) as host:
        running = [d for d in host.domains() if d.uuid == record.data["uuid"] and d.state().active]
        if record.phase == "start" and running:
            return f"creation of {record.subject} was cut off after the VM had started; it is kept"
        removed = undo(host, record.data)
    what = f"removed {', '.join(removed)}" if removed else "nothing was left of it"
    if record.data.get("lends"):
        what += "; devices that it had taken: vmkit device list names them, vmkit device release gives them back"
    return f"creation of {record.subject} was cut off at '{record.phase}'; {what}"
