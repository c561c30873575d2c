"""Bringing a VM back to what it was before a change: what is so is looked at, and only what differs is set."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from vmkit.errors import VmkitError
from vmkit.hypervisor import alter, hotplug, tuning
from vmkit.hypervisor.migration import adopt
from vmkit.image.place import POOL
from vmkit.vm import limiting
from vmkit.vm.change import plug
from vmkit.vm.change.edit import pluggable
from vmkit.vm.change.look import element_of
from vmkit.vm.change.shape import Shape
from vmkit.vm.metadata import NAMESPACE

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain


@dataclass(frozen=True, slots=True)
class Back:
    """What was set back, and what could not be, in words."""

    done: tuple[str, ...]
    failed: tuple[str, ...]


def snapshot(domain: Domain, live: Shape | None) -> dict[str, Any]:
    """All that `restore` needs, as plain JSON."""
    facts = limiting.gather(domain)
    before: dict[str, Any] = {
        "uri": domain.host.uri,
        "uuid": domain.uuid,
        "xml": domain.xml(inactive=True, secure=True),
        "autostart": domain.autostart,
        "live": None,
        "made": [],
    }
    if live is not None:
        before["live"] = {
            "vcpus": live.size.vcpus,
            "disks": {d.device: d.xml for d in live.disks},
            "nics": {n.mac: n.xml for n in live.nics},
            "memory": {plug.slot_of(m.xml): m.xml for m in live.dimms},
            "limits": limiting.plain(facts.live),
            "remembered": _text(alter.metadata(domain, NAMESPACE, inactive=False)),
        }
    return before


def restore(domain: Domain, before: dict[str, Any]) -> Back:
    """Bring it back, part by part; a part that fails does not keep the others from it. Volumes that were made go."""
    done: list[str] = []
    failed: list[str] = []

    @contextlib.contextmanager
    def part(what: str) -> Any:
        try:
            yield
        except VmkitError as e:
            failed.append(f"{what}: {e.message}")

    with part("definition"):
        if _differs(domain.xml(inactive=True, secure=True), before["xml"]):
            adopt(domain.host, before["xml"])
            done.append("definition")
    if before["live"] is not None and domain.state().active:
        _devices(domain, before["live"], done, part)
        _size(domain, before["live"], done, part)
        with part("limits"):
            if limiting.reach(domain, limiting.from_plain(before["live"]["limits"])):
                done.append("limits")
        with part("metadata"):
            now = _text(alter.metadata(domain, NAMESPACE, inactive=False))
            if (then := before["live"]["remembered"]) and now != then:
                tuning.set_element(domain, NAMESPACE, "vmkit", element_of(then), live=True, config=False)
    with part("autostart"):
        if domain.autostart != before["autostart"]:
            domain.set_autostart(before["autostart"])
            done.append("autostart")
    if before["made"]:
        with part("new volumes"):
            in_use = {d.source for d in plug.shape(domain).disks}
            pool = domain.host.pool(POOL)
            gone = [v for v in before["made"] if str(pool.folder / v) not in in_use and pool.delete(v)]
            done += [f"volume {v}" for v in gone]
    return Back(tuple(done), tuple(failed))


def _devices(domain: Domain, live: dict[str, Any], done: list[str], part: Any) -> None:
    """What came goes, then what went comes back: so a NIC that was replaced finds its place free."""
    now = plug.shape(domain)
    for disk in now.disks:
        if disk.device not in live["disks"]:
            with part(f"disk {disk.device}"):
                plug.unplug(domain, f"disk {disk.device}", disk.xml, plug.has_disk(disk.device))
                done.append(f"disk {disk.device}")
    for nic in now.nics:
        then = live["nics"].get(nic.mac)
        if then is None or _model(then) != _model(nic.xml) or _kind(then) not in (_kind(nic.xml), "network", "bridge"):
            with part(f"NIC {nic.mac}"):
                plug.unplug(domain, f"NIC {nic.mac}", nic.xml, plug.has_nic(nic.mac))
                done.append(f"NIC {nic.mac}")
        elif _source(then) != _source(nic.xml):
            with part(f"network of NIC {nic.mac}"):
                alter.update_device(domain, then, live=True, config=False)
                done.append(f"network of NIC {nic.mac}")
    now = plug.shape(domain)
    there = {d.device for d in now.disks} | {n.mac for n in now.nics}
    for name, xml in {**live["disks"], **live["nics"]}.items():
        if name not in there:
            with part(name):
                hotplug.attach(domain, pluggable(xml), live=True, config=False)
                done.append(name)


def _size(domain: Domain, live: dict[str, Any], done: list[str], part: Any) -> None:
    now = plug.shape(domain)
    for dimm in now.dimms:
        if plug.slot_of(dimm.xml) not in live["memory"]:
            with part("memory"):
                plug.unplug(domain, str(dimm.size), dimm.xml, plug.has_memory(dimm.xml))
                done.append(f"{dimm.size} of memory")
    there = {plug.slot_of(m.xml) for m in now.dimms}
    for slot, xml in live["memory"].items():
        if slot not in there:
            with part("memory"):
                hotplug.attach(domain, pluggable(xml), live=True, config=False)
                done.append("memory")
    if now.size.vcpus > live["vcpus"] and now.emulated:
        done.append("vCPUs: those that were added stay until it is shut down, as QEMU could not add them again")
    elif now.size.vcpus != live["vcpus"]:
        with part("vCPUs"):
            plug.set_vcpus(domain, live["vcpus"])
            done.append("vCPUs")


def _text(element: str | None) -> str | None:
    return ET.fromstring(element).text if element else None  # noqa: S314 - libvirt's own answer


def _model(xml: str) -> str | None:
    model = ET.fromstring(xml).find("model")  # noqa: S314 - libvirt's own answer
    return model.get("type") if model is not None else None


def _kind(xml: str) -> str:
    return ET.fromstring(xml).get("type", "")  # noqa: S314 - libvirt's own answer


def _source(xml: str) -> tuple[str | None, str | None]:
    source = ET.fromstring(xml).find("source")  # noqa: S314 - libvirt's own answer
    return (source.get("network"), source.get("bridge")) if source is not None else (None, None)


def _differs(a: str, b: str) -> bool:
    return ET.canonicalize(a, strip_text=True) != ET.canonicalize(b, strip_text=True)
