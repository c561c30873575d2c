"""Changing the limits of a VM: facts, a plan, the change in what runs and in its definition, and the way back."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import msgspec

from vmkit.errors import CancelledError, EffectError, NotFoundError, VmkitError
from vmkit.hypervisor import tuning
from vmkit.hypervisor.domain import Domain
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.migration import adopt
from vmkit.progress import Reporter
from vmkit.system.interrupts import deferred
from vmkit.system.journal import Entry, journalled
from vmkit.vm import xml_limits
from vmkit.vm.limit_plan import Decision, LimitFacts, decide
from vmkit.vm.limit_spec import in_spec
from vmkit.vm.limits import (
    DISK_FIELDS,
    IO_WEIGHT,
    PERIOD,
    Change,
    Limits,
    OfDisk,
    OfNic,
    Setting,
    kilobytes,
    quota_of,
    settings,
    without_defaults,
)
from vmkit.vm.metadata import NAMESPACE, remembered_in, to_text
from vmkit.vm.spec_parts import LimitsSpec
from vmkit.vm.xml_size import read_size

if TYPE_CHECKING:
    from vmkit.hypervisor.tuning import Controllers


@dataclass(frozen=True, slots=True)
class Shown:
    """Limits of a VM, as `vmkit limit` prints them.

    Attributes:
        name: of the VM.
        changed: what was changed just now, in words; empty where nothing had to be, or nothing was asked for.
        warnings: what to know about it.
        live: limits of what runs; None if it does not run.
        config: limits of the definition; None if there is none.
    """

    name: str
    changed: tuple[str, ...]
    warnings: tuple[str, ...]
    live: Limits | None
    config: Limits | None


def gather(domain: Domain) -> LimitFacts:
    """What is known of a VM's limits. Nothing is changed."""
    active, persistent = domain.state().active, domain.persistent
    xml = domain.xml()
    config = xml_limits.read(domain.xml(inactive=True)) if persistent else None
    controllers = tuning.controllers(domain) if active and domain.host.driver == "QEMU" else None
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    kind = root.get("type", "")
    return LimitFacts(
        name=domain.name,
        uri=domain.host.uri,
        session=urlsplit(domain.host.uri).path == "/session",
        memory=int(root.findtext("memory", "0")) * 1024,
        vcpus=read_size(root).vcpus,
        accelerator="tcg" if kind == "qemu" else kind,
        live=without_defaults(xml_limits.read(xml), controllers.weight if controllers else None) if active else None,
        config=config,
        controllers=controllers,
    )


def plan(domain: Domain, change: Change, *, live: bool, config: bool) -> Decision:
    """What `apply` would do; raises as it does before anything is touched."""
    return decide(gather(domain), change, live=live, config=config)


def apply(domain: Domain, change: Change, *, live: bool, config: bool) -> Decision:
    """Change limits. What is so already is not set again.

    Raises:
        SpecError, RefusedError: nothing was touched.
        EffectError: a part failed; everything is as it was, or the message says what is not.
        CancelledError: Ctrl-C or a signal came; everything is as it was.
    """
    facts = gather(domain)
    decision = decide(facts, change, live=live, config=config)
    if decision.live is None and decision.config is None:
        return decision
    before = {"live": _plain(facts.live) if decision.live else None, "config": None}
    before["config"] = _plain(facts.config) if decision.config else None
    data = {"uri": domain.host.uri, "uuid": domain.uuid, **before}
    with journalled("limit", domain.name, "begin", **data) as entry, deferred() as interrupted:
        try:
            _reach(domain, decision.live, decision.config)
            if by := interrupted():
                raise CancelledError(f"the change of {domain.name}'s limits was stopped by {by}")
        except VmkitError as e:
            left = _back(domain, entry, facts, decision)
            if isinstance(e, CancelledError):
                raise CancelledError(f"{e.message}; {left}") from e
            raise EffectError(e.message, left=left, hint=e.hint) from e
    return decision


def reach(domain: Domain, live: Limits | None) -> list[Setting]:
    """Have what runs keep to these limits, from whatever is so now; returns what had to be set."""
    return _reach(domain, live, None)


def plain(limits: Limits | None) -> Any:
    """Limits as plain JSON."""
    return _plain(limits)


def from_plain(value: Any) -> Limits | None:
    """The other way round."""
    return _limits(value)


