"""Plugging into a guest that runs, and out of it. What the guest has to let go of is asked for until it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

from vmkit.errors import ConflictError, DeadlineError, EffectError, NotFoundError, VmkitError
from vmkit.hypervisor import alter, hotplug
from vmkit.system.clock import Deadline
from vmkit.vm import guest
from vmkit.vm.change.shape import Shape, read

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain

UNPLUG: Final = 60.0
"""Seconds for a guest to let go of something: Linux takes about one, and does not listen while it boots."""
_ASK_AGAIN: Final = 6.0
"""Seconds after which a guest is asked again. Its ACPI driver takes 5 s to act on the attention button of a PCI Express
port (drivers/pci/hotplug/pciehp_ctrl.c); a second press before that would cancel the first."""
_ONLINE: Final = """for state in /sys/devices/system/memory/memory*/state; do
  read -r word <"$state"
  [ "$word" = online ] || echo online_movable >"$state" || echo online >"$state"
done"""


def shape(domain: Domain) -> Shape:
    """What runs, now."""
    return read(domain.xml())


def has_disk(device: str) -> Callable[[Shape], bool]:
    """Whether a VM has the disk."""
    return lambda s: any(d.device == device for d in s.disks)


def has_scsi(domain: Domain) -> bool:
    """Whether a VM has a SCSI controller."""
    return "<controller type='scsi'" in domain.xml()


def has_nic(mac: str) -> Callable[[Shape], bool]:
    """Whether a VM has the NIC."""
    return lambda s: any(n.mac == mac for n in s.nics)


def has_memory(xml: str) -> Callable[[Shape], bool]:
    """Whether a VM has this piece of added memory."""
    return lambda s: any(slot_of(m.xml) == slot_of(xml) for m in s.dimms)


def slot_of(xml: str) -> str:
    """The slot of a piece of added memory."""
    address = ET.fromstring(xml).find("address")  # noqa: S314 - libvirt's own answer
    return address.get("slot", "") if address is not None else ""


def unplug(
    domain: Domain, what: str, xml: str, there: Callable[[Shape], bool], *, seconds: float | None = None
) -> None:
    """Take a device from what runs, and wait until the guest has let go of it.

    Args:
        domain: the VM.
        what: the device, in words.
        xml: its element.
        there: whether the VM still has it.
        seconds: for the guest; None for UNPLUG.

    Raises:
        DeadlineError: the guest keeps it; it may let go later.
    """

    def ask() -> None:
        hotplug.detach(domain, xml, live=True, config=False)

    # Such an error is no failure: the last request is under way, or was heard.
    expected = (ConflictError, NotFoundError)
    _until(domain, f"the guest of {domain.name} did not let go of {what}", ask, expected, there, seconds)


def set_vcpus(domain: Domain, count: int, *, seconds: float | None = None) -> None:
    """Add vCPUs to what runs or take some away.

    Raises:
        DeadlineError: the guest keeps some.
    """
    now = shape(domain).size.vcpus
    if count > now:
        alter.set_vcpus(domain, count)
        return

    def ask() -> None:
        alter.set_vcpus(domain, count)

    what = f"the guest of {domain.name} did not let go of {now - count} vCPUs"
    expected = (EffectError, ConflictError)  # libvirt waits 5 s for the guest and then says so
    _until(domain, what, ask, expected, lambda s: s.size.vcpus > count, seconds)


def memory_blocks(domain: Domain) -> int | None:
    """How many blocks of memory the guest knows of; None if its agent does not say."""
    try:
        return len(domain.agent("guest-get-memory-blocks", timeout=5))
    except VmkitError:
        return None


def bring_online(domain: Domain, *, vcpus: bool, blocks: int | None, seconds: float = 10.0) -> str | None:
    """Have the guest use what was plugged in: through its agent, since most kernels wait for somebody to say so.

    Args:
        domain: the VM.
        vcpus: vCPUs were added.
        blocks: how many blocks of memory the guest should come to know; 0 if none was added, None if that is unknown.
        seconds: for the guest to see it.

    Returns:
        None if that was done; else what is still to be done in the guest.
    """
    cpus = "in the guest: echo 1 | tee /sys/devices/system/cpu/cpu*/online"
    memory = "in the guest: echo online_movable | tee /sys/devices/system/memory/memory*/state"
    if blocks is None or not guest.answers(domain):
        todo = "; ".join([*([cpus] if vcpus else []), *([memory] if blocks != 0 else [])])
        return f"the guest agent of {domain.name} does not answer; have the guest use it, {todo}"
    left = []
    if vcpus:
        try:
            _vcpus_online(domain, seconds)
        except _NotSeenError as e:
            left.append(e.message)
        except VmkitError as e:
            left.append(f"{e.message}; have the guest use them, {cpus}")
    if blocks:
        try:
            _memory_online(domain, blocks, seconds)
        except VmkitError as e:
            left.append(f"{e.message}; have the guest use it, {memory}")
    return "; ".join(left) or None


class _NotSeenError(VmkitError):
    """The guest's kernel does not know of vCPUs that were added, and nothing that is done in the guest changes that."""


