"""The domain XML: against libvirt's own schema, and that values stay values."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from lxml import etree

from tests.unit.test_choices import HOST, NO_KVM, made
from vmkit.system.templates import template
from vmkit.values import Bytes
from vmkit.vm.describe import describe
from vmkit.vm.metadata import NAMESPACE, Remembered, remembered_in
from vmkit.vm.spec import dump, parse
from vmkit.vm.xml import Placement, domain_xml
from vmkit.vm.xml_volumes import volume_xml

SCHEMAS = Path("/usr/share/libvirt/schemas")
UUID = "6d1b3f0e-8d7d-4b3f-9d53-1f0c4a3c2b1a"


def valid(xml: str, schema: str) -> None:
    checker = etree.RelaxNG(etree.parse(SCHEMAS / schema))
    checker.assertValid(etree.fromstring(xml))


def xml_of(facts: Any = HOST, **spec: Any) -> str:
    design, _ = made(facts, **spec)
    volumes = {d.volume: f"/pool/{d.volume}" for d in design.disks}
    boots = design.cmdline is not None
    placement = Placement("/pool/k" if boots else None, "/pool/i" if boots else None, volumes, "/pool/web1-console.log")
    plain = dump(parse({"name": "web1", "image": "micro", **spec}))
    remembered = Remembered(plain, "micro", tuple(volumes), "web1-console.log")
    return domain_xml(template("domain.xml").read_text(), design, placement, remembered, UUID)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"image": None, "disks": [{"size": "1G"}], "nics": []},
        {"disks": [{}, {"size": "1G", "bus": "sata"}, {"size": "1G", "bus": "scsi"}]},
        {"nics": [{"network": "user"}, {"network": "bridge:br0", "model": "e1000e"}, {"mac": "52:54:00:00:00:01"}]},
        {"qemu_args": ["-device", "edu"], "cpu": "host"},
        {"cpu": "maximum", "machine": "pc", "labels": {"a": '<b c="d">&amp;'}},
        {"cmdline": '<x y="z"/> & more', "vcpus": 4},
    ],
)
@pytest.mark.parametrize("facts", [HOST, NO_KVM], ids=["kvm", "tcg"])
def test_valid_against_libvirts_schema(spec: dict[str, Any], facts: Any) -> None:
    valid(xml_of(facts, **spec), "domain.rng")


def test_values_do_not_become_markup() -> None:
    text = '</cmdline><evil/> & "quoted"'
    root = ET.fromstring(xml_of(cmdline=text))
    assert root.find(".//evil") is None
    assert (root.findtext("os/cmdline") or "").endswith(text)


def test_metadata_comes_back_as_it_went_in() -> None:
    root = ET.fromstring(xml_of(labels={"a": "<&>'\""}))
    element = root.find(f"metadata/{{{NAMESPACE}}}vm")
    assert element is not None
    memory = remembered_in(ET.tostring(element, encoding="unicode"))
    assert memory is not None
    assert memory.spec["labels"] == {"a": "<&>'\""}
    assert memory.volumes == ("web1-0.qcow2",)


@pytest.mark.parametrize("text", ["", "<a", "<a/>", "<a>{}</a>", '<a>{"spec": 1}</a>', "<a>[]</a>", "<a>null</a>"])
def test_metadata_of_others_is_ignored(text: str) -> None:
    assert remembered_in(text) is None


def test_description_of_what_was_built() -> None:
    described = describe(xml_of(NO_KVM, qemu_args=["-device", "edu"], nics=[{"network": "user"}, {}]))
    assert described.accelerator == "tcg"
    assert described.cpu == "qemu64"
    assert [d.source for d in described.disks] == ["/pool/web1-0.qcow2"]
    assert [n.network for n in described.nics] == ["user", "network:default"]
    assert described.qemu_args == ("-device", "edu")


def test_description_of_a_domain_of_another_tool() -> None:
    described = describe(
        "<domain type='xen'><os><type>linux</type></os><devices>"
        "<disk type='block' device='cdrom'><target dev='hda'/></disk><interface type='ethernet'/></devices></domain>"
    )
    assert described.accelerator == "xen"
    assert described.disks[0].source is None
    assert described.nics[0].network == "ethernet"


@pytest.mark.parametrize("backing", [None, "/pool/0123.qcow2"])
def test_volume_xml_is_valid(backing: str | None) -> None:
    valid(volume_xml("web1-0.qcow2", Bytes(1 << 30), backing), "storagevol.rng")
