"""The life of VMs through the API, on libvirt's test driver, which really implements these calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vmkit import Client
from vmkit.errors import ConflictError, NotFoundError, RefusedError, SpecError
from vmkit.system.journal import records
from vmkit.vm.spec import parse

FOREIGN = """<domain type='test' xmlns:other='urn:other'>
  <name>foreign</name><title>made elsewhere</title>
  <metadata><other:thing a='1'><other:inner>kept</other:inner></other:thing></metadata>
  <memory>65536</memory><vcpu>1</vcpu><os><type arch='i686'>hvm</type></os>
  <devices><watchdog model='i6300esb' action='reset'/></devices></domain>"""


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path))
    with Client("test:///default") as client:
        yield client


def test_life_of_a_vm(client: Client) -> None:
    made = client.vms.create({"name": "a", "disks": [{"size": "1G"}], "labels": {"role": "db"}})
    assert made.accelerator == "test"
    vm = client.vms.get("a")
    assert vm.state.value == "running"
    assert vm.start() is False
    assert vm.pause() is True
    assert vm.pause() is False
    with pytest.raises(ConflictError, match="is paused"):
        vm.start()
    assert vm.resume() is True
    assert vm.resume() is False
    assert vm.stop() is True
    assert vm.stop() is False
    with pytest.raises(ConflictError, match="shut off"):
        vm.pause()
    assert vm.start() is True
    details = vm.details()
    assert details.labels == {"role": "db"}
    assert details.disks[0].source is not None
    assert details.managed
    with pytest.raises(ConflictError, match="is running"):
        vm.delete()
    assert vm.delete(force=True) == ("domain a", "volume a-0.qcow2")
    with pytest.raises(NotFoundError):
        client.vms.get("a")
    assert records() == []


def test_list_has_every_domain_whoever_made_it(client: Client) -> None:
    client.host.define(FOREIGN)
    client.vms.create({"name": "mine"}, start=False)
    rows = {r.name: r for r in client.vms.list()}
    assert (rows["foreign"].managed, rows["foreign"].state) == (False, "shut off")
    assert (rows["mine"].managed, rows["mine"].memory) == (True, 256 << 20)
    for name in ("foreign", "mine"):
        client.vms.get(name).delete()


def test_foreign_domain_keeps_every_element(client: Client) -> None:
    client.host.define(FOREIGN)
    vm = client.vms.get("foreign")
    before = vm.domain.xml(inactive=True)
    assert "kept" in before
    vm.start()
    vm.pause()
    vm.resume()
    assert vm.details().managed is False
    vm.stop(force=True)
    assert vm.domain.xml(inactive=True) == before
    with pytest.raises(RefusedError, match="not logged"):
        vm.log()
    assert vm.delete() == ("domain foreign",)


def test_name_taken(client: Client) -> None:
    with pytest.raises(ConflictError, match="there is a VM named 'test'"):
        client.vms.create({"name": "test"})


def test_unknown_name_suggests_near_ones(client: Client) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.vms.get("tset")
    assert caught.value.hint == "did you mean test?"


def test_failed_creation_leaves_nothing(client: Client) -> None:
    client.vms.create({"name": "a", "disks": [{"size": "1G"}]}, start=False)
    pool = client.host.pool("vmkit")
    client.vms.get("a").domain.undefine()  # its volume stays, as if an operator had removed the domain by hand
    with pytest.raises(ConflictError, match="belongs to no VM of this name"):
        client.vms.create({"name": "a", "disks": [{"size": "1G"}, {"size": "1G"}]})
    assert "a-0.qcow2" in pool.names()
    assert "a-1.qcow2" not in pool.names()
    assert "a" not in [d.name for d in client.host.domains()]
    pool.delete("a-0.qcow2")


def test_plan_touches_nothing(client: Client) -> None:
    before = [d.name for d in client.host.domains()]
    plan = client.vms.plan({"name": "p", "disks": [{"size": "1G"}]})
    assert [s.verb for s in plan.steps] == ["create", "define", "start"]
    assert [d.name for d in client.host.domains()] == before


def test_apply_creates_then_leaves_alone(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "vms.yaml"
    file.write_text("vms:\n- name: a\n- name: b\n  memory: 64M\n")
    assert [(d.name, d.action) for d in client.vms.apply(file)] == [("a", "created"), ("b", "created")]
    assert [d.action for d in client.vms.apply(file)] == ["unchanged", "unchanged"]
    client.vms.get("b").stop(force=True)
    assert [d.action for d in client.vms.apply(file)] == ["unchanged", "started"]
    file.write_text("vms:\n- name: a\n  image: nothing\n- name: c\n")
    with pytest.raises(ConflictError, match="would have to be made anew; nothing was touched"):
        client.vms.apply(file)
    assert "c" not in [d.name for d in client.host.domains()]  # nothing was touched
    for name in ("a", "b"):
        client.vms.get(name).delete(force=True)


def test_apply_refuses_the_domain_of_another_tool(client: Client) -> None:
    with pytest.raises(ConflictError, match="another tool made it"):
        client.vms.apply([parse({"name": "test"})])


def test_unknown_image_is_refused_with_a_way_out(client: Client) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.vms.create({"name": "a", "image": "nothing"})
    assert caught.value.hint


@pytest.mark.parametrize("uri", ["nonsense", "qemu://", "bogus:///x", "qemu:///system\n", ""])
def test_wrong_uri(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMKIT_CONNECT", uri)
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "bogus:///y")
    with pytest.raises(SpecError) as caught:
        Client().vms.list()
    assert caught.value.hint


def test_wait_on_a_vm_that_is_off(client: Client) -> None:
    client.vms.create({"name": "off"}, start=False)
    with pytest.raises(ConflictError, match="shut off"):
        client.vms.get("off").wait()
    client.vms.get("off").delete()
