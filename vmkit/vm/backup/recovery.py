"""Taking up a backup whose vmkit was killed. libvirt goes on copying when its caller is gone: the job is stopped."""

from __future__ import annotations

import contextlib

from vmkit.errors import NotFoundError, VmkitError
from vmkit.hypervisor import backup as calls
from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter
from vmkit.system.journal import Entry
from vmkit.system.shell import Shell
from vmkit.vm.backup.store import Repository
from vmkit.vm.backup.take import drop_old, undo
from vmkit.vm.snapshot.recovery import await_quiet


def recover(entry: Entry, reporter: Reporter) -> str:
    """Finish or undo; returns what was found and done.

    Raises:
        UnreachableError: the host does not answer; the entry is kept.
    """
    del reporter
    record = entry.record
    data = record.data
    head = f"the backup of {record.subject} was cut off"
    with Host.connect(data["uri"]) as host:
        repository = Repository(Shell.of_uri(data["uri"]), data["folder"])
        try:
            domain = host.domain(data["uuid"])
        except NotFoundError:
            undo(None, repository, data)
            return f"{head}, and the VM is gone; no half backup is left"
        if record.phase == "commit" and repository.exists(data["id"]):
            drop_old(domain, data["old"])
            return f"{head} after it had come to its end; {data['id']} is whole"
        if record.phase in ("freeze", "copy") and domain.state().active:
            with contextlib.suppress(VmkitError):  # nothing may be frozen, or there is no agent
                calls.thaw(domain)
        if calls.running(domain) is None:
            await_quiet(domain)
        removed = undo(domain, repository, data)
    what = f"removed: {', '.join(removed)}" if removed else "nothing was left of it"
    return f"{head} at '{record.phase}'; {what}"
