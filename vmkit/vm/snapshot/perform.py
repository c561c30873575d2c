"""Carrying decisions about snapshots out, each under a journal entry that the next command can finish."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any
from xml.etree import ElementTree as ET

from vmkit.errors import CancelledError, EffectError, VmkitError
from vmkit.hypervisor import backup
from vmkit.hypervisor import snapshot as calls
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.hypervisor.hotplug import set_metadata
from vmkit.image.place import POOL
from vmkit.progress import Note, Reporter
from vmkit.system.interrupts import deferred
from vmkit.system.journal import Entry, journalled
from vmkit.vm import guest
from vmkit.vm.backup import marks
from vmkit.vm.describe import describe
from vmkit.vm.metadata import NAMESPACE, Remembered, remembered_in, to_text
from vmkit.vm.snapshot.decide import Removal, Revert, Take, snapshot_xml
from vmkit.vm.snapshot.facts import listing
from vmkit.vm.snapshot.model import Kind, sources
from vmkit.vm.watched import watched

PREFIX = "vmkit"


def take(domain: Domain, decision: Take, reporter: Reporter) -> float:
    """Take a snapshot; returns the seconds it took.

    Raises:
        EffectError: libvirt failed; the VM goes on, and nothing is left of the snapshot.
        CancelledError: Ctrl-C or a signal came; the same.
    """
    active = domain.state() is DomainState.RUNNING
    new = [*decision.overlays.values(), *([decision.memory_file] if decision.memory_file else [])]
    with _entry(domain, "take", decision.name, files=new, ran=active) as entry, deferred() as interrupted:
        marks.forget(domain, decision.forget)
        quiet = active and not decision.memory and _freeze(domain, entry, reporter)
        entry.advance("take")
        try:
            seconds = watched(
                domain,
                partial(calls.create, domain, snapshot_xml(decision), disk_only=_disk_only(domain, decision)),
                step="snapshot",
                text=decision.name,
                interrupted=interrupted,
                reporter=reporter,
            )
        except VmkitError as e:
            try:
                left = clean_up(domain, decision.name, new, ran=active)
            except VmkitError:  # Ctrl-C also ends the ssh below a connection; libvirt goes on
                entry.keep = True
                left = "the next vmkit command looks at what became of it"
            if by := interrupted():
                raise CancelledError(f"the snapshot of {domain.name} was stopped by {by}; {left}") from e
            raise EffectError(e.message, left=left, hint=e.hint) from e
        finally:
            if quiet:
                backup.thaw(domain)
        if by := interrupted():
            reporter(Note(f"{by} came too late: the snapshot {decision.name} is whole", warning=True))
    return seconds


def go_back(domain: Domain, decision: Revert, reporter: Reporter) -> tuple[float, tuple[str, ...]]:
    """Revert, and see that it is so; returns the seconds it took, and what was seen.

    Raises:
        EffectError: libvirt failed, or the VM is not as it was then; says how it is.
    """
    name = decision.snapshot.name
    with _entry(domain, "revert", name, run=calls.run_id(domain)) as entry, deferred() as hold:
        memory = remembered(domain)
        marks.forget(domain, decision.forget)
        if decision.drop_saved:
            calls.drop_saved(domain)
        entry.advance("revert", volumes=list(memory.volumes) if memory else [])
        try:
            # Half a revert is no state to stop in: Ctrl-C is not looked at.
            seconds = watched(
                domain,
                partial(calls.revert, domain, name, start=decision.start),
                step="revert",
                text=name,
                interrupted=lambda: None,
                reporter=reporter,
            )
        except VmkitError as e:
            state = domain.state().value
            raise EffectError(
                e.message,
                left=f"{domain.name} is {state}",
                hint=e.hint or f"its snapshots are still there: vmkit snapshot list {domain.name}",
            ) from e
        keep_volumes(domain, memory)
        seen = verify(domain, decision)
        if by := hold():
            reporter(Note(f"{by} came too late: the revert to {name} is done", warning=True))
    return seconds, seen


def remove(domain: Domain, decision: Removal, reporter: Reporter) -> None:
    """Delete snapshots, in the order of the decision.

    Raises:
        EffectError: one could not be deleted; says which are left.
        CancelledError: Ctrl-C came between two of them.
    """
    with _entry(domain, "delete", decision.names[0], names=list(decision.names)), deferred() as interrupted:
        for i, name in enumerate(decision.names):
            left = f"left: {', '.join(decision.names[i:])}"
            if by := interrupted():
                raise CancelledError(f"the deletion of snapshots was stopped by {by}; {left}")
            try:
                # To stop in the middle of a merge is possible, but leaves a snapshot that libvirt calls broken.
                watched(
                    domain,
                    partial(calls.delete, domain, name),
                    step="delete",
                    text=name,
                    interrupted=lambda: None,
                    reporter=reporter,
                )
            except VmkitError as e:
                raise EffectError(e.message, left=left, hint=e.hint) from e


def verify(domain: Domain, decision: Revert) -> tuple[str, ...]:
    """See that a VM is as its snapshot says; returns what was seen.

    Raises:
        EffectError: it is not; says in what.
    """
    wanted = decision.snapshot
    again = f"go back again: vmkit snapshot revert {domain.name} {wanted.name}"
    seen = []
    state = domain.state()
    if state is not decision.state:
        raise EffectError(f"after the revert {domain.name} is {state.value} and not {decision.state.value}", hint=again)
    seen.append(f"it is {state.value}")
    if domain.host.driver != "TEST":
        if wanted.memory and not calls.from_snapshot(domain):
            raise EffectError(f"after the revert the memory of {domain.name} is not that of {wanted.name}", hint=again)
        if wanted.memory:
            seen.append("its memory is that of the snapshot")
    current = next((s.name for s in listing(domain) if s.current), None)
    if current != wanted.name:
        raise EffectError(f"after the revert {domain.name} stands on {current} and not on {wanted.name}", hint=again)
    seen += _disks_rest_upon(domain, decision)
    return tuple(seen)


def keep_volumes(domain: Domain, before: Remembered | None) -> None:
    """Go on remembering the volumes that vmkit made since, and the name that the VM has now.

    A revert brings the older definition back, and `delete` has to know of what is newer.
    """
    now = remembered(domain)
    if before is None or now is None:
        return
    log = before.console_log  # a VM that was renamed since got another
    newer = [*before.volumes, *([log] if log and log != now.console_log else [])]
    volumes, spec = tuple(dict.fromkeys([*now.volumes, *newer])), {**now.spec, "name": domain.name}
    if (volumes, spec) != (now.volumes, now.spec):
        made = ET.Element("vm")
        made.text = to_text(replace(now, volumes=volumes, spec=spec))
        set_metadata(domain, ET.tostring(made, encoding="unicode"), prefix=PREFIX, namespace=NAMESPACE)


def remembered(domain: Domain) -> Remembered | None:
    """What vmkit keeps in a domain's metadata."""
    element = domain.metadata(NAMESPACE)
    return remembered_in(element) if element else None


