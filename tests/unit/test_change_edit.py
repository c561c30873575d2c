"""Definitions with changes made to them: what nobody asked for stays, and libvirt's schema holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.unit.test_choices import made
from tests.unit.test_choices_kvm import SERVER
from tests.unit.test_domain_xml import valid
from tests.unit.test_golden_xml import xml_of
from vmkit.values import Bytes
from vmkit.vm.change.edit import Parts, edited, pluggable, renamed, rewired
from vmkit.vm.change.model import (
    Act,
    AddDisk,
    AddNic,
    Change,
    Effect,
    MoveNic,
    RebuildDisk,
    Redesign,
    RemoveDisk,
    RemoveNic,
    ReplaceNic,
    SetSize,
)
from vmkit.vm.change.shape import next_device, read
from vmkit.vm.xml_ports import free_ports
from vmkit.vm.xml_size import Size, read_size

MAC = "52:54:00:00:00:01"
FOREIGN = "<watchdog model='i6300esb' action='none'/>"


def domain(**spec: Any) -> str:
    """A definition with something in it that another tool put there."""
    text = xml_of(made(SERVER, **{"disks": [{}, {"size": "1G"}], "nics": [{"mac": MAC}], **spec})[0])
    return text.replace("<devices>", f"<devices>{FOREIGN}").replace("<name>", "<title>mine</title><name>")


def change(text: str, *acts: Act, **parts: Any) -> ET.Element:
    changes = [Change("x", "", "", Effect.LIVE, "", act) for act in acts]
    after = edited(text, changes, Parts(**parts), "remembered")
    valid(after, "domain.rng")
    root = ET.fromstring(after)
    assert root.find("devices/watchdog") is not None
    assert root.findtext("title") == "mine"
    assert root.findtext("metadata/*") == "remembered"
    return root


def disks(root: ET.Element) -> list[tuple[str | None, str | None]]:
    return [(t.get("dev"), t.get("bus")) for t in root.iterfind("devices/disk/target")]


def test_size() -> None:
    root = change(domain(), SetSize(Size(3, 6, Bytes(1 << 30), Bytes(4 << 30))))
    assert read_size(root) == Size(3, 6, Bytes(1 << 30), Bytes(4 << 30))
    cell = root.find("cpu/numa/cell")
    assert cell is not None
    assert (cell.get("cpus"), cell.get("memory")) == ("0-5", str(1 << 20))
    back = change(ET.tostring(root, encoding="unicode"), SetSize(Size(1, 1, Bytes(1 << 28), None)))
    assert back.find("cpu/numa") is None
    assert back.find("maxMemory") is None
    assert back.find("cpu") is not None


def test_disks_and_nics_come_and_go() -> None:
    disk = "<disk type='file' device='disk'><source file='/pool/n'/><target dev='vdc' bus='virtio'/></disk>"
    nic = "<interface type='user'><mac address='52:54:00:00:00:02'/><model type='virtio'/></interface>"
    root = change(
        domain(),
        AddDisk(2, "vdc", live=True),
        RemoveDisk("vdb", "/pool/web1-1.qcow2", live=True),
        AddNic(1, "52:54:00:00:00:02", live=True),
        disks={2: disk},
        nics={1: nic},
    )
    assert disks(root) == [("vda", "virtio"), ("vdc", "virtio")]
    assert len(root.findall("devices/interface")) == 2
    assert free_ports(root) == 4
    gone = change(domain(), RemoveNic(MAC, live=False))
    assert gone.find("devices/interface") is None
    assert change(domain(), RemoveNic("52:54:00:00:00:99", live=False)).find("devices/interface") is not None


def test_a_nic_moves_or_is_replaced() -> None:
    bridge = f"<interface type='bridge'><mac address='{MAC}'/><source bridge='br1'/><model type='e1000e'/></interface>"
    moved = change(domain(), MoveNic(0, MAC), nics={0: bridge}).find("devices/interface")
    assert moved is not None
    assert (moved.get("type"), moved.find("source").attrib) == ("bridge", {"bridge": "br1"})  # type: ignore[union-attr]
    assert moved.find("model").get("type") == "virtio"  # type: ignore[union-attr]
    replaced = change(domain(), ReplaceNic(0, MAC, MAC), nics={0: bridge}).find("devices/interface/model")
    assert replaced is not None
    assert replaced.get("type") == "e1000e"
    running = f"<interface type='bridge'><mac address='{MAC}'/><source network='a' bridge='virbr0'/></interface>"
    assert '<source bridge="br1"' in rewired(running, bridge)


def test_a_disk_on_another_bus_keeps_its_file() -> None:
    wanted = "<disk type='file'><driver name='qemu' type='qcow2' queues='2'/><target dev='sda' bus='scsi'/></disk>"
    root = change(domain(), RebuildDisk(1, "vdb"), disks={1: wanted})
    assert disks(root) == [("vda", "virtio"), ("sda", "scsi")]
    second = root.findall("devices/disk")[1]
    assert second.find("source").get("file") == "/pool/web1-1.qcow2"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"cpu": "host"}, "cpu"),
        ({"guest": "windows"}, "features/hyperv"),
        ({"family": "compute", "vcpus": 2}, "cputune/vcpupin"),
        ({"hugepages": "2M"}, "memoryBacking/hugepages"),
        ({"qemu_args": ["-device", "edu"]}, "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"),
        ({"display": "vnc"}, "devices/graphics"),
        ({"cmdline": "x=1"}, "os/cmdline"),
        ({"balloon": False}, "devices/memballoon[@model='none']"),
        ({"family": "network", "vcpus": 2}, "iothreads"),
    ],
)
def test_what_is_decided_anew_and_back_again(spec: dict[str, Any], path: str) -> None:
    common = {"disks": [{}, {"size": "1G"}], "nics": [{"mac": MAC}]}
    old, new = xml_of(made(SERVER, **common)[0]), xml_of(made(SERVER, **{**common, **spec})[0])
    there = {"devices": ("vda", "vdb"), "macs": (MAC,)}
    root = change(domain(), Redesign(), before=old, after=new, **there)
    wanted = ET.fromstring(new).find(path)
    found = root.find(path)
    assert found is not None
    assert wanted is not None
    assert ET.canonicalize(ET.tostring(found), strip_text=True) == ET.canonicalize(ET.tostring(wanted), strip_text=True)
    back = change(ET.tostring(root, encoding="unicode"), Redesign(), before=new, after=old, **there)
    for tag in ("cpu", "features", "cputune", "memoryBacking", "os", "devices/memballoon", "devices/graphics"):
        a, b = back.find(tag), ET.fromstring(old).find(tag)
        assert (a is None) == (b is None), tag


def test_another_name() -> None:
    text = renamed(domain(), "web1", "web2", "/pool/web2-console.log", "m")
    root = ET.fromstring(text)
    assert "vmkit.name=web2" in (root.findtext("os/cmdline") or "")
    assert root.find("devices/serial/log").get("file") == "/pool/web2-console.log"  # type: ignore[union-attr]


def test_what_ran_can_be_plugged_in_again() -> None:
    nic = pluggable(
        f"<interface type='bridge'><mac address='{MAC}'/><source network='a' portid='1' bridge='b'/>"
        "<target dev='vnet0'/><alias name='net0'/></interface>"
    )
    assert nic == f'<interface type="bridge"><mac address="{MAC}" /><source network="a" /></interface>'


def test_names_of_disks_go_on_behind_the_last() -> None:
    assert next_device("vd", frozenset()) == "vda"
    assert next_device("vd", frozenset({"vda", "vdc", "sdx"})) == "vdd"
    assert next_device("vd", frozenset({"vdz"})) == "vdaa"


def test_shape_reads_what_runs() -> None:
    text = domain(vcpus=2).replace(
        "<devices>", "<devices><memory model='dimm'><target><size unit='MiB'>128</size></target></memory>"
    )
    shape = read(text)
    assert [d.device for d in shape.disks] == ["vda", "vdb"]
    assert [n.mac for n in shape.nics] == [MAC]
    assert [d.size for d in shape.dimms] == [128 << 20]
    assert shape.kernel
    assert replace(shape, tied=False).size.vcpus == 2
