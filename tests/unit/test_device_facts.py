"""Reading a captured host's PCI functions, and telling who uses each."""

from __future__ import annotations

import pytest

from tests.unit.device_data import (
    CAPTURED,
    LPC,
    PF,
    ROOT_DISK,
    SATA,
    SMBUS,
    SSH_NIC,
    VF0,
    VF1,
    captured,
    claim_on,
    with_claims,
)
from vmkit.device.claim import Process, read_claim, to_text
from vmkit.device.facts import Holder, parse
from vmkit.device.usage import Guest, Kind, addresses_in, usage_of
from vmkit.errors import EffectError
from vmkit.system.vf import VfSettings

WEB1 = Guest("web1", "uuid-1", True, frozenset({VF0}), frozenset({VF0}))


def dead(_process: Process) -> bool | None:
    return False


def test_functions_of_a_captured_host() -> None:
    facts = captured()
    pf, vf = facts.functions[PF], facts.functions[VF1]
    assert (pf.id, pf.kind, pf.driver, pf.total_vfs, pf.vfs, pf.nets) == (
        *("8086:10c9", "network", "igb", 7),
        (VF0, VF1),
        ("eth2",),
    )
    assert pf.name == "Intel Corporation 82576 Gigabit Network Connection"
    assert (vf.pf, vf.number, vf.driver, vf.group, vf.override, vf.numa) == (PF, 1, "igbvf", "9", None, None)
    assert [f.address for f in facts.group("6")] == [LPC, SATA, SMBUS]
    assert [f.address for f in facts.physical()] == [PF]
    assert facts.functions["0000:00:04.0"].stays
    assert not facts.functions[LPC].stays  # an ISA bridge has registers of its own
    assert "eth2" in facts.up
    assert "eth3" not in facts.up


def test_what_the_host_needs() -> None:
    facts = captured()
    assert facts.functions[ROOT_DISK].needed == ("mounted at /",)
    assert facts.functions[SSH_NIC].needed[:2] == ("your ssh session by eth0", "default route by eth0")
    assert facts.functions[VF0].needed == ()


def test_what_lies_between_is_followed() -> None:
    text = CAPTURED.read_text()
    text = text.replace("@lower", "@lower\nbond0/lower_eth1 ../eth1\nbr0/lower_bond0 ../bond0\neth3/master ../br1")
    text = text.replace("@routes", "@routes\ndefault via 192.0.2.1 dev br0")
    text = text.replace(
        "@mounts", f"@mounts\nswap /sys/devices/pci0000:00/{SATA}/ata1/host0/target0:0:0/0:0:0:0/block/sda/sda2"
    )
    facts = parse(text)
    assert facts.functions["0000:00:05.0"].needed == ("default route by br0", "eth1 is part of bond0")
    assert facts.functions[VF0].needed == ("eth3 is part of br1",)
    assert facts.functions[SATA].needed == ("swap",)


def test_a_capture_that_breaks_off_is_not_believed() -> None:
    with pytest.raises(EffectError, match="not complete"):
        parse(CAPTURED.read_text().partition("@vfio")[0])


def test_claims_and_holders_are_read_back() -> None:
    claim = claim_on(pf=PF, net="eth2", number=0, before=VfSettings("00:00:00:00:00:00", 0, 0, 0, True, None))
    text = CAPTURED.read_text().replace("@claims", f"@claims\n/run/vmkit/devices/{VF0}.json:{to_text(claim)}")
    text = text.replace(
        "@vfio", "@vfio\n/proc/812 /dev/vfio/8 qemu-system-x86\n/proc/812 /dev/vfio/vfio qemu-system-x86"
    )
    facts = parse(text)
    assert facts.claims == {VF0: claim}
    assert facts.holders == {"8": (Holder(812, "qemu-system-x86"),)}
    assert read_claim("{") is None
    assert read_claim('{"address": "x"}') is None


def test_who_uses_a_function() -> None:
    facts = captured()
    vf = facts.functions[VF0]
    assert usage_of(vf, facts, [], dead).kind is Kind.FREE
    assert usage_of(vf, facts, [WEB1], dead).text == "web1"
    off = Guest("web1", "uuid-1", False, frozenset(), frozenset({VF0}))
    assert usage_of(vf, facts, [off], dead).kind is Kind.FREE
    assert usage_of(facts.functions[ROOT_DISK], facts, [], dead).text == "host: mounted at /"
    hidden = captured().functions[VF0]
    assert hidden.nets == ("eth3",)


@pytest.mark.parametrize(
    ("lives", "kind", "text"),
    [
        (True, Kind.PENDING, "vmkit create web1 is at it (pid 4000001)"),
        (None, Kind.PENDING, "vmkit create web1 on elsewhen (pid 4000001), since 2026-01-01T00:00:00+00:00"),
        (False, Kind.ORPHAN, "orphan: vmkit create web1 was cut off"),
    ],
)
def test_claims_tell_what_was_left_behind(lives: bool | None, kind: Kind, text: str) -> None:
    facts = with_claims(captured(), claim_on())
    use = usage_of(facts.functions[VF0], facts, [], lambda _: lives)
    assert (use.kind, use.text, use.who) == (kind, text, "web1")


def test_a_vm_that_ended_left_its_function_behind() -> None:
    facts = with_claims(captured(), claim_on(lent=True))
    vf = facts.functions[VF0]
    assert usage_of(vf, facts, [WEB1], dead).kind is Kind.VM
    off = Guest("web1", "uuid-1", False, frozenset(), frozenset({VF0}))
    assert usage_of(vf, facts, [off], dead).text == "orphan: web1 is shut off"
    assert usage_of(vf, facts, [], dead).text == "orphan: web1 is gone"


def test_vfio_without_a_vm() -> None:
    text = CAPTURED.read_text().replace(f"{VF0}/driver ../../../../bus/pci/drivers/igbvf", f"{VF0}/driver ../vfio-pci")
    facts = parse(text)
    assert usage_of(facts.functions[VF0], facts, [], dead).kind is Kind.ORPHAN
    facts = parse(text.replace("@vfio", "@vfio\n/proc/812 /dev/vfio/8 dpdk app"))
    use = usage_of(facts.functions[VF0], facts, [], dead)
    assert (use.kind, use.text) == (Kind.PROCESS, "dpdk app (pid 812)")


def test_an_interface_in_another_namespace_is_in_use() -> None:
    text = "\n".join(s for s in CAPTURED.read_text().splitlines() if not s.startswith("eth3 "))
    facts = parse(text)
    assert usage_of(facts.functions[VF0], facts, [], dead).kind is Kind.HOST


def test_functions_in_a_domains_xml() -> None:
    source = "<source><address domain='0x0000' bus='0x01' slot='0x10' function='0x2'/></source>"
    xml = f"""<domain><devices>
      <hostdev mode='subsystem' type='pci'>{source}</hostdev>
      <interface type='hostdev'>
        <source><address type='pci' domain='0' bus='0x1' slot='0x10' function='0'/></source>
      </interface>
      <interface type='network'><source network='default'/><address type='pci' bus='0x03'/></interface>
      <hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>
    </devices></domain>"""
    assert addresses_in(xml) == {VF0, VF1}
