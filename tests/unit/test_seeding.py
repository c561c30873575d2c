"""From a spec to a seed: who is let in, the disk in the domain, addresses, and that no secret is where others read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from tests.unit.test_choices import HOST, MICRO
from tests.unit.test_domain_xml import UUID, valid
from vmkit.errors import SpecError
from vmkit.image.manifest import Image, ImageKind
from vmkit.plan import Plan
from vmkit.system.templates import template
from vmkit.vm import seeding
from vmkit.vm.choices.decide import decide
from vmkit.vm.describe import describe
from vmkit.vm.design import Design
from vmkit.vm.metadata import Access, Remembered, remembered_in, to_text
from vmkit.vm.seeding import Wanted
from vmkit.vm.spec import VmSpec, parse, remembered_form
from vmkit.vm.xml import Placement, domain_xml

CLOUD = replace(MICRO, name="cloud", kind=ImageKind.IMPORTED, kernel=None, initrd=None, cloud_init=True, user="debian")
OWN = "ssh-ed25519 AAAAown vmkit"
MINE = "ssh-ed25519 AAAAmine me"


@pytest.fixture(autouse=True)
def no_keys_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


def decided(image: Image = CLOUD, **more: Any) -> tuple[VmSpec, Wanted | None, Design, Plan]:
    spec = parse({"name": "web_1", "image": image.name, **more})
    design, plan = decide(spec, HOST, {image.name: image}, {image.name: 1 << 30})
    want = seeding.wanted(spec, image)
    return spec, want, *seeding.planned(want, design, plan)


def seed_of(**more: Any) -> dict[str, Any]:
    spec, want, design, _ = decided(**more)
    assert want is not None
    design = seeding.with_addresses(design, UUID)
    seed = seeding.compose(want, design, spec, UUID, OWN, "$6$hashhash$x" if want.password else None)
    return {name: yaml.safe_load(content) for name, content in seed.files.items()}


def test_an_image_with_cloud_init_gets_a_seed_by_itself() -> None:
    _, want, design, plan = decided()
    assert want is not None
    assert want.user == "debian"
    assert design.seed is not None
    assert (design.seed.volume, design.seed.bus.value, design.seed.device) == ("web_1-seed.iso", "virtio", "vdb")
    assert design.volumes == ("web_1-0.qcow2", "web_1-seed.iso")
    assert [s.verb for s in plan.steps] == ["place", "create", "create", "define", "start"]
    files = seed_of()
    assert files == {
        "meta-data": {"instance-id": f"vmkit-{UUID}", "local-hostname": "web-1"},
        "user-data": {"ssh_authorized_keys": [OWN]},
    }


def test_no_seed_where_none_is_due() -> None:
    assert decided(replace(CLOUD, cloud_init=None))[1] is None
    assert decided(MICRO)[1] is None
    assert decided(replace(CLOUD, cloud_init=None), cloud_init={})[1] is not None
    for image in (MICRO, replace(CLOUD, cloud_init=False)):
        with pytest.raises(SpecError, match="has no cloud-init"):
            decided(image, cloud_init={"user": "x"})


@pytest.mark.parametrize(
    ("asked", "user"),
    [
        ({}, "debian"),
        ({"user": "ops"}, "ops"),
        ({"user_data": {"users": [{"name": "bob"}]}}, "bob"),
        ({"user_data": {"users": ["default", {"name": "bob"}]}}, "debian"),
        ({"user_data": "#!/bin/sh\n"}, "debian"),
    ],
)
def test_who_logs_in(asked: dict[str, Any], user: str) -> None:
    want = decided(cloud_init=asked)[1]
    assert want is not None
    assert want.user == user


def test_keys_of_the_user_are_taken_unless_others_are_named(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_rsa.pub").write_text("ssh-rsa AAAArsa me\n")
    assert seed_of()["user-data"]["ssh_authorized_keys"] == [OWN, "ssh-rsa AAAArsa me"]
    assert seed_of(cloud_init={"ssh_keys": [MINE]})["user-data"]["ssh_authorized_keys"] == [OWN, MINE]


def test_a_password_is_made_for_each_vm_and_only_its_hash_is_written() -> None:
    spec, want, design, plan = decided(cloud_init={"password": "generate"})
    again = decided(cloud_init={"password": "generate"})[1]
    assert want is not None
    assert again is not None
    assert want.password
    assert want.password != again.password
    written = seeding.compose(want, design, spec, UUID, OWN, "$6$hashhash$x")
    everything = f"{written} {plan} {want} {remembered_form(spec)}"
    assert want.password not in everything
    assert yaml.safe_load(written.user_data)["password"] == "$6$hashhash$x"  # noqa: S105


def test_two_passwords_are_refused_before_anything_is_made() -> None:
    with pytest.raises(SpecError, match="is set here too") as caught:
        decided(cloud_init={"password": "generate", "user_data": {"password": "x"}})
    assert caught.value.path == "cloud_init.user_data"


def test_a_vm_cannot_be_made_from_what_is_sealed() -> None:
    form = remembered_form(parse({"name": "a", "cloud_init": {"user_data": {"packages": ["vim"]}}}))
    with pytest.raises(SpecError, match="does not remember secrets"):
        decided(cloud_init=form["cloud_init"])


def test_addresses_of_the_nics() -> None:
    assert "network-config" not in seed_of(nics=[{"network": "default"}])
    files = seed_of(
        nics=[{"network": "default", "address": "192.0.2.9/24", "gateway": "192.0.2.1"}, {"mac": "52:54:00:00:00:09"}]
    )
    assert files["network-config"]["ethernets"] == {
        "nic0": {
            "match": {"macaddress": seeding.mac_of(UUID, 0)},
            "addresses": ["192.0.2.9/24"],
            "routes": [{"to": "0.0.0.0/0", "via": "192.0.2.1"}],
        },
        "nic1": {"match": {"macaddress": "52:54:00:00:00:09"}, "dhcp4": True},
    }
    own = {"version": 2, "ethernets": {"x": {"dhcp4": True}}}
    assert seed_of(cloud_init={"network_config": own})["network-config"] == own
    assert seed_of(cloud_init={"network_config": {"network": own}})["network-config"] == own


@pytest.mark.parametrize(
    ("disks", "bus", "device", "kind"),
    [
        ([{}], "virtio", "vdb", "disk"),
        ([{}, {"size": "1G"}], "virtio", "vdc", "disk"),
        ([{"bus": "scsi"}], "virtio", "vda", "disk"),
        ([{"bus": "sata"}], "sata", "sdb", "cdrom"),
    ],
)
def test_the_disk_in_the_domain(disks: list[dict[str, Any]], bus: str, device: str, kind: str) -> None:
    spec, want, design, _ = decided(disks=disks)
    assert want is not None
    placement = Placement(volumes={v: f"/pool/{v}" for v in design.volumes}, console_log="/pool/log")
    access = seeding.access_of(want, OWN)
    memory = Remembered(remembered_form(spec), "cloud", design.volumes, "log", access)
    xml = domain_xml(template("domain.xml").read_text(), design, placement, memory, UUID)
    valid(xml, "domain.rng")
    found = describe(xml).disks[-1]
    assert (found.source, found.bus, found.device, found.kind) == ("/pool/web_1-seed.iso", bus, device, kind)
    assert found.readonly
    assert found.format == "raw"
    element = ET.fromstring(xml).find("metadata/{urn:vmkit:vm:1}vm")
    assert element is not None
    assert remembered_in(ET.tostring(element, encoding="unicode")) == memory


def test_metadata_holds_no_secret() -> None:
    data = {"chpasswd": {"list": "debian:hunter2"}, "write_files": [{"path": "/key", "content": "hunter3"}]}
    spec, want, design, plan = decided(cloud_init={"user_data": data})
    assert want is not None
    text = to_text(Remembered(remembered_form(spec), "cloud", design.volumes, None, Access("debian", (OWN,))))
    assert "hunter" not in text + json.dumps(str(plan)) + repr(want)


def test_mac_addresses_follow_from_the_uuid() -> None:
    assert seeding.mac_of(UUID, 0) == seeding.mac_of(UUID, 0)
    assert len({seeding.mac_of(u, i) for u in (UUID, "other") for i in (0, 1)}) == 4
    assert seeding.mac_of(UUID, 0).startswith("52:54:00:")


def test_an_older_record_is_still_read() -> None:
    text = "<x>" + json.dumps({"spec": {}, "image": None, "volumes": [], "console_log": None}) + "</x>"
    assert remembered_in(text) == Remembered({}, None, (), None)
