"""Live migration of real guests between two real hosts."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import pytest

from tests.qemu.mover import Mover, jobs, vmkit
from vmkit.client import Client
from vmkit.errors import ConflictError, DeadlineError, NotFoundError, RefusedError, SpecError, UnreachableError
from vmkit.hypervisor.host import Host
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.migrate.facts import Presence
from vmkit.migrate.preflight import Level
from vmkit.progress import Advanced, Event

SLOW = "2M"  # at this rate 192M of guest take longer than any of these tests waits


@pytest.fixture(scope="module")
def mover(pair: Lab, micro: Image) -> Iterator[Mover]:
    vm = Mover(pair, "mover", pair.hosts[0].static[0], autostart=True)
    vm.create()
    yield vm
    vm.close()


def test_there_and_back(mover: Mover) -> None:
    before = mover.counter()
    for _ in range(2):
        source, target = mover.source, mover.target
        events: list[Event] = []
        with Client(source) as client:
            report = client.migrations.migrate(
                mover.name, target, deadline=240.0, probe=mover.address, reporter=events.append
            )
        assert (report.source, report.target, report.running_copies) == (source, target, 1)
        assert mover.source == target
        assert report.definition_moved
        there = next(s for s in mover.sightings() if s is not None)
        assert there.persistent
        assert there.autostart  # libvirt does not carry it over by itself
        after = mover.counter()
        assert after > before
        before = after
        assert report.total_ms > 0
        assert report.downtime_ms is not None
        assert 0 < report.downtime_ms < 30_000
        assert report.bytes_sent > 2**20
        assert report.rounds >= 1
        assert report.probe is not None
        assert report.guest_gap_ms == report.probe.gap_ms
        assert report.probe.gap_ms >= report.probe.interval_ms
        assert report.probe.sent > report.probe.lost
        assert any(isinstance(e, Advanced) and "to go" in e.text for e in events)
    assert jobs() == []


def test_json_and_plan_on_the_command_line(mover: Mover) -> None:
    source, target = mover.source, mover.target
    plan = vmkit("-c", source, "migrate", mover.name, "--to", target, "--plan", "-o", "json")
    assert plan.returncode == 0, plan.stderr
    choices = {c["subject"]: c for c in json.loads(plan.stdout)["choices"]}
    assert choices["check disk"]["value"] == "ok"
    assert "the very same file" in choices["check disk"]["reason"]
    assert choices["storage"]["value"] == "shared"
    assert mover.source == source  # nothing moved
    done = vmkit("-c", source, "migrate", mover.name, "--to", target, "--max-downtime", "100ms", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["running_copies"] == 1
    assert mover.source == target


def test_a_paused_vm_stays_paused(mover: Mover) -> None:
    at = mover.at
    mover.hosts[at].domain(mover.name).suspend()
    with Client(mover.uris[at]) as client:
        assert client.migrations.migrate(mover.name, mover.uris[1 - at]).running_copies == 1
    assert mover.states()[1 - at] == "paused"
    assert mover.states()[at] == "-"
    domain = mover.hosts[1 - at].domain(mover.name)
    assert domain.info().reason == "user"
    domain.resume()
    mover.counter()


def test_the_deadline_leaves_the_vm_where_it_was(mover: Mover) -> None:
    source, target, before = mover.source, mover.target, mover.counter()
    with Client(source) as client:
        with pytest.raises(RefusedError, match=r"cannot move to .* in time"):  # that much is certain beforehand
            client.migrations.migrate(mover.name, target, deadline=3.0, bandwidth=2 * 2**20)
        mover.guest("dirty", "64M", "max")
        try:
            with pytest.raises(DeadlineError, match="the VM runs on at") as caught:
                client.migrations.migrate(mover.name, target, deadline=6.0, bandwidth=30 * 2**20, auto_converge=True)
        finally:
            mover.guest("dirty", "stop")
    assert "still to be sent" in caught.value.details[0]
    assert mover.source == source
    assert mover.counter() > before
    assert jobs() == []


def test_cancelled_from_another_process_while_the_guest_outruns_the_link(mover: Mover) -> None:
    source, target, before = mover.source, mover.target, mover.counter()
    mover.guest("dirty", "64M", "max")
    try:
        process = mover.start_migrate("--bandwidth", "20M", "--deadline", "300s", "--auto-converge")
        mover.wait_for_transfer(process, 150 * 2**20)  # more than one round
        for _ in range(60):
            (job,) = jobs()
            assert (job["kind"], job["subject"], job["state"]) == ("migrate", mover.name, "running")
            if isinstance(progress := job["progress"], dict) and progress["sent"] > 2**20:
                break
            time.sleep(0.5)
        assert isinstance(progress, dict)
        assert progress["sent"] > 2**20
        cancel = vmkit("jobs", "cancel", mover.name)
        assert cancel.returncode == 0, cancel.stderr
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 7, errors
        assert "cancelled by 'vmkit jobs cancel'" in errors
    finally:
        mover.guest("dirty", "stop")
    assert mover.source == source
    assert mover.counter() > before
    assert jobs() == []
    with Client(source) as client:
        assert client.migrations.migrate(mover.name, target, deadline=240.0).running_copies == 1
    assert mover.source == target


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_in_order(mover: Mover, number: signal.Signals) -> None:
    source, before = mover.source, mover.counter()
    process = mover.start_migrate("--bandwidth", SLOW)
    mover.wait_for_transfer(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7, errors
    assert "cancelled by" in errors
    assert mover.source == source
    assert mover.counter() > before
    assert jobs() == []


def test_aborted_by_another_tool(mover: Mover) -> None:
    source = mover.source
    process = mover.start_migrate("--bandwidth", SLOW)
    mover.wait_for_transfer(process)
    mover.hosts[mover.uris.index(source)].domain(mover.name).abort_job()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7, errors
    assert "aborted by another program" in errors
    assert mover.source == source


def test_no_vm_is_migrated_twice_at_once(mover: Mover) -> None:
    source, target = mover.source, mover.target
    process = mover.start_migrate("--bandwidth", SLOW)
    mover.wait_for_transfer(process)
    with Client(source) as client, pytest.raises(ConflictError, match="being migrated by another vmkit"):
        client.migrations.migrate(mover.name, target)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert mover.source == source


def test_wrong_targets(mover: Mover) -> None:
    source = mover.source
    with Client(source) as client:
        with pytest.raises(SpecError, match="--to"):
            client.migrations.migrate(mover.name, "foo://bar")
        with pytest.raises(UnreachableError):
            client.migrations.migrate(mover.name, "qemu+tcp://127.0.0.1:1/system")
        with pytest.raises(RefusedError, match="same host"):
            client.migrations.migrate(mover.name, source)
        with pytest.raises(NotFoundError):
            client.migrations.migrate("nobody", mover.target)
        with pytest.raises(RefusedError, match="nothing answers"):
            client.migrations.migrate(mover.name, mover.target, probe=f"{mover.address}:9")
        report = client.migrations.preflight(mover.name, "qemu+tcp://127.0.0.1:1/system")
        assert [f.level for f in report.findings] == [Level.REFUSED]
    assert mover.source == source
    assert jobs() == []


# -- domains of other tools

FOREIGN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>foreign</name>
  <title>Somebody else's</title>
  <description>made by hand &lt; with care</description>
  <metadata><inv:owner xmlns:inv='urn:inventory' since='2019'><inv:team>storage</inv:team></inv:owner></metadata>
  <memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <serial type='pty'><target port='0'/></serial><console type='pty'/>
    <watchdog model='i6300esb' action='none'/><sound model='ich6'/>
    <panic model='isa'/><input type='tablet' bus='usb'/>
    <channel type='unix'><target type='virtio' name='org.example.port.7'/></channel>
  </devices>
  <qemu:commandline><qemu:env name='NOTE' value='kept'/></qemu:commandline>
</domain>
"""


