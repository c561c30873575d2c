"""The road of a NIC's packets: emulated card, virtio with or without vhost, a virtual function, a whole device."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from vmkit.errors import NotFoundError, SpecError, UnsupportedError
from vmkit.host import figures
from vmkit.plan import Rejected
from vmkit.vm import forward
from vmkit.vm.choices import xen
from vmkit.vm.choices.reasons import ASKED, Reasons
from vmkit.vm.design import NicDesign
from vmkit.vm.facts import HostFacts
from vmkit.vm.families import Defaults
from vmkit.vm.spec_parts import NicIo, NicModel, NicSpec, Vhost

if TYPE_CHECKING:
    from vmkit.vm.spec import VmSpec

MAX_AUTO_QUEUES: Final = 8
"""Queue pairs that are taken without being asked for: each costs a kernel thread on the host, and more than the
host's own NIC has queues gain nothing."""
_SRIOV = Rejected("sriov", "the VM would be tied to this host's card; io: sriov asks for it")
_MODELS: Final = {
    NicModel.VIRTIO: "para-virtual: packets travel in shared memory",
    NicModel.E1000: "emulated Intel 82540EM, for guests without virtio: nearly every system since 2002 has its driver",
    NicModel.E1000E: "emulated Intel 82574L, PCI Express, for guests without virtio",
    NicModel.RTL8139: "emulated Realtek, for the oldest guests",
}


def nics(
    spec: VmSpec, defaults: Defaults, facts: HostFacts, machine: str | None, *, kvm: bool, why: Reasons
) -> tuple[NicDesign, ...]:
    """Every network card; a failover pair counts as two.

    Raises:
        NotFoundError: a network is missing. UnsupportedError: vhost was asked for, and is not there.
        SpecError: a field does not go with the network.
    """
    found: list[NicDesign] = []
    for i, nic in enumerate(spec.nics):
        match nic.io:
            case NicIo.PASSTHROUGH:
                found.append(_whole(nic, i, why))
            case NicIo.SRIOV:
                found += _virtual_function(spec, nic, i, facts, kvm=kvm, why=why)
            case _:
                if made := _own(spec, nic, i, defaults, facts, machine, kvm=kvm, why=why):
                    found.append(made)
    return tuple(found)


def _whole(nic: NicSpec, i: int, why: Reasons) -> NicDesign:
    why.chose(
        f"nics[{i}]",
        f"passthrough {nic.device}",
        f"{ASKED}: the guest drives the card itself",
        rejected=(
            Rejected("virtio", "the host would carry each packet"),
            Rejected("live migration", "the device's state cannot be moved"),
        ),
        expected=figures.EXITLESS,
    )
    return NicDesign("pci", nic.device or "", "", nic.mac, i)


def _virtual_function(
    spec: VmSpec, nic: NicSpec, i: int, facts: HostFacts, *, kvm: bool, why: Reasons
) -> list[NicDesign]:
    why.chose(
        f"nics[{i}]",
        f"sriov {nic.pf or 'any PF'}" + (f" VLAN {nic.vlan}" if nic.vlan else ""),
        f"{ASKED}: a virtual function of a card, driven by the guest itself",
        rejected=(
            Rejected("virtio", "the host would carry each packet"),
            Rejected("passthrough", "would take the whole card from everyone else"),
        ),
        expected=figures.SRIOV,
    )
    mac = nic.mac or _mac(spec.name, i)
    function = NicDesign("vf", nic.pf or "", "", mac, i, vlan=nic.vlan, limits=nic.limits)
    if not nic.failover:
        return [function]
    kind, source, shown, reason = _network(nic, i, facts)
    if kind == "user":
        raise SpecError(
            f"no network for the virtio NIC of the failover pair: {reason}",
            path=f"nics[{i}].network",
            hint="name one that reaches the same network as the PF",
        )
    why.chose(
        f"nics[{i}].failover",
        f"virtio on {shown}",
        f"{ASKED}: carries on while the virtual function is unplugged for a migration; same MAC address {mac}",
        rejected=(Rejected("none", "a guest with an assigned device alone does not migrate"),),
    )
    standby = NicDesign(
        kind,
        source,
        NicModel.VIRTIO.value,
        mac,
        i,
        vhost=_vhost(nic, i, kind, facts, kvm=kvm, why=why),
        team="persistent",
    )
    return [standby, NicDesign("vf", nic.pf or "", "", mac, i, vlan=nic.vlan, limits=nic.limits, team="transient")]