def clean_up(domain: Domain, name: str, files: list[str], *, ran: bool) -> str:
    """After a snapshot that failed: remove its files that nobody uses, let the VM run again. Says what is left."""
    if any(s.name == name for s in listing(domain)):
        return f"the snapshot {name} is there"
    used = set(sources(describe(domain.xml()).disks).values())
    with contextlib.suppress(VmkitError):
        pool = domain.host.pool(POOL)
        for path in files:
            if path not in used and path.rpartition("/")[0] == str(pool.folder):
                pool.delete(path.rpartition("/")[2])
    if ran and domain.state() is DomainState.PAUSED:
        domain.resume()
    return f"{domain.name} is {domain.state().value}, and nothing is left of the snapshot"


def _disks_rest_upon(domain: Domain, decision: Revert) -> list[str]:
    root = ET.fromstring(domain.xml())  # noqa: S314 - libvirt's own answer
    if decision.snapshot.kind is Kind.INTERNAL:
        now = sources(describe(domain.xml()).disks)
        wrong = [d for d in decision.snapshot.disks if now.get(d) != decision.sources.get(d)]
    else:
        below = {}
        for disk in root.iterfind("devices/disk"):
            target, source = disk.find("target"), disk.find("backingStore/source")
            if target is not None and source is not None:
                below[target.get("dev", "")] = source.get("file") or source.get("dev")
        # libvirt tells the chain of running VMs, and of others only where it was written down.
        wrong = [d for d in decision.snapshot.disks if below.get(d, decision.sources.get(d)) != decision.sources.get(d)]
    if wrong:
        raise EffectError(
            f"after the revert {', '.join(wrong)} of {domain.name} do not rest upon the snapshot's files",
            hint=f"go back again: vmkit snapshot revert {domain.name} {decision.snapshot.name}",
        )
    disks = ", ".join(decision.snapshot.disks)
    return [f"on the snapshot's files: {disks}"] if disks else []


def _disk_only(domain: Domain, decision: Take) -> bool:
    off = domain.state() is DomainState.SHUTOFF
    return decision.kind is Kind.EXTERNAL and not decision.memory and (not off or bool(decision.overlays))


def _freeze(domain: Domain, entry: Entry, reporter: Reporter) -> bool:
    """Have the guest hold its file systems still, where it can."""
    if not guest.answers(domain):
        return False
    entry.advance("freeze")
    try:
        return backup.freeze(domain) >= 0
    except VmkitError as e:
        reporter(Note(f"the guest does not hold its file systems still: {e.message}", warning=True))
        with contextlib.suppress(VmkitError):
            backup.thaw(domain)
        return False


def _entry(domain: Domain, what: str, name: str, **data: Any) -> AbstractContextManager[Entry]:
    facts: dict[str, Any] = {"uri": domain.host.uri, "uuid": domain.uuid, "what": what, "snapshot": name, **data}
    return journalled("snapshot", domain.name, "begin", **facts)
