"""Whether a VM can be copied, and how. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.errors import ConflictError, RefusedError, SpecError, UnsupportedError
from vmkit.host.traps import TCG_MIGRATION
from vmkit.plan import Choice, Plan, Step
from vmkit.values import Bytes, check_name
from vmkit.vm.clone.identity import Card, Identity, addressed, new, respecced
from vmkit.vm.metadata import Remembered

IMAGE_FILE: Final = re.compile(r"[0-9a-f]{16}\.qcow2\Z")
"""Name of an image's disk in a host's pool: it never changes, and belongs to no VM."""
VIRTIO: Final = ("virtio", "virtio-net", "virtio-transitional", "virtio-non-transitional")


@dataclass(frozen=True, slots=True)
class SourceDisk:
    """A disk of the source.

    Attributes:
        target: as in 'vda'.
        path: its file, or block device.
        volume: its name in vmkit's pool; None if it is not there.
        backing: file that it stands on; None for none.
        writable: whether the guest can write to it.
        size: bytes that its file takes.
    """

    target: str
    path: str
    volume: str | None
    backing: str | None
    writable: bool = True
    size: int = 0


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """A VM that shall be copied, and its host.

    Attributes:
        name, uuid, state: of the domain.
        xml: its definition.
        disks: those with a file or a device.
        remembered: what vmkit keeps about it; None if another tool made it.
        agent: whether its image has a guest agent.
        answers: whether the agent answers now; of a running VM.
        stateless: nothing of its identity is on its disks: it comes with the kernel command line.
        domains: names that are taken on the host.
        qemu: version.
        free: bytes in the pool.
    """

    name: str
    uuid: str
    state: str
    xml: str
    disks: tuple[SourceDisk, ...]
    remembered: Remembered | None
    agent: bool
    stateless: bool
    domains: frozenset[str]
    qemu: tuple[int, int, int]
    free: int
    answers: bool = True


@dataclass(frozen=True, slots=True)
class CopyDisk:
    """A disk of a copy.

    Attributes:
        target: as in 'vda'.
        source, path: the volume that it comes from, and the path of that.
        volume: its own.
        backing: path of the image that it stands on; None: it stands alone.
        raw: it is no qcow2 file.
    """

    target: str
    source: str
    path: str
    volume: str
    backing: str | None
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy as it will be. `spec` is what would have been asked for, had it been created."""

    identity: Identity
    disks: tuple[CopyDisk, ...]

    @property
    def name(self) -> str:
        """Its name."""
        return self.identity.name


@dataclass(frozen=True, slots=True)
class CloneDesign:
    """What was decided: live or cold, the copies, and the plan for people."""

    live: bool
    copies: tuple[Copy, ...]
    plan: Plan
    inside: bool = True


def decide(
    facts: SourceFacts, names: Sequence[str], cards: Sequence[Card], *, full: bool = False, address: str | None = None
) -> CloneDesign:
    """Decide how the copies are made.

    Args:
        facts: of the source.
        names: of the copies.
        cards: of the source.
        full: the disks of the copies stand alone.
        address: see `identity.addressed`.

    Raises:
        SpecError: a name cannot be one; or an address is missing or wrong.
        ConflictError: a name is taken; or the source is in the middle of something.
        RefusedError: it cannot be copied; says why.
        UnsupportedError: this host cannot do it without harm.
    """
    check_names(names, facts.domains)
    live = _live(facts)
    check_source(facts, live=live)
    copies = tuple(_copy(facts, name, i, cards, full=full, address=address) for i, name in enumerate(names))
    _check_room(facts, copies, full=full, live=live)
    inside = facts.agent and (live or not facts.stateless)
    warnings = []
    if not facts.agent:
        warnings.append(f"{facts.name} has no guest agent: inside, a copy has its host name, machine-id and ssh keys")
    plan = _plan(facts, copies, live=live, full=full, inside=inside)
    return CloneDesign(live, copies, replace(plan, warnings=tuple(warnings)), inside)


def check_names(names: Sequence[str], taken: frozenset[str]) -> None:
    """Raises SpecError and ConflictError for names that new VMs cannot have."""
    if not names:
        raise SpecError("no name for the copy", path="NAME")
    for i, name in enumerate(names):
        check_name(name)
        if name in names[:i]:
            raise SpecError(f"'{name}' is there twice", path="NAME")
        if name in taken:
            raise ConflictError(f"there is a VM named {name}", hint=f"take another name, or: vmkit delete {name}")


def _live(facts: SourceFacts) -> bool:
    if facts.state == "shut off":
        return False
    if facts.state == "running":
        return True
    way = f"vmkit resume {facts.name}" if facts.state == "paused" else f"vmkit show {facts.name}"
    raise ConflictError(f"{facts.name} is {facts.state}: it has to run, or to be shut off", hint=way)