def _own(
    spec: VmSpec,
    nic: NicSpec,
    i: int,
    defaults: Defaults,
    facts: HostFacts,
    machine: str | None,
    *,
    kvm: bool,
    why: Reasons,
) -> NicDesign | None:
    kind, source, shown, reason = _network(nic, i, facts)
    why.chose(f"nics[{i}]", shown, reason)
    if kind == "none":
        return None
    if facts.driver == "Xen":
        card = xen.nic_model(nic, i, kind, machine, why)
        return NicDesign(kind, source, card, nic.mac.lower() if nic.mac else None, i, limits=nic.limits)
    model = _model(nic, i, defaults, machine, why)
    mac = nic.mac.lower() if nic.mac else None
    if nic.forward:
        return _forwarding(nic, i, model, mac or _mac(spec.name, i), facts, why)
    if model is not NicModel.VIRTIO:
        return NicDesign(kind, source, model.value, mac, i, limits=nic.limits)
    vhost = _vhost(nic, i, kind, facts, kvm=kvm, why=why)
    queues = _queues(spec, nic, i, kind, facts, vhost, why)
    return NicDesign(kind, source, model.value, mac, i, vhost, queues, nic.limits)


def _forwarding(nic: NicSpec, i: int, model: NicModel, mac: str, facts: HostFacts, why: Reasons) -> NicDesign:
    if facts.driver != "QEMU":
        raise UnsupportedError(f"nics[{i}].forward: only QEMU forwards ports", hint="leave it out")
    rules = tuple(forward.parse(text) for text in nic.forward)
    for rule in rules:
        reached = "the host alone" if rule.address == "127.0.0.1" else f"whoever reaches {rule.address}"
        way = f"{rule.protocol} {rule.address}:{rule.host_port} to {rule.guest_port}"
        why.chose(f"nics[{i}].forward", way, f"{ASKED}: for {reached}")
    return NicDesign("user", "", model.value, mac, i, forward=rules)


def _network(nic: NicSpec, i: int, facts: HostFacts) -> tuple[str, str, str, str]:
    """Kind and source of the connection, how it is shown, and why it is that one."""
    network, reason = nic.network, ASKED
    if network == "auto" and nic.forward:
        network, reason = "user", "it forwards ports: QEMU's own NAT does that, without privileges"
    elif network == "auto":
        network, reason = _auto_network(facts)
    if network in ("none", "user"):
        return network, "", network, reason
    if network.startswith("bridge:"):
        return "bridge", network.removeprefix("bridge:"), network, reason
    if network not in facts.networks:
        there = ", ".join(sorted(facts.networks)) or "none"
        raise NotFoundError(
            f"nics[{i}].network: no network '{network}' on {facts.uri}",
            hint=f"there is: {there}; 'user' needs none",
        )
    return "network", network, network, reason


def _auto_network(facts: HostFacts) -> tuple[str, str]:
    if facts.driver == "TEST" and "default" in facts.networks:
        return "default", "libvirt's default network"
    active = sorted(n for n, on in facts.networks.items() if on)
    if "default" in active:
        return "default", "libvirt's default network is active"
    if len(active) == 1:
        return active[0], "the only active network of this host"
    reason = (
        f"no network 'default' is active, and there are {len(active)} others"
        if active
        else "no libvirt network is active"
    )
    return "user", f"{reason}: QEMU's own NAT, which reaches out but cannot be reached"


