"""The spec: what is taken, and that everything else is refused with the path of the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmkit.errors import SpecError
from vmkit.vm.spec import VmSpec, dump, load, parse
from vmkit.vm.spec_checks import cpu_numbers

FULL = {
    "name": "web1",
    "image": "micro",
    "vcpus": 2,
    "memory": "512M",
    "disks": [{"size": "1G"}, {"size": "2G", "bus": "scsi"}],
    "nics": [{"network": "lab", "address": "192.0.2.10/24", "gateway": "192.0.2.1", "mac": "52:54:00:00:00:01"}],
    "qemu_args": ["-device", "edu"],
    "labels": {"role": "front end"},
}


def test_full_spec_round_trips() -> None:
    spec = parse(FULL)
    assert spec.memory == 512 << 20
    assert spec.disks[1].bus.value == "scsi"
    assert parse(dump(spec)) == spec


def test_defaults_are_left_out_of_the_dump() -> None:
    assert dump(parse({"name": "a"})) == {"name": "a"}


WRONG = [
    ({}, "", "missing required field 'name'"),
    ({"name": ""}, "name", "cannot be a name"),
    ({"name": "../etc/passwd"}, "name", "cannot be a name"),
    ({"name": "<b>"}, "name", "cannot be a name"),
    ({"name": "a\nb"}, "name", "'a\\nb'"),
    ({"name": "x" * 300}, "name", "too long"),
    ({"name": "x", "vcpus": 0}, "vcpus", "between 1 and 1024"),
    ({"name": "x", "disks": {"size": "1G"}}, "disks", "expected a list, got a mapping"),
    ({"name": "x", "vcpus": "two"}, "vcpus", "expected a whole number, got text"),
    ({"name": "x", "memory": "lots"}, "memory", "not a size"),
    ({"name": "x", "memory": "1M"}, "memory", "between 16M"),
    ({"name": "x", "memory": -5}, "memory", "negative"),
    ({"name": "x", "memory": True}, "memory", "not a size"),
    ({"name": "x", "memory": [1]}, "memory", "not a size"),
    ({"name": "x", "accel": "hax"}, "accel", "invalid enum value 'hax'"),
    ({"name": "x", "disks": [{"size": "1G"}, {"size": "1G", "bus": "floppy"}]}, "disks[1].bus", "invalid enum value"),
    ({"name": "x", "disks": [{"size": "1G", "sise": 3}]}, "disks[0].sise", "unknown field"),
    ({"name": "x", "disks": [{}]}, "disks[0].size", "needs a size"),
    ({"name": "x", "nics": [{"address": "10.0.0.1"}]}, "nics[0].address", "lacks its prefix"),
    ({"name": "x", "nics": [{"address": "10.0.0.999/24"}]}, "nics[0].address", "10.0.0.999"),
    ({"name": "x", "nics": [{"gateway": "nowhere"}]}, "nics[0].gateway", "nowhere"),
    ({"name": "x", "nics": [{"mac": "01:00:00:00:00:01"}]}, "nics[0].mac", "multicast"),
    ({"name": "x", "nics": [{"network": "a b"}]}, "nics[0].network", "cannot be a name"),
    ({"name": "x", "cmdline": "quiet\nroot"}, "cmdline", "cannot be printed"),
    ({"name": "x", "qemu_args": ["a\0b"]}, "qemu_args", "cannot be printed"),
    ({"name": "x", "image": "a/b"}, "image", "cannot be a name"),
    ({"name": "x", "meory": 1}, "meory", "unknown field"),
    ({"name": "x", "cpu": "--evil"}, "cpu", "cannot be right"),
    ({"name": "x", "cpu": "emulated", "accel": "kvm"}, "cpu", "accel says kvm"),
    ({"name": "x", "family": "computer"}, "family", "invalid enum value"),
    ({"name": "x", "pinning": ["0"], "vcpus": 2}, "pinning", "1 entries for 2 vCPUs"),
    ({"name": "x", "pinning": ["3-1"]}, "pinning[0]", "not a range"),
    ({"name": "x", "pinning": ["one"]}, "pinning[0]", "not a list of CPUs"),
    ({"name": "x", "pinning": "0-3"}, "pinning", "not a way of pinning"),
    ({"name": "x", "numa": "left"}, "numa", "no NUMA node"),
    ({"name": "x", "numa": -1}, "numa", "no NUMA node"),
    ({"name": "x", "numa": 5000}, "numa", "between 0 and 1023"),
    ({"name": "x", "hugepages": "4M"}, "hugepages", "invalid enum value"),
    ({"name": "x", "hugepages": "1G", "memory": "512M"}, "memory", "no multiple of 1G"),
    ({"name": "x", "locked": True, "balloon": True}, "balloon", "cannot be given back"),
    ({"name": "x", "limits": {"cpu_shares": 0}}, "limits.cpu_shares", "between 2 and 10000"),
    ({"name": "x", "limits": {"cpu_quota": 0}}, "limits.cpu_quota", "between 0.01"),
    ({"name": "x", "limits": {"memory": "big"}}, "limits.memory", "not a size"),
    ({"name": "x", "limits": {"cpu": 1}}, "limits.cpu", "unknown field"),
    ({"name": "x", "devices": [{"address": "01:00.0"}]}, "devices[0].address", "not a PCI address"),
    ({"name": "x", "devices": [{"address": "0000:01:00.0"}] * 2}, "devices[1].address", "twice"),
    ({"name": "x", "disks": [{"io": "passthrough"}]}, "disks[0].source", "passthrough of what?"),
    ({"name": "x", "disks": [{"io": "passthrough", "source": "/etc/x"}]}, "disks[0].source", "no block device"),
    ({"name": "x", "disks": [{"io": "passthrough", "source": "/dev/../x"}]}, "disks[0].source", "no block device"),
    ({"name": "x", "disks": [{"size": "1G", "source": "/dev/sdb"}]}, "disks[0].source", "only a passthrough disk"),
    ({"name": "x", "disks": [{"size": "1G", "io": "virtio", "bus": "sata"}]}, "disks[0].bus", "io says virtio"),
    ({"name": "x", "disks": [{"size": "1G", "io": "emulated", "bus": "scsi"}]}, "disks[0].bus", "io says emulated"),
    ({"name": "x", "disks": [{"size": "1G", "io": "emulated", "queues": 2}]}, "disks[0].queues", "has none"),
    ({"name": "x", "disks": [{"size": "1G", "queues": 0}]}, "disks[0].queues", "between 1 and 256"),
    (
        {"name": "x", "disks": [{"size": "1G", "limits": {"total_iops_sec": 1, "read_iops_sec": 1}}]},
        "disks[0].limits.total_iops_sec",
        "excludes",
    ),
    ({"name": "x", "nics": [{"io": "sriov", "model": "virtio"}]}, "nics[0].model", "io says sriov"),
    ({"name": "x", "nics": [{"io": "emulated", "vhost": "on"}]}, "nics[0].vhost", "only virtio"),
    ({"name": "x", "nics": [{"vlan": 3}]}, "nics[0].vlan", "only a virtual function"),
    ({"name": "x", "nics": [{"io": "sriov", "vlan": 4095}]}, "nics[0].vlan", "between 1 and 4094"),
    ({"name": "x", "nics": [{"io": "sriov", "pf": "a b"}]}, "nics[0].pf", "no interface's name"),
    ({"name": "x", "nics": [{"io": "passthrough"}]}, "nics[0].device", "passthrough of what?"),
    ({"name": "x", "nics": [{"device": "0000:01:00.0"}]}, "nics[0].device", "only a passthrough NIC"),
    (
        {"name": "x", "nics": [{"io": "sriov", "failover": True, "network": "user"}]},
        "nics[0].network",
        "cannot be on 'user'",
    ),
    ({"name": "x", "nics": [{"limits": {"inbound": 1}}]}, "nics[0].limits.inbound", "between 1K"),
    ([1, 2], "", "mapping"),
    ("web1", "", "mapping"),
]


@pytest.mark.parametrize(("data", "path", "message"), WRONG)
def test_wrong_specs_name_the_field(data: object, path: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(data)
    assert caught.value.path == path
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_unknown_field_suggests_the_known_one() -> None:
    with pytest.raises(SpecError) as caught:
        parse({"name": "x", "meory": "1G"})
    assert caught.value.hint == "did you mean memory?"


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ({"name": "x", "family": "computer"}, "did you mean compute?"),
        ({"name": "x", "disks": [{"size": "1G", "io": "virtual"}]}, "did you mean virtio?"),
        ({"name": "x", "nics": [{"io": "nothing like it"}]}, "one of auto, emulated, virtio, passthrough, sriov"),
        ({"name": "x", "disks": [{"size": "1G", "limits": {"read_bytes": 1}}]}, "did you mean read_bytes_sec?"),
        ({"name": "x", "limits": {"memry": 1}}, "did you mean memory?"),
        ({"name": "x", "devices": [{"address": "01:00.0"}]}, "write it like 0000:01:00.0"),
    ],
)
def test_near_misses_are_named(data: object, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(data)
    assert caught.value.hint == hint


def test_every_field_round_trips() -> None:
    data = {
        "name": "big",
        "family": "compute",
        "guest": "windows",
        "vcpus": 2,
        "memory": 2 << 30,
        "cpu": "host",
        "pinning": ["2", "3-4,6"],
        "numa": 1,
        "hugepages": "1G",
        "locked": True,
        "balloon": False,
        "limits": {"cpu_shares": 200, "cpu_quota": 1.5, "memory": 3 << 30, "io_weight": 50},
        "devices": [{"address": "0000:01:00.0"}],
        "disks": [
            {"size": 1 << 30, "io": "virtio", "iothread": True, "queues": 4, "limits": {"total_bytes_sec": 1 << 20}},
            {"io": "passthrough", "source": "/dev/disk/by-id/x"},
        ],
        "nics": [
            {"io": "virtio", "vhost": "on", "queues": 2, "limits": {"inbound": 1 << 20}},
            {"io": "passthrough", "device": "0000:02:00.0"},
            {"io": "sriov", "pf": "eth1", "vlan": 7, "max_tx_rate": 100, "spoofcheck": False, "trust": True},
        ],
    }
    spec = parse(data)
    assert dump(spec) == data
    assert parse(dump(spec)) == spec


@pytest.mark.parametrize(("numa", "node"), [("auto", None), ("none", None), (0, 0), ("3", 3)])
def test_numa_node(numa: object, node: int | None) -> None:
    assert parse({"name": "x", "numa": numa}).numa_node == node


def test_what_yaml_takes_for_booleans_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "vm.yaml"
    file.write_text("name: a\nvcpus: 2\npinning: [2, 4-5]\nnics: [{vhost: on}, {vhost: off}]\n")
    (spec,) = load(file)
    assert spec.pinning == ("2", "4-5")
    assert [n.vhost.value for n in spec.nics] == ["on", "off"]


def test_memory_auto_is_left_open() -> None:
    assert parse({"name": "x", "memory": "auto"}) == parse({"name": "x"})


@pytest.mark.parametrize(("text", "cpus"), [("2", (2,)), ("0-3", (0, 1, 2, 3)), ("4,0-1,1", (0, 1, 4))])
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert cpu_numbers(text, "pinning") == cpus


def test_yaml_forms(tmp_path: Path) -> None:
    file = tmp_path / "vms.yaml"
    file.write_text("name: a\n---\nname: b\n---\n- name: c\n- name: d\n---\nvms:\n- name: e\n")
    assert [s.name for s in load(file)] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "line 1"),
        ("", "no VM"),
        ("- name: a\n- name: a\n", "[1].name: 'a' is there twice"),
        ("vms:\n- name: a\n- name: b\n  disks: [{size: x}]\n", "vms[1].disks[0].size"),
        ("vms: []\nother: 1\n", "unknown field 'other'"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("just words", "mapping"),
    ],
)
def test_yaml_errors_name_the_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "vm.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        load(file)
    assert message in caught.value.message


def test_missing_file_and_binary_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="UTF-8"):
        load(tmp_path / "bin")


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from([*VmSpec.__struct_fields__, "other"]), json_like))
def test_any_data_gives_a_spec_or_a_spec_error(data: dict[str, object]) -> None:
    try:
        spec = parse(data)
    except SpecError:
        return
    assert parse(dump(spec)) == spec