def define(host: Host, xml: str) -> None:
    from vmkit.hypervisor.migration import adopt

    adopt(host, xml)


def content(xml: str) -> list[str]:
    """A definition with its devices in one order: libvirt puts controllers where it likes."""
    root = ET.fromstring(xml)
    devices = root.find("devices")
    assert devices is not None
    root.remove(devices)
    return sorted(ET.canonicalize(ET.tostring(e, encoding="unicode"), strip_text=True) for e in [*devices, *root])


def test_a_foreign_domain_loses_nothing(mover: Mover) -> None:
    one, two = mover.hosts
    define(one, FOREIGN)
    try:
        domain = one.domain("foreign")
        domain.start()
        before = content(domain.xml(inactive=True, secure=True))
        assert any("urn:inventory" in part for part in before)
        with Client(mover.uris[0]) as client:
            assert client.migrations.migrate("foreign", mover.uris[1]).running_copies == 1
        moved = two.domain("foreign")
        assert content(moved.xml(inactive=True, secure=True)) == before
        live = moved.xml()
        assert all(word in live for word in ("urn:inventory", "org.example.port.7", "i6300esb", "NOTE"))
    finally:
        for host in (one, two):
            for d in host.domains():
                if d.name == "foreign":
                    if d.state().active:
                        d.destroy()
                    d.undefine()


def test_a_name_that_is_taken_at_the_target(mover: Mover) -> None:
    source, other = mover.source, mover.hosts[1 - mover.at]
    define(other, FOREIGN.replace(">foreign<", f">{mover.name}<"))
    stranger = other.domain(mover.name)
    try:
        with Client(source) as client, pytest.raises(ConflictError, match="another domain named mover"):
            client.migrations.migrate(mover.name, mover.uris[1 - mover.uris.index(source)])
        assert stranger.exists()
    finally:
        stranger.undefine()
    assert mover.source == source


def test_an_image_that_is_missing_at_the_target(mover: Mover) -> None:
    """/var/lib/libvirt is each host's own, so a file in a pool there is on one host only."""
    one = mover.hosts[0]
    pool = "<pool type='dir'><name>own</name><target><path>/var/lib/libvirt/own</path></target></pool>"
    pools = [h.define_pool(pool) for h in mover.hosts]
    volume = (
        "<volume><name>data.raw</name><capacity unit='MiB'>1</capacity><target><format type='raw'/></target></volume>"
    )
    path = pools[0].create(volume)
    disk = f"<disk type='file' device='disk'><source file='{path}'/><target dev='vda' bus='virtio'/></disk>"
    define(one, FOREIGN.replace("<devices>", "<devices>" + disk))
    domain = one.domain("foreign")
    try:
        domain.start()
        with Client(mover.uris[0]) as client:
            report = client.migrations.preflight("foreign", mover.uris[1])
            assert any(f.check == "disk" and "data.raw is copied to the target" in f.text for f in report.findings)
            pools[1].create(volume)  # a file of the same name, and not the same file
            report = client.migrations.preflight("foreign", mover.uris[1])
            text = next(f.text for f in report.findings if f.check == "disk")
            assert Presence.SAME.value not in text
        assert domain.state().active
    finally:
        domain.destroy()
        domain.undefine()
        for p in pools:
            p.delete("data.raw")
            p.handle.destroy()
            p.handle.undefine()


def test_time_of_one_look_at_both_hosts(mover: Mover) -> None:
    begin = time.monotonic()
    with Client(mover.source) as client:
        client.migrations.preflight(mover.name, mover.target)
    assert time.monotonic() - begin < 60
