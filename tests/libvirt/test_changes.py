"""Changes of VMs through API and command line, on libvirt's test driver: definitions, volumes, names, the way back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vmkit import Client
from vmkit.cli.main import cli
from vmkit.errors import ConflictError, EffectError, NotFoundError, SpecError
from vmkit.progress import silent
from vmkit.recovery import recover_all
from vmkit.system.journal import Record, journalled, records
from vmkit.vm.change import rollback, session
from vmkit.vm.change.report import Applied, Options
from vmkit.vm.spec import parse

BASE: dict[str, Any] = {"name": "x", "disks": [{"size": "1G"}, {"size": "2G"}], "nics": [{"network": "default"}]}


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path))
    with Client("test:///default") as client:
        client.vms.create(BASE, start=False)
        try:
            yield client
        finally:
            for row in client.vms.list():
                if row.name != "test":
                    client.vms.get(row.name).delete(force=True)
            pool = client.host.pool("vmkit")
            for name in pool.names():
                pool.delete(name)
            assert records() == []


class Killed(BaseException):
    """In place of the end of the process."""


@contextlib.contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, *where: str) -> Iterator[None]:
    """What is called in these places ends all, and leaves the journal as it is."""

    def killed(*_args: object, **_more: object) -> None:
        raise Killed

    monkeypatch.setattr("vmkit.vm.change.restart.PATIENCE", 0.1)
    with monkeypatch.context() as patch:
        for place in where:
            patch.setattr(place, killed)
        patch.setattr("vmkit.system.journal.remove", lambda _record: None)
        with pytest.raises(Killed):
            yield


def spec(**more: Any) -> Any:
    return parse({**BASE, **more})


def disks(client: Client, name: str = "x") -> list[tuple[str, str | None]]:
    return [(d.device, (d.source or "").rpartition("/")[2]) for d in client.vms.get(name).details().disks]


def apply(client: Client, **more: Any) -> Applied:
    (done,) = client.changes.apply([spec(**more)], options=Options(start=False))
    return done


def test_a_definition_changes_and_then_there_is_nothing_to_do(client: Client) -> None:
    before = client.host.domain("x").xml(inactive=True)
    want = {"vcpus": 3, "memory": "512M", "labels": {"a": "b"}, "autostart": True}
    assert {r.effect for d in client.changes.diff([spec(**want)]) for r in d.changes} == {"at next start"}
    assert client.host.domain("x").xml(inactive=True) == before
    done = apply(client, **want)
    assert done.action == "changed"
    assert sorted(r.path for r in done.changes) == ["autostart", "labels", "memory", "vcpus"]
    details = client.vms.get("x").details()
    assert (details.vcpus, details.memory, details.autostart) == (3, 512 << 20, True)
    assert details.labels == {"a": "b"}
    assert apply(client, **want).action == "unchanged"
    assert [d.action for d in client.changes.diff([spec(**want)])] == ["start"]


def test_disks_come_and_go_and_their_data_is_kept(client: Client) -> None:
    pool = client.host.pool("vmkit")
    apply(client, disks=[{"size": "1G"}, {"size": "2G"}, {"size": "3G"}])
    assert disks(client) == [("vda", "x-0.qcow2"), ("vdb", "x-1.qcow2"), ("vdc", "x-2.qcow2")]
    assert pool.size("x-2.qcow2")[0] == 3 << 30
    done = apply(client, disks=[{"size": "1G"}, {"size": "3G"}])
    assert done.kept == ("x-1.qcow2",)
    assert done.deleted == ()
    assert disks(client) == [("vda", "x-0.qcow2"), ("vdc", "x-2.qcow2")]
    assert "x-1.qcow2" in pool.names()
    (done,) = client.changes.apply([spec(disks=[{"size": "1G"}])], options=Options(start=False, delete_disks=True))
    assert done.deleted == ("x-2.qcow2",)
    assert "x-2.qcow2" not in pool.names()
    # A new disk takes no name that a volume has.
    apply(client, disks=[{"size": "1G"}, {"size": "5G"}])
    assert disks(client) == [("vda", "x-0.qcow2"), ("vdb", "x-2.qcow2")]
    client.vms.get("x").delete()
    assert pool.names() == ["x-1.qcow2"]


def test_a_disk_never_becomes_smaller(client: Client) -> None:
    with pytest.raises(SpecError, match="vdb of x has 2G: a disk cannot become smaller"):
        apply(client, disks=[{"size": "1G"}, {"size": "1536M"}])


def test_nics(client: Client) -> None:
    apply(client, nics=[{"network": "default"}, {"network": "default", "mac": "52:54:00:00:00:77"}])
    macs = [n.mac for n in client.vms.get("x").details().nics]
    assert macs[1] == "52:54:00:00:00:77"
    assert apply(client, nics=[{"network": "default", "mac": "52:54:00:00:00:77"}]).action == "changed"
    assert [n.mac for n in client.vms.get("x").details().nics] == ["52:54:00:00:00:77"]
    with pytest.raises(NotFoundError, match="no network 'nowhere'"):
        apply(client, nics=[{"network": "nowhere"}])


def test_what_waits_for_a_reboot(client: Client) -> None:
    client.vms.get("x").start()
    done = apply(client, vcpus=2)
    assert done.pending == ("vcpus",)
    again = apply(client, vcpus=2)
    assert (again.action, again.pending) == ("unchanged", ("vcpus",))
    assert client.vms.get("x").details().vcpus == 1
    (done,) = client.changes.apply([spec(vcpus=2)], options=Options(reboot=True))
    assert (done.action, done.pending) == ("rebooted", ())
    assert client.vms.get("x").details().vcpus == 2
    (done,) = client.changes.apply([spec(vcpus=2)], options=Options(reboot=True))
    assert (done.action, done.pending) == ("unchanged", ())


def test_a_part_that_fails_takes_all_back(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    before = client.host.domain("x").xml(inactive=True, secure=True)
    volumes = client.host.pool("vmkit").names()

    def broken(*_args: object) -> None:
        raise EffectError("autostart of x: no")

    monkeypatch.setattr("vmkit.hypervisor.domain.Domain.set_autostart", broken)
    with pytest.raises(EffectError, match="autostart of x: no; everything is as it was"):
        apply(client, vcpus=4, autostart=True, disks=[*BASE["disks"], {"size": "1G"}])
    assert client.host.domain("x").xml(inactive=True, secure=True) == before
    assert client.host.pool("vmkit").names() == volumes
    assert records() == []


@pytest.mark.parametrize("phase", ["begin", "volumes", "definition"])
def test_a_change_that_was_cut_off_is_set_back(client: Client, phase: str) -> None:
    domain = client.host.domain("x")
    before = domain.xml(inactive=True, secure=True)
    data = rollback.snapshot(domain, None)
    with journalled("apply", "x", "begin", **data) as entry:
        entry.keep = True  # as if the process had been killed
        if phase != "begin":
            entry.advance("volumes", made=["x-7.qcow2"])
            client.host.pool("vmkit").create("<volume><name>x-7.qcow2</name><capacity>1024</capacity></volume>")
        if phase == "definition":
            entry.advance("definition")
            client.host.define(before.replace("<vcpu placement='static'>1", "<vcpu placement='static'>7"))
    (line,) = recover_all()
    assert ("nothing of it had been done" in line) == (phase == "begin")
    assert domain.xml(inactive=True, secure=True) == before
    assert "x-7.qcow2" not in client.host.pool("vmkit").names()


def test_deletions_that_were_left_are_made(client: Client) -> None:
    client.host.pool("vmkit").create("<volume><name>x-9.qcow2</name><capacity>1024</capacity></volume>")
    record = Record("apply-1", "apply", "x", 1, "", "delete", {"uri": "test:///default", "delete": ["x-9.qcow2"]})
    from vmkit.system.journal import Entry

    assert "deleted x-9.qcow2" in session.recover(Entry(record), silent)


def test_rename(client: Client) -> None:
    client.vms.create({"name": "other"}, start=False)
    with pytest.raises(ConflictError, match="there is a VM named 'other'"):
        client.changes.rename("x", "other")
    with pytest.raises(SpecError, match="cannot be a name"):
        client.changes.rename("x", "no/way")
    client.vms.get("x").start()
    with pytest.raises(ConflictError, match="renames only what is shut off") as caught:
        client.changes.rename("x", "y")
    assert "--restart" in str(caught.value.hint)
    assert "its volumes keep their names" in client.changes.rename("x", "y", restart=True)
    assert client.vms.get("y").state.value == "running"
    assert disks(client, "y") == [("vda", "x-0.qcow2"), ("vdb", "x-1.qcow2")]
    (done,) = client.changes.apply([spec(name="y")], options=Options(start=False))
    assert done.action == "unchanged"
    client.vms.create(BASE, start=False)  # the old name is free, and so are names for its volumes
    assert disks(client) == [("vda", "x-0-2.qcow2"), ("vdb", "x-1-2.qcow2")]
    client.vms.get("y").delete(force=True)
    assert client.host.pool("vmkit").names() == ["x-0-2.qcow2", "x-1-2.qcow2"]


def test_re_creation_has_to_be_asked_for_and_keeps_data_disks(client: Client) -> None:
    old = client.vms.get("x").uuid
    want = spec(machine="q35", disks=[{"size": "2G"}])
    with pytest.raises(ConflictError, match="made anew; nothing was touched") as caught:
        client.changes.apply([want])
    assert "machine: auto -> q35" in caught.value.details[0]
    (done,) = client.changes.apply([want], options=Options(recreate=True))
    assert done.action == "re-created"
    vm = client.vms.get("x")
    assert vm.uuid != old
    assert vm.state.value == "running"
    assert done.kept == ("x-0.qcow2",)  # the one of 1G, which the spec has no more
    assert disks(client) == [("vda", "x-1.qcow2")]
    assert client.host.pool("vmkit").names() == ["x-0.qcow2", "x-1.qcow2"]
    assert [d.name for d in client.host.domains()] == ["test", "x"]


def test_a_re_creation_that_fails_puts_the_old_one_back(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    old = client.vms.get("x").uuid
    volumes = client.host.pool("vmkit").names()

    def broken(*_args: object, **_more: object) -> None:
        raise EffectError("start of x: no")

    monkeypatch.setattr("vmkit.vm.create.build", broken)
    with pytest.raises(EffectError, match="start of x: no; the old VM is back as it was"):
        client.changes.apply([spec(machine="q35")], options=Options(recreate=True))
    assert client.vms.get("x").uuid == old
    assert client.host.pool("vmkit").names() == volumes


@pytest.mark.parametrize("at", ["begin", "shut off", "defined", "renamed"])
def test_a_renaming_that_was_killed_leaves_a_vm_that_runs(
    client: Client, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    client.vms.get("x").start()
    uuid = client.vms.get("x").uuid

    where = {
        "begin": "vmkit.vm.machine.Vm.stop",
        "shut off": "vmkit.vm.change.rename.adopt",
        "defined": "vmkit.hypervisor.alter.rename",
        "renamed": "vmkit.vm.change.rename.reservations.sync",
    }
    with killed_at(monkeypatch, where[at]):
        client.changes.rename("x", "y", restart=True)
    (line,) = recover_all()
    name = "y" if at == "renamed" else "x"
    assert f"name {name}" in line
    assert ("was started again" in line) == (at != "begin")
    vm = client.vms.get(name)
    assert (vm.uuid, vm.state.value) == (uuid, "running")
    assert vm.remembered().spec["name"] == name  # type: ignore[union-attr]
    assert disks(client, name) == [("vda", "x-0.qcow2"), ("vdb", "x-1.qcow2")]
    assert [d.name for d in client.host.domains()] == sorted(["test", name])


@pytest.mark.parametrize("at", ["begin", "shut off", "put aside", "made", "remove"])
def test_a_re_creation_that_was_killed_loses_nothing(client: Client, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    client.vms.get("x").start()
    old = client.vms.get("x").uuid

    where = {
        "begin": "vmkit.vm.machine.Vm.stop",
        "shut off": "vmkit.hypervisor.alter.rename",
        "put aside": "vmkit.vm.create.build",
        "made": "vmkit.hypervisor.domain.Domain.start",
        "remove": "vmkit.vm.change.recreate._remove",
    }
    with killed_at(monkeypatch, where[at], "vmkit.vm.create.undo"):
        client.changes.apply([spec(machine="q35", disks=[{"size": "2G"}])], options=Options(recreate=True))
    assert "a re-creation of x was cut off" in " ".join(recover_all())
    vm = client.vms.get("x")
    assert (vm.uuid != old) == (at == "remove")
    assert vm.state.value == "running"
    assert [d.name for d in client.host.domains()] == ["test", "x"]
    assert client.host.pool("vmkit").names() == ["x-0.qcow2", "x-1.qcow2"]
    assert disks(client)[-1] == ("vda" if at == "remove" else "vdb", "x-1.qcow2")


def test_another_tools_vm_is_left_alone(client: Client) -> None:
    with pytest.raises(ConflictError, match="another tool made it"):
        client.changes.change("test", lambda plain, _have: {**plain, "vcpus": 4})


def run(*argv: str, code: int = 0, **env: str) -> str:
    done = CliRunner(env=env).invoke(cli, ["-c", "test:///default", *argv])
    text = done.output + (str(done.exception.message) if hasattr(done.exception, "message") else "")
    assert (done.exit_code == 0) == (code == 0), text
    return text


def test_the_commands(client: Client, tmp_path: Path) -> None:
    assert "nothing to set" in run("set", "x", code=2)
    assert "vcpus 1 -> 2" in run("set", "x", "--vcpus", "2", "--label", "a=b")
    assert "unchanged" in run("set", "x", "--vcpus", "2")
    assert "disks[2]" in run("disk", "add", "x", "4G", "--plan")
    assert "x: changed" in run("disk", "add", "x", "4G")
    assert "vdc" in run("disk", "remove", "x", "vdc", "--delete-disks")
    assert "no disk 'vdz'" in run("disk", "remove", "x", "vdz", code=3)
    assert "x: changed" in run("nic", "add", "x", "default")
    assert "x: changed" in run("nic", "remove", "x", "1")
    assert "no NIC '7'" in run("nic", "remove", "x", "7", code=3)
    file = tmp_path / "f.yaml"
    file.write_text(json.dumps({"vms": [{**BASE, "vcpus": 3}, {"name": "z"}]}))
    shown = json.loads(run("diff", "-f", str(file), "-o", "json"))
    assert [(d["name"], d["action"]) for d in shown] == [("x", "change"), ("z", "create")]
    assert {c["path"] for c in shown[0]["changes"]} == {"vcpus", "labels"}
    table = run("apply", "-f", str(file), "--no-start")
    assert "at next start" in table
    assert "z: created" in table
    assert [d["action"] for d in json.loads(run("apply", "-f", str(file), "--no-start", "-o", "json"))] == [
        "unchanged",
        "unchanged",
    ]
    assert "x: is w now" in run("rename", "x", "w")


def test_edit(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/^name: x/&\\nvcpus: 2/' \"$1\"\n")
    editor.chmod(0o755)
    assert "vcpus 1 -> 2" in run("edit", "x", EDITOR=str(editor), VISUAL=str(editor))
    editor.write_text("#!/bin/sh\nsed -i 's/^name: x/name: q/' \"$1\"\n")
    assert "the name has to stay" in run("edit", "x", code=2, EDITOR=str(editor), VISUAL=str(editor))
    (kept,) = tmp_path.glob("vmkit-edit-*.yaml")
    assert "name: q" in kept.read_text()
    assert "nothing was changed" in run("edit", "x", EDITOR="true", VISUAL="true")