def _vcpus_online(domain: Domain, seconds: float) -> None:
    have = shape(domain)
    count, known = have.size.vcpus, 0

    def all_on() -> bool:
        nonlocal known
        seen: list[dict[str, Any]] = domain.agent("guest-get-vcpus", timeout=30)
        known = len(seen)
        off = [{"logical-id": v["logical-id"], "online": True} for v in seen if not v["online"]]
        if off:
            domain.agent("guest-set-vcpus", {"vcpus": off}, timeout=30)
        return known >= count and not off

    try:
        Deadline(seconds).wait_for(f"the guest of {domain.name} has not taken up {count} vCPUs", all_on, interval=0.3)
    except DeadlineError as e:
        if not (have.emulated and 0 < known < count):
            raise
        # Linux adbf61cc47cb (2025-11, and 6.12 of Debian 13): acpi_is_processor_usable() leaves out vCPUs that are not
        # there at boot, unless it knows the hypervisor by its CPUID signature, and TCG has none that it knows. Neither
        # sockets of their own nor "online capable" entries of an APIC table change that (tried with QEMU 10.0).
        raise _NotSeenError(
            f"the guest of {domain.name} sees {known} of its {count} vCPUs: newer Linux kernels take none that is "
            f"added to an emulated CPU while they run; it has them after: vmkit reboot {domain.name}"
        ) from e


def _memory_online(domain: Domain, blocks: int, seconds: float) -> None:
    """As movable memory, so that the guest can let go of it again. The agent's own command does not say that."""

    def all_on() -> bool:
        seen = domain.agent("guest-get-memory-blocks", timeout=30)
        if len(seen) < blocks:
            return False
        if all(b["online"] for b in seen):
            return True
        guest.run(domain, ["/bin/sh", "-c", _ONLINE], timeout=30)
        return False

    Deadline(seconds).wait_for(f"the guest of {domain.name} has not taken up its memory", all_on, interval=0.3)


def _until(
    domain: Domain,
    what: str,
    ask: Callable[[], None],
    expected: tuple[type[VmkitError], ...],
    there: Callable[[Shape], bool],
    seconds: float | None,
) -> None:
    """Ask again and again; an expected error of that is told only if the guest has not let go in the end."""
    limit = Deadline(UNPLUG if seconds is None else seconds)
    said = ""
    while True:
        try:
            ask()
        except expected as e:
            said = e.message
        try:
            Deadline(min(_ASK_AGAIN, limit.left)).wait_for(what, lambda: not there(shape(domain)), interval=0.2)
        except DeadlineError:
            if not limit.passed:
                continue
            raise DeadlineError(
                f"{what} within {limit.seconds:g} s",
                hint=f"does it listen? vmkit console {domain.name}, dmesg",
                details=(f"libvirt| {said}",) if said else (),
            ) from None
        return