def recover(entry: Entry, reporter: Reporter) -> str:
    """Undo a change that was cut off; returns what was found and done.

    Raises:
        UnreachableError: the host does not answer; the entry is kept.
    """
    del reporter
    record = entry.record
    with Host.connect(record.data["uri"]) as host:
        try:
            domain = host.domain(record.data["uuid"])
        except NotFoundError:
            return f"a change of {record.subject}'s limits was cut off; the VM is gone"
        done = _reach(domain, _limits(record.data["live"]), _limits(record.data["config"]))
    what = ", ".join(dict.fromkeys(s.subject for s in done))
    how = f"set back: {what}" if done else "nothing of it had been done"
    return f"a change of {record.subject}'s limits was cut off; {how}"


def _reach(domain: Domain, live: Limits | None, config: Limits | None) -> list[Setting]:
    """Bring about these limits, from whatever is so now; returns what had to be set."""
    done: list[Setting] = []
    facts = gather(domain)
    if live is not None and facts.live is not None:
        # A raised cap and a lowered one alike: no order of the parts is better than another.
        for setting in settings(facts.live, live):
            _set(domain, setting, facts.controllers)
            done.append(setting)
    if config is not None and facts.config is not None and (changes := settings(facts.config, config)):
        text = domain.xml(inactive=True, secure=True)
        adopt(domain.host, xml_limits.write(text, facts.config, config))
        done += changes
    if lasting := config or (live if facts.config is None else None):
        _remember(domain, lasting, running=facts.live is not None, defined=facts.config is not None)
    return done


def _remember(domain: Domain, limits: Limits, *, running: bool, defined: bool) -> None:
    """Keep them in the spec that the VM's metadata holds; nothing for a VM that another tool made."""
    element = domain.metadata(NAMESPACE)
    memory = remembered_in(element) if element else None
    spec = in_spec(memory.spec, limits) if memory else {}
    if memory is None or spec == memory.spec:
        return
    made = ET.Element("vm")
    made.text = to_text(replace(memory, spec=spec))
    text = ET.tostring(made, encoding="unicode")
    tuning.set_element(domain, NAMESPACE, "vmkit", text, live=running, config=defined)


def _set(domain: Domain, setting: Setting, have: Controllers | None) -> None:
    new = setting.new
    match new:
        case OfDisk():
            values = {f: int(getattr(new.limits, f) or 0) for f in DISK_FIELDS}
            tuning.set_disk(domain, new.device, values)
        case OfNic():
            rates = new.limits
            tuning.set_nic(domain, new.mac or "", kilobytes(rates.inbound or 0), kilobytes(rates.outbound or 0))
        case LimitsSpec():
            _set_vm(domain, setting.subject, new, have)


def _set_vm(domain: Domain, subject: str, new: LimitsSpec, have: Controllers | None) -> None:
    match subject:
        case "cpus":
            quota = -1 if new.cpu_quota is None else quota_of(new.cpu_quota)
            tuning.set_cpu(domain, {"global_period": PERIOD, "global_quota": quota})
        case "cpu-shares":
            default = (have.weight if have else None) or 100
            tuning.set_cpu(domain, {"cpu_shares": default if new.cpu_shares is None else new.cpu_shares})
        case "memory-cap":
            tuning.set_memory(domain, None if new.memory is None else new.memory.kib)
        case "io-weight":
            tuning.set_io_weight(domain, IO_WEIGHT if new.io_weight is None else new.io_weight)


def _back(domain: Domain, entry: Entry, facts: LimitFacts, decision: Decision) -> str:
    """Set everything back and look whether it is; says what is left."""
    old_live = facts.live if decision.live else None
    old_config = facts.config if decision.config else None
    with contextlib.suppress(VmkitError):
        _reach(domain, old_live, old_config)
    try:
        now = gather(domain)
    except VmkitError:
        entry.keep = True
        return "the next vmkit command sets back what was changed"
    wrong = [s.text for s in settings(now.live, old_live)] if now.live and old_live else []
    wrong += [s.text for s in settings(now.config, old_config)] if now.config and old_config else []
    if wrong:
        return f"it could not be set back: {', '.join(dict.fromkeys(wrong))}"
    return "everything is as it was"


def _plain(limits: Limits | None) -> Any:
    return msgspec.to_builtins(limits, enc_hook=int, str_keys=True)


def _limits(plain: Any) -> Limits | None:
    return None if plain is None else msgspec.convert(plain, Limits, dec_hook=lambda kind, value: kind(value))