def _model(nic: NicSpec, i: int, defaults: Defaults, machine: str | None, why: Reasons) -> NicModel:
    road = nic.io if nic.io is not NicIo.AUTO else defaults.nic
    express = "q35" in (machine or "") or machine == "virt"
    emulated = NicModel.E1000E if express and nic.io is NicIo.EMULATED else NicModel.E1000
    model = nic.model or (emulated if road is NicIo.EMULATED else NicModel.VIRTIO)
    virtio = model is NicModel.VIRTIO
    rejected = (
        (Rejected("emulated", "several register accesses, each an exit, for every packet"), _SRIOV)
        if virtio
        else (Rejected("virtio", "the guest would need its driver"),)
    )
    given = nic.model is not None or nic.io is not NicIo.AUTO
    reason = f"{_MODELS[model]}; {ASKED}" if given else _MODELS[model]
    why.chose(f"nics[{i}].model", model.value, reason, rejected=rejected, expected=figures.DEVICES)
    return model


def _vhost(nic: NicSpec, i: int, kind: str, facts: HostFacts, *, kvm: bool, why: Reasons) -> bool | None:
    """Whether vhost carries the packets; None leaves it to libvirt, which takes it where it can."""
    if facts.driver != "QEMU":
        return None
    subject = f"nics[{i}].vhost"
    obstacle = hint = ""
    if kind == "user":
        obstacle, hint = "QEMU's own NAT has no tap device for it", "a libvirt network or bridge:NAME has"
    elif not kvm:
        obstacle, hint = "libvirt has it for KVM guests only", "leave vhost: auto"
    elif facts.vhost_net is False:
        obstacle, hint = "the host has no /dev/vhost-net", "modprobe vhost_net on that host"
    match nic.vhost:
        case Vhost.ON if obstacle:
            raise UnsupportedError(f"{subject}: {obstacle}", hint=hint)
        case Vhost.OFF:
            why.chose(subject, "off", ASKED, expected=figures.VHOST)
            return False
        case Vhost.AUTO if obstacle:
            why.chose(subject, "off", "QEMU carries the packets itself", rejected=(Rejected("on", obstacle),))
            # With TCG and user networking libvirt does without by itself.
            return False if kvm and kind != "user" else None
        case Vhost.AUTO if facts.vhost_net is None:
            why.chose(subject, "as libvirt finds it", "whether the host has /dev/vhost-net is not known here")
            return None
    why.chose(
        subject,
        "on",
        ASKED if nic.vhost is Vhost.ON else "a thread of the host's kernel carries the packets",
        rejected=(Rejected("off", "each packet would wait for the QEMU process"),),
        expected=figures.VHOST,
    )
    return True


def _queues(
    spec: VmSpec, nic: NicSpec, i: int, kind: str, facts: HostFacts, vhost: bool | None, why: Reasons
) -> int | None:
    subject = f"nics[{i}].queues"
    if nic.queues is not None:
        if kind == "user" and nic.queues > 1:
            raise SpecError("QEMU's own NAT has one", path=subject, hint="a libvirt network or bridge:NAME has more")
        why.chose(subject, nic.queues, ASKED)
        return nic.queues if nic.queues > 1 else None
    if spec.vcpus == 1 or facts.driver != "QEMU":
        return None
    if not vhost:
        many = Rejected(str(min(spec.vcpus, MAX_AUTO_QUEUES)), "without vhost one thread serves them all")
        why.chose(subject, 1, "more gain nothing here", rejected=(many,))
        return None
    queues = min(spec.vcpus, MAX_AUTO_QUEUES)
    capped = f", at most {MAX_AUTO_QUEUES}" if spec.vcpus > MAX_AUTO_QUEUES else ""
    why.chose(
        subject,
        queues,
        f"a pair for each vCPU{capped}: flows are spread over vCPUs and vhost threads",
        rejected=(Rejected("1", "one vCPU and one vhost thread would carry all packets"),),
    )
    return queues


def _mac(name: str, i: int) -> str:
    """A MAC address that stays the same for this NIC of a VM of this name, below QEMU's prefix 52:54:00."""
    digest = hashlib.sha256(f"{name}/{i}".encode()).digest()
    return "52:54:00:" + ":".join(f"{b:02x}" for b in digest[:3])
