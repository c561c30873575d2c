"""The spec: what is taken, and that everything else is refused with the path of the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmkit.errors import SpecError
from vmkit.vm.spec import VmSpec, dump, load, parse

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
    ({"name": "x", "vcpus": "two"}, "vcpus", "expected 'int', got 'str'"),
    ({"name": "x", "memory": "lots"}, "memory", "not a size"),
    ({"name": "x", "memory": "1M"}, "memory", "between 16M"),
    ({"name": "x", "memory": -5}, "memory", "negative"),
    ({"name": "x", "memory": True}, "memory", "not a size"),
    ({"name": "x", "memory": [1]}, "memory", "not a size"),
    ({"name": "x", "accel": "hax"}, "accel", "invalid enum value 'hax'"),
    ({"name": "x", "disks": [{"size": "1G"}, {"size": "1G", "bus": "ide"}]}, "disks[1].bus", "invalid enum value"),
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
