"""What differs between a VM and its spec, and when each difference takes effect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import SpecError
from vmkit.values import Bytes
from vmkit.vm.change.diff import compare
from vmkit.vm.change.model import (
    AddDisk,
    AddNic,
    Delta,
    Effect,
    GrowDisk,
    MoveNic,
    RemoveDisk,
    RemoveNic,
    ReplaceNic,
    SetSize,
)
from vmkit.vm.change.shape import Dimm, DiskShape, Have, NicShape, Shape
from vmkit.vm.spec import VmSpec, parse
from vmkit.vm.xml_size import Size

MIB = 1 << 20
GIB = 1 << 30
BASE: dict[str, Any] = {
    "name": "a",
    "image": "micro",
    "memory": "512M",
    "max_memory": "2G",
    "disks": [{}, {"size": "1G"}, {"size": "2G"}],
    "nics": [{"network": "lab"}],
}
MAC = "52:54:00:aa:00:01"


def spec(**more: Any) -> VmSpec:
    return parse({**BASE, **more})


def shape(**more: Any) -> Shape:
    given = {
        "size": Size(1, 4, Bytes(512 * MIB), Bytes(2 * GIB)),
        "disks": tuple(DiskShape(f"vd{c}", "virtio", f"/pool/a-{i}.qcow2", f"<{c}/>") for i, c in enumerate("abc")),
        "nics": (NicShape(MAC, "network", "<nic/>"),),
        "targets": frozenset({"vda", "vdb", "vdc", "sda"}),
        "ports": 4,
        "kernel": True,
        **more,
    }
    return Shape(**given)


def vm(*, running: bool = True, old: VmSpec | None = None, live: Shape | None = None, **more: Any) -> Have:
    known = {
        "sizes": {"vda": 64 * MIB, "vdb": GIB, "vdc": 2 * GIB},
        "volumes": ("a-0.qcow2", "a-1.qcow2", "a-2.qcow2"),
        **more,
    }
    made = old or spec()
    there = live or shape()
    return Have("a", "qemu:///x", made, made if running else None, there, there if running else None, **known)


def effects(delta: Delta) -> dict[str, Effect]:
    return {c.path: c.effect for c in delta.changes}


def test_nothing_differs() -> None:
    delta = compare(spec(), vm())
    assert delta.changes == ()
    assert delta.spec == delta.running == spec()
    assert not delta.reboot


@pytest.mark.parametrize(
    ("want", "effect"),
    [
        ({"vcpus": 4}, Effect.LIVE),
        ({"vcpus": 5}, Effect.REBOOT),
        ({"memory": "1G"}, Effect.LIVE),
        ({"memory": "600M"}, Effect.REBOOT),
        ({"memory": "256M"}, Effect.REBOOT),
        ({"memory": "2G", "max_memory": None}, Effect.REBOOT),
        ({"labels": {"a": "b"}}, Effect.LIVE),
        ({"autostart": True}, Effect.LIVE),
        ({"limits": {"cpu_shares": 50}}, Effect.LIVE),
        ({"cmdline": "x=1"}, Effect.REBOOT),
        ({"cpu": "host"}, Effect.REBOOT),
        ({"qemu_args": ["-device", "edu"]}, Effect.REBOOT),
        ({"family": "compute"}, Effect.REBOOT),
        ({"image": "debian"}, Effect.RECREATE),
        ({"machine": "pc"}, Effect.RECREATE),
        ({"nics": [{"network": "lab", "address": "10.0.0.2/24"}]}, Effect.REBOOT),
    ],
)
def test_when_a_change_takes_effect(want: dict[str, Any], effect: Effect) -> None:
    delta = compare(spec(**want), vm())
    assert effect in effects(delta).values()
    shut_off = compare(spec(**want), vm(running=False))
    allowed = {Effect.RECREATE} if effect is Effect.RECREATE else {Effect.NEXT_START}
    assert set(effects(shut_off).values()) <= {*allowed, Effect.RECREATE}
    assert effect is Effect.RECREATE or Effect.RECREATE not in effects(shut_off).values()


def test_what_waits_for_a_reboot_is_not_said_of_what_runs() -> None:
    delta = compare(spec(cmdline="x=1", labels={"a": "b"}), vm())
    assert delta.spec.cmdline == "x=1"
    assert delta.running is not None
    assert delta.running.cmdline == ""
    assert delta.running.labels == {"a": "b"}
    after = vm()
    again = compare(delta.spec, Have(after.name, after.uri, delta.spec, delta.running, after.config, after.live))
    assert again.changes == ()
    assert again.pending == ("cmdline",)
    assert again.running == delta.running
    assert again.reboot


def test_memory_that_was_added_can_go_again() -> None:
    dimms = (Dimm(Bytes(128 * MIB), "<x/>"), Dimm(Bytes(256 * MIB), "<y/>"))
    big = shape(size=Size(1, 4, Bytes(896 * MIB), Bytes(2 * GIB)), dimms=dimms)
    delta = compare(spec(memory="640M"), vm(live=big, old=spec(memory="896M")))
    (change,) = delta.changes
    assert change.effect is Effect.LIVE
    assert isinstance(change.act, SetSize)
    assert change.act.remove == ("<y/>",)
    assert effects(compare(spec(memory="600M"), vm(live=big)))["memory"] is Effect.REBOOT


def test_vcpus_of_the_start_stay() -> None:
    four = shape(size=Size(4, 4, Bytes(512 * MIB), Bytes(2 * GIB)), removable=2)
    assert effects(compare(spec(vcpus=2), vm(live=four, old=spec(vcpus=4)))) == {"vcpus": Effect.LIVE}
    assert effects(compare(spec(vcpus=1), vm(live=four, old=spec(vcpus=4)))) == {"vcpus": Effect.REBOOT}


def test_vcpus_of_emulated_guests_never_go() -> None:
    there = shape(size=Size(2, 4, Bytes(512 * MIB), Bytes(2 * GIB)), removable=1, emulated=True)
    (change,) = compare(spec(vcpus=1), vm(live=there, old=spec(vcpus=2))).changes
    assert change.effect is Effect.REBOOT
    assert isinstance(change.act, SetSize)
    assert change.act.vcpus is None


def test_a_disk_in_the_middle_goes_and_no_other_becomes_it() -> None:
    delta = compare(spec(disks=[{}, {"size": "2G"}]), vm())
    (change,) = delta.changes
    assert change.act == RemoveDisk("vdb", "/pool/a-1.qcow2", live=True)
    assert change.old == "vdb 1G"
    assert [d.size for d in delta.spec.disks] == [None, 2 * GIB]


def test_a_disk_grows_and_never_shrinks() -> None:
    delta = compare(spec(disks=[{}, {"size": "1G"}, {"size": "3G"}]), vm())
    assert [c.act for c in delta.changes] == [GrowDisk("vdc", "/pool/a-2.qcow2", Bytes(3 * GIB))]
    with pytest.raises(SpecError, match=r"vdc of a has 2G: a disk cannot become smaller") as caught:
        compare(spec(disks=[{}, {"size": "1G"}, {"size": "1536M"}]), vm())
    assert "copy the data" in str(caught.value.hint)
    grown = compare(spec(disks=[{"size": "1G"}, {"size": "1G"}, {"size": "2G"}]), vm())
    assert [c.act for c in grown.changes] == [GrowDisk("vda", "/pool/a-0.qcow2", Bytes(GIB))]


def test_an_old_file_does_not_take_one_disk_for_another() -> None:
    old = spec(disks=[{}, {"size": "2G"}, {"size": "1G"}])
    have = vm(old=old, sizes={"vda": 64 * MIB, "vdb": 2 * GIB, "vdc": GIB})
    with pytest.raises(SpecError, match="vdb of a has 2G: a disk cannot become smaller"):
        compare(spec(disks=[{}, {"size": "1536M"}]), have)


def test_a_disk_that_somebody_grew_by_hand_is_left_alone() -> None:
    assert compare(spec(), vm(sizes={"vda": 64 * MIB, "vdb": 5 * GIB, "vdc": 2 * GIB})).changes == ()


def test_new_disks_come_behind_the_others_wherever_they_stand() -> None:
    delta = compare(spec(disks=[{}, {"size": "5G"}, {"size": "1G"}, {"size": "2G"}]), vm())
    assert [c.act for c in delta.changes] == [AddDisk(3, "vdd", live=True)]
    assert [d.size for d in delta.spec.disks] == [None, GIB, 2 * GIB, 5 * GIB]
    sata = compare(spec(disks=[*BASE["disks"], {"size": "1G", "bus": "sata"}]), vm())
    assert [(c.act, c.effect) for c in sata.changes] == [(AddDisk(3, "sdb", live=False), Effect.REBOOT)]
    assert sata.running == spec()


def test_without_a_free_port_it_waits_for_the_next_start() -> None:
    full = shape(ports=1)
    delta = compare(spec(disks=[*BASE["disks"], {"size": "1G"}, {"size": "1G"}]), vm(live=full))
    assert [c.effect for c in delta.changes] == [Effect.LIVE, Effect.REBOOT]
    both = compare(spec(disks=[*BASE["disks"], {"size": "1G"}], nics=[{"network": "lab"}, {}]), vm(live=full))
    assert [c.effect for c in both.changes] == [Effect.LIVE, Effect.REBOOT]


def test_the_disk_of_the_image_needs_a_new_vm() -> None:
    assert effects(compare(spec(disks=[{"size": "1G", "image": ""}]), vm()))["disks[0]"] is Effect.RECREATE


def test_nics_come_go_and_move() -> None:
    two = compare(spec(nics=[{"network": "lab"}, {"network": "user"}]), vm())
    (added,) = two.changes
    assert isinstance(added.act, AddNic)
    assert added.act.live
    assert added.act.mac.startswith("52:54:00:")
    none = compare(spec(nics=[]), vm())
    assert [c.act for c in none.changes] == [RemoveNic(MAC, live=True)]
    moved = compare(spec(nics=[{"network": "bridge:br1"}]), vm())
    assert [c.act for c in moved.changes] == [MoveNic(0, MAC)]
    other = compare(spec(nics=[{"network": "lab", "model": "e1000e"}]), vm())
    assert [c.act for c in other.changes] == [ReplaceNic(0, MAC, MAC)]
    known = compare(spec(nics=[{"network": "lab", "mac": MAC}]), vm())
    assert [(c.act, c.effect) for c in known.changes] == [(None, Effect.LIVE)]
    renewed = compare(spec(nics=[{"network": "lab", "mac": "52:54:00:aa:00:02"}]), vm())
    assert sorted(type(c.act).__name__ for c in renewed.changes) == ["AddNic", "RemoveNic"]


def test_assigned_devices_are_left_to_vmkit_device() -> None:
    delta = compare(spec(nics=[{"network": "lab"}, {"io": "sriov", "pf": "eth1"}]), vm())
    assert [c.effect for c in delta.changes] == [Effect.RECREATE]
    assert "vmkit device attach" in delta.changes[0].reason


disks = st.lists(
    st.builds(lambda g, b: {"size": f"{g}G", **b}, st.integers(1, 3), st.sampled_from([{}, {"bus": "scsi"}]))
)


@given(disks)
def test_what_was_brought_about_differs_no_more(wanted: list[dict[str, Any]]) -> None:
    try:
        delta = compare(spec(disks=[{}, *wanted]), vm())
    except SpecError:  # a smaller disk
        return
    gone = {c.act.device for c in delta.changes if isinstance(c.act, RemoveDisk)}
    new = [c.act.device for c in delta.changes if isinstance(c.act, AddDisk)]
    grown = {c.act.device: int(c.act.size) for c in delta.changes if isinstance(c.act, GrowDisk)}
    old = [d for d in shape().disks if d.device not in gone]
    rebuilt = any(".bus" in c.path for c in delta.changes)
    if rebuilt:
        return
    there = (*old, *(DiskShape(d, "virtio" if d[0] == "v" else "scsi", f"/pool/{d}", "") for d in new))
    sizes = {d.device: vm().sizes.get(d.device, 0) for d in old} | grown
    after = vm(old=delta.spec, live=shape(disks=there, targets=frozenset(d.device for d in there)), sizes=sizes)
    assert compare(spec(disks=[{}, *wanted]), after).changes == ()
    assert "vda" not in gone
