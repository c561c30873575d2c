"""What is remembered of lent functions, the XML that assigns them, and what a VM's spec asks for."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from tests.unit.device_data import VF0, VF1
from vmkit.device import persist
from vmkit.device.memory import Lendings, VfMemory, read_element, to_element
from vmkit.device.plan import Wish
from vmkit.device.usage import addresses_in
from vmkit.device.xml import assigned, hostdev, interface, moved
from vmkit.system.vf import VfSettings
from vmkit.vm.design import NicDesign
from vmkit.vm.devices import lendings_for, wishes_of
from vmkit.vm.spec import parse

MAC = "52:54:00:00:00:01"
SETTINGS = VfSettings(MAC, 100, 0, 200, spoofcheck=True, trust=False)


class FakeDesign:
    """The parts of a design that matter here."""

    nics = (
        NicDesign("network", "default", "virtio", None, 0),
        NicDesign("network", "default", "virtio", MAC, 1, team="persistent"),
        NicDesign("vf", "eth2", "", MAC, 1, vlan=100, team="transient"),
        NicDesign("pci", "0000:05:00.0", "", None, 2),
    )
    devices = ("0000:06:00.0",)


def wishes() -> tuple[Wish, ...]:
    spec = parse(
        {
            "name": "web1",
            "nics": [
                {},
                {"io": "sriov", "pf": "eth2", "mac": MAC, "vlan": 100, "max_tx_rate": 200, "failover": True},
                {"io": "passthrough", "device": "0000:05:00.0"},
            ],
            "devices": [{"address": "0000:06:00.0"}],
        }
    )
    return wishes_of(spec, FakeDesign())  # type: ignore[arg-type]


def test_a_spec_asks_for_functions() -> None:
    assert wishes() == (
        Wish("nics[1]", pf="eth2", settings=SETTINGS),
        Wish("nics[2].device", address="0000:05:00.0"),
        Wish("devices[0]", address="0000:06:00.0"),
    )


def test_what_is_remembered_is_read_back() -> None:
    lendings = lendings_for(wishes())
    assert lendings.vfs.keys() == {MAC}
    assert lendings.functions == ("0000:05:00.0", "0000:06:00.0")
    again = read_element(to_element(lendings))
    assert again.functions == lendings.functions
    assert again.vfs[MAC] == VfMemory("eth2", VfSettings(MAC, 100, None, 200, spoofcheck=True, trust=False))
    assert not again.without(mac=MAC).without(address="0000:05:00.0").without(address="0000:06:00.0")
    assert again.with_function("0000:07:00.0").functions[-1] == "0000:07:00.0"


def test_foreign_metadata_is_nothing() -> None:
    for text in (None, "", "<devices/>", "<devices>[]</devices>", '<devices>{"vfs": 1, "functions": 2}</devices>'):
        assert read_element(text) == Lendings()


def test_xml_that_assigns_functions() -> None:
    card = interface(VF0, MAC, 100)
    assert '<tag id="100" />' in card
    assert "vlan" not in interface(VF0, MAC, None)
    xml = f"<domain><devices>{card}{hostdev('0000:05:00.0')}<interface type='user'/></devices></domain>"
    assert [(a.address, a.mac) for a in assigned(xml)] == [(VF0, MAC), ("0000:05:00.0", None)]
    assert addresses_in(moved(xml, {MAC: VF1})) == {VF1, "0000:05:00.0"}
    assert addresses_in(moved(xml, {})) == {VF0, "0000:05:00.0"}
    managed = [e.get("managed") for e in ET.fromstring(xml).iterfind("devices/*") if e.get("type") != "user"]
    assert managed == ["yes", "yes"]


def test_unit_that_keeps_the_number_is_read_back() -> None:
    text = persist.unit("0000:01:00.0", 4)
    line = next(s for s in text.splitlines() if "sriov_numvfs'" in s)
    found = persist._LINE.search(f"/etc/systemd/system/vmkit-sriov-0000_01_00.0.service:{line}")
    assert found is not None
    assert found.groups() == ("0000_01_00.0", "4")