def check_source(facts: SourceFacts, *, live: bool) -> None:
    """Raise RefusedError or UnsupportedError if the VM cannot be copied; `live` with its memory."""
    name = facts.name
    if facts.remembered is None:
        raise RefusedError(f"{name} was made by another tool: what belongs to it is not known", hint="virt-clone")
    root = ET.fromstring(facts.xml)  # noqa: S314 - libvirt's own answer
    for tag, what in (("hostdev", "a device of the host"), ("tpm", "a TPM"), ("filesystem", "a shared folder")):
        if root.find(f"devices/{tag}") is not None:
            raise RefusedError(f"{name} has {what}, which cannot be copied", hint=f"vmkit show {name}")
    if root.find("devices/interface[@type='hostdev']") is not None:
        raise RefusedError(f"{name} has a virtual function of the host, which two VMs cannot share")
    if any(nic.get("forward") for nic in facts.remembered.spec.get("nics", ())):
        raise RefusedError(f"ports of the host lead to {name}, and they can lead to one VM only")
    if root.find("os/nvram") is not None:
        raise UnsupportedError(f"{name} has UEFI variables of its own, which are not copied")
    for disk in facts.disks:
        if disk.writable and disk.volume is None:
            raise RefusedError(
                f"the disk {disk.target} of {name} is {disk.path}, which is not in vmkit's pool",
                hint="disks that vmkit did not make are not copied",
            )
    if live:
        _check_memory(facts, root)


def _check_memory(facts: SourceFacts, root: ET.Element) -> None:
    name = facts.name
    if not facts.agent:
        raise RefusedError(
            f"{name} has no guest agent, so a copy of what runs could not be given its own identity",
            hint=f"vmkit stop {name} first: a VM that is shut off can be copied without",
        )
    if not facts.answers:
        raise RefusedError(
            f"the guest agent of {name} does not answer, so a copy could not be given its own identity",
            hint=f"vmkit wait {name} --for agent",
        )
    if facts.remembered and facts.remembered.spec.get("guest", "linux") != "linux":
        raise UnsupportedError(f"{name} runs another system than Linux: only Linux takes a new identity while it runs")
    for model in root.iterfind("devices/interface/model"):
        if model.get("type") not in VIRTIO:
            raise UnsupportedError(
                f"{name} has a network card of the model {model.get('type')}, which keeps its address in memory of its "
                "own",
                hint=f"virtio cards can be copied while they run; or vmkit stop {name} first",
            )
    if root.get("type") == "qemu" and TCG_MIGRATION.catches(facts.qemu):
        raise UnsupportedError(f"{TCG_MIGRATION.harm}; so does a copy", hint=TCG_MIGRATION.fix)


def _copy(
    facts: SourceFacts, name: str, number: int, cards: Sequence[Card], *, full: bool, address: str | None
) -> Copy:
    identity = new(name, addressed(cards, address, number, name=facts.name))
    disks = []
    owned = facts.remembered.volumes if facts.remembered else ()
    for i, disk in enumerate(d for d in facts.disks if d.writable and d.volume):
        linked = not full and disk.backing is not None and IMAGE_FILE.match(disk.backing.rpartition("/")[2])
        backing = disk.backing if linked else None
        disks.append(CopyDisk(disk.target, disk.volume or "", disk.path, f"{name}-{i}.qcow2", backing))
    for disk in facts.disks:
        if not disk.writable and disk.volume in owned:  # the seed of cloud-init
            suffix = disk.volume.removeprefix(f"{facts.name}-")
            disks.append(CopyDisk(disk.target, disk.volume, disk.path, f"{name}-{suffix}", None, raw=True))
    return Copy(identity, tuple(disks))


def _check_room(facts: SourceFacts, copies: Sequence[Copy], *, full: bool, live: bool) -> None:
    del full
    each = sum(d.size for d in facts.disks if d.writable)
    memory = memory_size(facts.xml) * (1 + len(copies)) if live else 0
    need = Bytes(each * len(copies) + memory)
    if need > facts.free:
        raise RefusedError(
            f"no space: copies of {facts.name} may take {need}, {Bytes(facts.free)} are free in the pool",
            hint="free some: vmkit delete, vmkit image prune",
        )


def memory_size(xml: str) -> int:
    """Bytes of memory of a domain."""
    return int(ET.fromstring(xml).findtext("memory", "0")) * 1024  # noqa: S314 - libvirt's own answer; KiB


def _plan(facts: SourceFacts, copies: Sequence[Copy], *, live: bool, full: bool, inside: bool) -> Plan:
    choices = [
        Choice("kind", "live" if live else "cold", f"{facts.name} is {facts.state}"),
        Choice(
            "disks",
            "full" if full else "linked",
            "asked for: they stand alone"
            if full
            else "they share the image's file, and hold what the source has written to its own",
        ),
    ]
    steps = []
    if live:
        steps.append(Step("save", f"memory of {facts.name}", "while it runs; it stands still for the last moment"))
    for copy in copies:
        steps.append(Step("define", f"domain {copy.name}", f"uuid {copy.identity.uuid}"))
        for disk in copy.disks:
            how = f"stands on {disk.backing.rpartition('/')[2]}" if disk.backing else "stands alone"
            steps.append(Step("copy", f"disk {disk.target} to {disk.volume}", how))
    if live:
        steps.append(Step("merge", f"disks of {facts.name}", "what it wrote meanwhile goes into its own files"))
    if inside:
        why = "with its cable pulled, so no two have one address"
        steps += [Step("rename", f"guest of {copy.name}", why) for copy in copies]
    return Plan(f"{'live' if live else 'cold'} copies of {facts.name}", tuple(choices), tuple(steps))


def kept(remembered: Remembered, copy: Copy, log: str | None) -> Remembered:
    """What is kept about a copy in its metadata."""
    spec = respecced(remembered.spec, copy.identity)
    return replace(remembered, spec=spec, volumes=tuple(d.volume for d in copy.disks), console_log=log)
