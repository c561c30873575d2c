"""Another name for a VM: for libvirt, for its console log, and for a guest that has it on its kernel command line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmkit.errors import ConflictError, VmkitError
from vmkit.hypervisor import alter
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.migration import adopt
from vmkit.image.place import POOL
from vmkit.system.interrupts import deferred
from vmkit.system.journal import journalled
from vmkit.values import check_name, quoted
from vmkit.vm import reservations
from vmkit.vm.change import rollback
from vmkit.vm.change.edit import renamed
from vmkit.vm.change.restart import started_again
from vmkit.vm.console_log import log_name, remove
from vmkit.vm.machine import Vm
from vmkit.vm.metadata import to_text

if TYPE_CHECKING:
    from typing import Any

    from vmkit.hypervisor.domain import Domain
    from vmkit.system.journal import Entry
    from vmkit.vm.metadata import Remembered


def rename(host: Host, name: str, new: str, *, restart: bool, deadline: float) -> str:
    """Rename a VM; see vmkit.vm.change.api.Changes.rename. Its volumes keep their names."""
    check_name(new, path="NEW")
    domain = host.domain(name)
    name = domain.name
    if new in {d.name for d in host.domains()}:
        raise ConflictError(f"there is a VM named {quoted(new)} on {host.uri} already", hint="take another name")
    if not domain.persistent:
        raise ConflictError(
            f"{name} has no definition, so it cannot be renamed",
            hint=f"give it one: virsh dumpxml {name} >{name}.xml; virsh define {name}.xml",
        )
    runs = domain.state().active
    if runs and not restart:
        raise ConflictError(
            f"{name} is {domain.state().value}, and libvirt renames only what is shut off",
            hint=f"vmkit rename --restart {name} {new} shuts it down and starts it again",
        )
    before = rollback.snapshot(domain, None)
    memory = Vm(domain).remembered()
    log = memory.console_log if memory else None
    with journalled("apply", name, "rename", **before, name=name, new=new, log=log, runs=runs) as entry:
        if runs:
            _stop(domain, entry, deadline)
        with deferred():
            said = _rename(host, domain, new, memory, before, runs=runs)
    return said


def _stop(domain: Domain, entry: Entry, deadline: float) -> None:
    """Ctrl-C ends this wait. The guest may shut down all the same, so the next command looks at what became of it."""
    try:
        Vm(domain).stop(deadline=deadline)
    except KeyboardInterrupt:
        entry.keep = True
        raise


def _rename(
    host: Host, domain: Domain, new: str, memory: Remembered | None, before: dict[str, Any], *, runs: bool
) -> str:
    old_log = memory.console_log if memory else None
    try:
        if memory is not None:
            log = log_name(new) if old_log else None
            path = str(host.pool(POOL).folder / log) if log else None
            spec = {**memory.spec, "name": new}
            text = to_text(replace(memory, spec=spec, console_log=log))
            adopt(host, renamed(domain.xml(inactive=True, secure=True), domain.name, new, path, text))
        alter.rename(domain, new)
    except VmkitError:
        rollback.restore(domain, before)
        if runs:
            Vm(domain).start()
        raise
    if old_log:
        remove(host, old_log)
    reservations.sync(host.domain(new))
    if runs:
        Vm(host.domain(new)).start()
    if memory is None:
        return "nothing else of it is changed, since another tool made it"
    kernel = "<cmdline>" in domain.host.domain(new).xml(inactive=True)
    guest = "the guest has it from its next start" if kernel else "the guest keeps its host name until it is told"
    return f"its volumes keep their names; {guest}"


def recover(host: Host, entry: Entry) -> str:
    """Settle a renaming that was cut off: it has happened, or nothing has. A VM that ran runs again."""
    data = entry.record.data
    domain = next((d for d in host.domains() if d.uuid == data["uuid"]), None)
    if domain is None:
        return "the VM is gone"
    if domain.name == data["new"]:
        if data["log"]:
            remove(host, data["log"])
        said = f"it has its new name {data['new']}"
    else:
        rollback.restore(domain, data)
        said = f"it has its old name {data['name']}"
    if not data["runs"]:
        return said
    try:
        domain = host.domain(data["uuid"])
        reservations.sync(domain)
        return f"{said}, and {'was started again' if started_again(domain) else 'runs'}"
    except VmkitError as e:
        entry.keep = True
        return f"{said}; it does not run yet, the next vmkit command tries again: {e.message}"
