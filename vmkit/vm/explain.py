"""What a domain's XML means: how the VM is virtualised now, line by line, whoever made it. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from vmkit.device.usage import address_of
from vmkit.host import figures
from vmkit.host.measured import Area, Measured, Mode
from vmkit.plan import Choice, Plan
from vmkit.values import Bytes
from vmkit.vm.choices import xen
from vmkit.vm.choices.helpers import HYPERV
from vmkit.vm.choices.reasons import Reasons
from vmkit.vm.machine_facts import MachineFacts
from vmkit.vm.xml_size import read_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkit.vm.metadata import Remembered

NOT_MEASURED: Final = "not measured: vmkit bench host"
_CPU: Final = {
    "host-passthrough": "the host's own CPU; moves only to hosts with the same one",
    "host-model": "nearly all of the host's features, by the nearest model that libvirt has a name for",
    "maximum": "all that the accelerator can give",
    "custom": "a named model; moves to every host that can give it",
}
_BUS: Final = {
    "virtio": "para-virtual: requests travel in shared memory",
    "scsi": "virtio-scsi, or an emulated SCSI controller",
    "sata": "emulated AHCI",
    "ide": "emulated IDE",
    "xen": xen.DISK,
    "usb": "emulated USB",
    "fdc": "emulated floppy controller",
}
_KVM_HELPERS: Final = {
    "hint-dedicated": "the guest is told that its vCPUs have CPUs of their own: plain spinlocks, polling before a halt",
    "poll-control": "the guest can have the host poll before it takes the CPU away",
    "pv-ipi": "an interrupt to many vCPUs is one call",
    "hidden": "the guest is not told that it runs on KVM, so it uses no helper of it",
    "dirty-ring": "dirty pages are counted in a ring, as migration with a dirty limit needs",
}


def explained(xml: str, uri: str, facts: MachineFacts, remembered: Remembered | None) -> Plan:
    """What the XML of a domain says about how it is virtualised.

    Args:
        xml: as libvirt has it: what runs, or what the next start uses.
        uri: of its host, for the title.
        facts: what the host's files say.
        remembered: what vmkit keeps about it; None for the domain of another tool.
    """
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    why = Reasons()
    kind = root.get("type", "")
    if remembered is None:
        why.warn("another tool made this VM: why it is like this is not known, only what it means")
    else:
        family = remembered.spec.get("family", "general")
        why.chose("family", family, "as it was made" if "family" in remembered.spec else "as it was made: the default")
    _cpus(root, kind, facts, why)
    _memory(root, kind, facts, why)
    for i, disk in enumerate(root.iterfind("devices/disk")):
        _disk(disk, f"disks[{i}]", why)
    for i, nic in enumerate(root.iterfind("devices/interface")):
        _nic(nic, f"nics[{i}]", kind, facts, why)
    for i, device in enumerate(root.iterfind("devices/hostdev")):
        _device(device, f"devices[{i}]", why)
    _helpers(root, kind, why)
    if kind == "kvm" and facts.virtual_interrupts is not None:
        on = facts.virtual_interrupts
        name = {"Intel": "APICv", "AMD": "AVIC"}.get(facts.vendor, "virtual APIC")
        reason = "the CPU delivers interrupts without an exit" if on else f"an exit each: {name} is off on this host"
        why.chose("interrupts.apic", name if on else "in-kernel APIC", reason)
    return Plan(f"VM {root.findtext('name')} on {uri}, as it is", tuple(why.choices), (), tuple(why.warnings))


def with_measured(plan: Plan, measured: Measured | None) -> Plan:
    """The plan with what `vmkit bench host` measured, beside each line that has an expected efficiency."""
    values = {c.subject: c.value for c in plan.choices}
    return replace(plan, choices=tuple(_with(c, values, measured) for c in plan.choices))


def _with(choice: Choice, values: dict[str, str], measured: Measured | None) -> Choice:
    found = _mode(choice, values)
    if found is None:
        return choice
    area, mode = found
    share = measured.efficiency(area, mode) if measured else None
    if measured is None or share is None:
        return replace(choice, measured=NOT_MEASURED)
    return replace(
        choice, measured=f"{share:.0%} of the host's own speed ({area.value}, {mode.value}, {measured.when})"
    )


def _mode(choice: Choice, values: dict[str, str]) -> tuple[Area, Mode] | None:
    """What `vmkit bench host` would have measured for a line; on Xen it measures nothing."""
    subject, value = choice.subject, choice.value
    if values.get("accel") == "xen":
        return None
    kvm = Mode.SHADOW if values.get("memory.paging") == "shadow" else Mode.NESTED
    mode = {"kvm": kvm, "tcg": Mode.TCG}.get(values.get("accel", ""))
    if subject in ("accel", "memory.paging") and mode:
        return (Area.CPU if subject == "accel" else Area.MEMORY), mode
    if subject.startswith("disks[") and subject.endswith(".bus"):
        return Area.DISK, Mode.EMULATED if value in ("sata", "ide") else Mode.VIRTIO
    if subject.startswith("nics["):
        if subject.endswith(".vhost") and value in ("on", "off"):
            return Area.NETWORK, Mode.VHOST if value == "on" else Mode.VIRTIO
        if subject.endswith(".model") and value != "virtio":
            return Area.NETWORK, Mode.EMULATED
        if value.startswith(("sriov", "passthrough")):
            return Area.NETWORK, Mode.VF
    return None


def _cpus(root: ET.Element, kind: str, facts: MachineFacts, why: Reasons) -> None:
    if kind == "kvm":
        shadow = facts.paging == "shadow"
        expected = figures.SHADOW if shadow else figures.NESTED
        why.chose("accel", "kvm", "the CPU runs the guest's instructions itself", expected=expected)
    elif kind == "qemu":
        why.chose("accel", "tcg", "each instruction is translated in software", expected=figures.EMULATION)
    elif kind == "xen":
        why.chose("accel", kind, "the CPU runs the guest's instructions itself, under Xen")
    else:
        why.chose("accel", kind, f"libvirt's domain type {kind}")
    machine = root.find("os/type")
    if machine is not None and machine.get("machine"):
        board = machine.get("machine", "")
        why.chose("machine", board, xen.REASONS.get(board, "the virtual board"))
    size = read_size(root)
    more = f", up to {size.max_vcpus} while it runs" if size.max_vcpus > size.vcpus else ""
    why.chose("vcpus", size.vcpus, f"virtual CPUs{more}")
    cpu = root.find("cpu")
    if cpu is not None:
        mode = cpu.get("mode", "custom")
        # libvirt puts the model that it found in the place of host-model while the VM runs.
        model = (cpu.findtext("model") or "").strip()
        why.chose("cpu", model or mode, _CPU.get(mode, "as libvirt has it"))
    pins = [f"{p.get('vcpu')}->{p.get('cpuset')}" for p in root.iterfind("cputune/vcpupin")]
    rest = root.find("cputune/emulatorpin")
    if pins:
        pins += [f"rest->{rest.get('cpuset')}"] if rest is not None else []
        why.chose("pinning", " ".join(pins), "these vCPUs run on these CPUs of the host, and on no others")
    else:
        why.chose("pinning", "none", "the host's scheduler moves vCPUs to whatever CPU is idle")


def _memory(root: ET.Element, kind: str, facts: MachineFacts, why: Reasons) -> None:
    amount = (root.findtext("memory") or "").strip()
    if amount.isdecimal():
        why.chose("memory", Bytes(int(amount) * 1024), "of the guest")
    if kind == "kvm":
        name = {"Intel": "EPT", "AMD": "NPT"}.get(facts.vendor, "nested")
        match facts.paging:
            case "nested":
                why.chose("memory.paging", name, "the CPU walks both page tables", expected=figures.NESTED)
            case "shadow":
                why.chose("memory.paging", "shadow", "KVM keeps a shadow of each table", expected=figures.SHADOW)
            case _:
                why.chose("memory.paging", "unknown", "the host's own files could not be read")
    elif kind == "qemu":
        why.chose("memory.paging", "software", "TCG translates addresses itself")
    elif (board := root.find("os/type")) is not None and (paging := xen.PAGING.get(board.get("machine", ""))):
        why.chose("memory.paging", *paging)
    backing = root.find("memoryBacking")
    huge = backing.find("hugepages") if backing is not None else None
    if huge is not None:
        pages = [str(Bytes.parse(f"{p.get('size')}{p.get('unit', 'KiB')}")) for p in huge.iterfind("page")]
        why.chose("hugepages", ", ".join(pages) or "the host's default size", "fewer TLB misses; never swapped")
    elif kind in ("kvm", "qemu"):
        mode = f"transparent huge pages: {facts.thp}" if facts.thp else "the kernel may merge them"
        why.chose("hugepages", "none", f"ordinary pages; {mode}")
    if backing is not None and backing.find("locked") is not None:
        why.chose("locked", "yes", "never swapped")
    node = root.find("numatune/memory")
    if node is not None:
        why.chose("numa", node.get("nodeset") or "auto", f"memory of these nodes ({node.get('mode', 'strict')})")
    balloon = root.find("devices/memballoon")
    model = balloon.get("model", "none") if balloon is not None else "none"
    reporting = balloon is not None and balloon.get("freePageReporting") == "on"
    text = "the guest can give memory back" + (", and reports what is free by itself" if reporting else "")
    why.chose("balloon", model, text if model != "none" else "the guest keeps what it has")


def _disk(disk: ET.Element, subject: str, why: Reasons) -> None:
    target, driver, source = (disk.find(t) for t in ("target", "driver", "source"))
    bus = target.get("bus", "") if target is not None else ""
    where = next((v for k in ("file", "dev", "volume", "name") if source is not None and (v := source.get(k))), "-")
    kind = {"block": "a block device of the host", "network": "over the network", "file": "a file of the host"}
    device = target.get("dev", "") if target is not None else ""
    why.chose(subject, f"{device} {where}", kind.get(disk.get("type", ""), f"a {disk.get('type')}"))
    why.chose(f"{subject}.bus", bus, _BUS.get(bus, "as libvirt has it"), expected=figures.DEVICES)
    if driver is None:
        return
    cache = ", ".join(v for k in ("cache", "io") if (v := driver.get(k)))
    if cache:
        why.chose(f"{subject}.cache", cache, "QEMU's cache mode and way of asynchronous I/O")
    if thread := driver.get("iothread"):
        why.chose(f"{subject}.iothread", thread, "a thread of its own: requests do not wait for QEMU's main loop")
    if queues := driver.get("queues"):
        why.chose(f"{subject}.queues", queues, "virtio queues, each with its interrupt")


def _nic(nic: ET.Element, subject: str, kind: str, facts: MachineFacts, why: Reasons) -> None:
    source, model, driver = (nic.find(t) for t in ("source", "model", "driver"))
    way = nic.get("type", "")
    if way == "hostdev":
        shown = _address(nic)
        why.chose(
            subject, f"sriov {shown}", "a function of the host's card that the guest drives", expected=figures.SRIOV
        )
        return
    name = next((v for k in ("network", "bridge", "dev") if source is not None and (v := source.get(k))), "")
    why.chose(subject, f"{way} {name}".strip(), "what it is connected to")
    card = model.get("type", "") if model is not None else "virtio"
    virtio = card.startswith("virtio")
    reason = "para-virtual: packets travel in shared memory" if virtio else "emulated"
    why.chose(f"{subject}.model", card, xen.NIC if card == xen.NETFRONT else reason, expected=figures.DEVICES)
    if not virtio:
        return
    backend = driver.get("name") if driver is not None else None
    tap = way not in ("user", "vhostuser")
    if tap and kind == "kvm" and (backend == "vhost" or (backend is None and facts.vhost_net)):
        why.chose(f"{subject}.vhost", "on", "a thread of the host's kernel carries the packets", expected=figures.VHOST)
    elif backend == "qemu" or not tap or kind != "kvm" or facts.vhost_net is False:
        why.chose(f"{subject}.vhost", "off", "QEMU carries the packets itself", expected=figures.VHOST)
    queues = driver.get("queues") if driver is not None else None
    why.chose(f"{subject}.queues", queues or "1", "pairs of queues, each with its interrupts")


def _device(device: ET.Element, subject: str, why: Reasons) -> None:
    if device.get("type") != "pci":
        why.chose(subject, device.get("type", "?"), "a device of the host, handed to the guest")
        return
    why.chose(subject, f"passthrough {_address(device)}", "the guest drives it itself", expected=figures.EXITLESS)


def _address(device: ET.Element) -> str:
    element = device.find("source/address")
    return (address_of(element) if element is not None else None) or "?"


def _helpers(root: ET.Element, kind: str, why: Reasons) -> None:
    if kind != "kvm":
        if kind != "xen":
            why.chose("helpers", "none", "para-virtual helpers are KVM's")
        return
    clocks = [t.get("name", "") for t in root.iterfind("clock/timer") if t.get("present") == "yes"]
    if clocks:
        why.chose("helpers.clock", ", ".join(clocks), "time is read from a shared page")
    for name in _on(root.find("features/kvm")):
        why.chose("helpers.kvm", name, _KVM_HELPERS.get(name, "a helper of KVM"))
    lock = root.find("features/pvspinlock")
    if lock is not None:
        on = lock.get("state", "on") == "on"
        text = "a vCPU that waits for a lock sleeps, and is woken by who frees it" if on else "plain spinlocks"
        why.chose("helpers.locks", "PV spinlocks" if on else "plain", text, expected=figures.PV_LOCKS)
    for name in _on(root.find("features/hyperv")):
        why.chose("helpers.hyperv", name, HYPERV.get(name, "an enlightenment of Hyper-V"))


def _on(parent: ET.Element | None) -> Iterator[str]:
    return (e.tag for e in (parent if parent is not None else ()) if e.get("state") == "on")
