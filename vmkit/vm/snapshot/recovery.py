"""Taking up work on a VM's snapshots, or on its saved memory, whose vmkit was killed.

libvirtd carries a call to its end when its caller is gone; so the first thing is to wait for that, and to look then.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, Final

from vmkit.errors import DeadlineError, IndeterminateError, NotFoundError, VmkitError
from vmkit.hypervisor import backup
from vmkit.hypervisor import snapshot as calls
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter
from vmkit.system.clock import Deadline
from vmkit.system.journal import Entry
from vmkit.vm.snapshot import decide
from vmkit.vm.snapshot.facts import busy, gather, listing
from vmkit.vm.snapshot.perform import clean_up, keep_volumes, remembered, remove

PATIENCE_S: Final = 60.0
"""How long libvirt may take to end what was begun, seconds. After that the entry is kept for the next command."""
SETTLE_S: Final = 0.5
"""A call that libvirtd has not yet begun to carry out shows as no job."""


def recover(entry: Entry, reporter: Reporter) -> str:
    """Finish or clean up; returns what was found and done.

    Raises:
        UnreachableError: the host does not answer; the entry is kept.
        IndeterminateError: libvirt still works on it; the entry is kept.
    """
    record = entry.record
    data = record.data
    with Host.connect(data["uri"]) as host:
        try:
            domain = host.domain(data["uuid"])
        except NotFoundError:
            return f"work on {record.subject} ({data['what']}) was cut off; the VM is gone"
        await_quiet(domain)
        return _settle(domain, record.phase, data, reporter)


def await_quiet(domain: Domain) -> None:
    """Wait until libvirt has ended what it was asked for.

    Raises:
        IndeterminateError: it has not, in PATIENCE_S seconds.
    """
    quiet = Deadline(SETTLE_S)

    def probe() -> bool:
        nonlocal quiet
        if busy(domain, domain.state()):
            quiet = Deadline(SETTLE_S)
        return quiet.passed

    try:
        Deadline(PATIENCE_S).wait_for("libvirt", probe)
    except DeadlineError as e:
        raise IndeterminateError(
            f"libvirt still works on {domain.name} after {PATIENCE_S:g} s",
            hint=f"see what it does: virsh domjobinfo {domain.name}",
        ) from e


def _settle(domain: Domain, phase: str, data: dict[str, Any], reporter: Reporter) -> str:
    name, what = domain.name, data["what"]
    match what:
        case "take":
            if phase == "freeze" or (phase == "take" and domain.state().active):
                with contextlib.suppress(VmkitError):  # nothing may be frozen, or there is no agent
                    backup.thaw(domain)
            snapshot = data["snapshot"]
            if any(s.name == snapshot for s in listing(domain)):
                _run_again(domain, ran=data["ran"])
                return f"the snapshot {snapshot} of {name} was cut off after libvirt had begun; it is whole and kept"
            left = clean_up(domain, snapshot, data["files"], ran=data["ran"])
            return f"the snapshot {snapshot} of {name} was cut off at '{phase}'; {left}"
        case "revert":
            return _revert(domain, phase, data)
        case "delete":
            there = [s.name for s in listing(domain)]
            left_over = [n for n in data["names"] if n in there]
            if left_over:
                remove(domain, decide.remove(gather(domain), left_over), reporter)
            return f"the deletion of snapshots of {name} was cut off; all are deleted now: {', '.join(data['names'])}"
        case _:
            state = "saved" if calls.saved(domain) and not domain.state().active else domain.state().value
            _run_again(domain, ran=data.get("ran", False))
            return f"the saving of {name} was cut off; it is {state}"


def _revert(domain: Domain, phase: str, data: dict[str, Any]) -> str:
    """Say whether it came to its end. It is never done again: the guest may have gone on for days since."""
    name, snapshot = domain.name, data["snapshot"]
    head = f"the revert of {name} to {snapshot} was cut off"
    again = f"do it again: vmkit snapshot revert {name} {snapshot}"
    if phase == "begin":
        return f"{head} before the VM was touched; {again}"
    now = remembered(domain)
    if now is not None:
        keep_volumes(domain, replace(now, volumes=tuple(data["volumes"])))
    if calls.run_id(domain) == data["run"] and not (data["run"] is None and calls.from_snapshot(domain)):
        return f"{head} and was not done; {name} is {domain.state().value}; {again}"
    return f"{head} after libvirt had begun; it came to its end, and {name} is {domain.state().value}"


def _run_again(domain: Domain, *, ran: bool) -> None:
    """A VM that ran and was stopped for the time of the work goes on."""
    if ran and domain.state() is DomainState.PAUSED:
        domain.resume()
