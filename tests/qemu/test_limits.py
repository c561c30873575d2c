"""Limits of real guests on a host of the lab, which has no cgroups: disks and NICs are held, the rest is refused."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner

from vmkit.cli.main import cli
from vmkit.client import Client
from vmkit.errors import EffectError, SpecError, UnsupportedError
from vmkit.hypervisor import tuning
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.progress import silent
from vmkit.system.journal import Entry, Record, records
from vmkit.vm import limiting
from vmkit.vm.limits import parse_change
from vmkit.vm.machine import Vm
from vmkit.vm.spec_parts import DiskLimits, NicLimits

NAME = "limited"
MIB = 1 << 20


@pytest.fixture(scope="module")
def vm(pair: Lab, micro: Image) -> Iterator[Vm]:
    """One guest for all tests here, with a limit on its second disk from the start."""
    spec = {
        "name": NAME,
        "image": micro.name,
        "memory": "192M",
        "disks": [{"size": "64M"}, {"size": "64M", "limits": {"read_iops_sec": 500}}],
        "nics": [{"network": "lab"}],
    }
    with Client(pair.host("h1").uri) as client:
        made = client.vms.create(spec, wait=True, deadline=180)
        try:
            yield made.vm
        finally:
            made.vm.delete(force=True)


@pytest.fixture(autouse=True)
def bare(vm: Vm) -> Iterator[None]:
    """Each test begins and ends without limits."""
    yield
    vm.limit(parse_change(none=["all"]))
    assert records("limit") == []


def seconds(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def read_blocks(vm: Vm, count: int) -> float:
    """Seconds for reads of 4 KiB each that go to the disk, one after the other."""
    argv = ["dd", "if=/dev/vdb", "of=/dev/null", "bs=4096", f"count={count}", "iflag=direct"]

    def work() -> None:
        done = vm.guest_exec(argv, timeout=180)
        assert done.status == 0, done.stderr

    return seconds(work)


def test_a_limit_of_the_spec_is_there_from_the_start(vm: Vm) -> None:
    shown = vm.limits()
    for limits in (shown.live, shown.config):
        assert limits is not None
        assert [d.limits for d in limits.disks] == [DiskLimits(), DiskLimits(read_iops_sec=500)]


def test_a_disk_is_held_to_its_operations(vm: Vm) -> None:
    free = read_blocks(vm, 60)
    vm.limit(parse_change(disks=["vdb:read-iops=10"]))
    held = read_blocks(vm, 60)
    assert held > 5.0  # 60 reads at 10 a second; QEMU lets a tenth of a second's worth through at once
    assert held > 2 * free
    vm.limit(parse_change(none=["disk"]))
    assert read_blocks(vm, 60) < held / 2


def pull(vm: Vm, address: str, size: int) -> float:
    """Seconds in which the guest gets `size` bytes from here."""
    with socket.create_server((address, 0)) as server:
        server.settimeout(60)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(bytes(size))

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        script = f"nc {address} {port} </dev/null | wc -c"

        def work() -> None:
            done = vm.guest_exec(["sh", "-c", script], timeout=180)
            assert done.stdout.strip() == str(size), done.stderr

        try:
            return seconds(work)
        finally:
            thread.join(60)


def test_a_nic_is_held_to_its_rate(vm: Vm, pair: Lab) -> None:
    gateway = pair.host("h1").gateway
    free = pull(vm, gateway, 4 * MIB)
    before = vm.limits()
    try:
        vm.limit(parse_change(nics=["0:in=512K"]))
    except EffectError as e:  # a kernel without the qdisc sfq, which libvirt uses; tests/lab_kvm has one with it
        assert "qdisc kind is unknown" in e.message  # noqa: PT017
        assert "everything is as it was" in e.message  # noqa: PT017
        assert "sch_sfq" in str(e.hint)  # noqa: PT017
        assert vm.limits() == before
        return
    held = pull(vm, gateway, 4 * MIB)
    assert held > 6.0  # 4 MiB at 512 KiB a second take 8 s
    assert held > 2 * free
    shown = vm.limits().live
    assert shown is not None
    assert shown.nics[0].limits.inbound == 512 << 10
    assert shown.nics[0].limits == NicLimits(inbound=shown.nics[0].limits.inbound)


@pytest.mark.parametrize("option", [{"cpus": "0.5"}, {"cpu_shares": 50}, {"memory_cap": "1G"}, {"io_weight": 50}])
def test_what_needs_cgroups_is_refused_whole(vm: Vm, option: dict[str, object]) -> None:
    before = vm.limits()
    with pytest.raises(UnsupportedError, match="cgroup") as caught:
        vm.limit(parse_change(disks=["vdb:iops=50"], **option))  # type: ignore[arg-type]
    assert "cgroup_controllers" in str(caught.value.hint)
    assert vm.limits() == before


def test_a_new_vm_with_such_a_limit_is_refused_and_leaves_nothing(vm: Vm, pair: Lab) -> None:
    with Client(pair.host("h1").uri) as client:
        with pytest.raises(UnsupportedError) as caught:
            client.vms.create({"name": "no", "image": "micro", "memory": "192M", "limits": {"cpu_quota": 0.5}})
        assert "cgroup_controllers" in str(caught.value.hint)
        assert [r.name for r in client.vms.list()] == [NAME]


def test_only_what_runs_or_only_the_definition(vm: Vm) -> None:
    vm.limit(parse_change(disks=["vda:bps=5M"]), config=True)
    vm.limit(parse_change(disks=["vda:bps=3M"]), live=True)
    shown = vm.limits()
    assert shown.live is not None
    assert shown.config is not None
    assert shown.live.disks[0].limits.total_bytes_sec == 3 * MIB
    assert shown.config.disks[0].limits.total_bytes_sec == 5 * MIB
    assert vm.limit(parse_change(disks=["vda:bps=3M"]), live=True).changed == ()


def test_a_part_that_fails_takes_the_others_back(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    vm.limit(parse_change(disks=["vda:write-bps=5M"]))
    before = vm.limits()
    set_nic = tuning.set_nic
    calls: list[int] = []

    def failing(domain: object, mac: str, inbound: int, outbound: int) -> None:
        calls.append(inbound)
        if inbound:
            raise EffectError("limits of the NIC: tc failed")
        set_nic(domain, mac, inbound, outbound)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "set_nic", failing)
    with pytest.raises(EffectError, match="everything is as it was"):
        vm.limit(parse_change(disks=["vda:write-bps=1M", "vdb:iops=5"], nics=["0:in=1M"]))
    assert calls
    assert vm.limits() == before


def test_a_change_that_was_cut_off_is_undone_by_the_next_command(vm: Vm) -> None:
    vm.limit(parse_change(disks=["vda:write-bps=5M"]))
    facts = limiting.gather(vm.domain)
    data = {
        "uri": vm.domain.host.uri,
        "uuid": vm.uuid,
        "live": limiting._plain(facts.live),
        "config": limiting._plain(facts.config),
    }
    vm.limit(parse_change(disks=["vda:write-bps=1M"]), live=True)  # as far as a killed command may have come
    entry = Entry(Record("limit-1", "limit", NAME, 1, "", "begin", json.loads(json.dumps(data))))
    assert "set back: disk:vda" in limiting.recover(entry, silent)
    after = vm.limits()
    assert after.live == facts.live
    assert after.config == facts.config
    assert "nothing of it had been done" in limiting.recover(entry, silent)


def test_the_command(vm: Vm, pair: Lab) -> None:
    uri = pair.host("h1").uri

    def run(*argv: str) -> str:
        done = CliRunner().invoke(cli, ["-c", uri, *argv], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    plan = run("limit", NAME, "--disk", "vda:iops=70", "--plan")
    assert "disk:vda total-iops=70 (was none)" in plan
    assert "in what runs and in the definition" in plan
    assert "total-iops=70" not in run("limit", NAME)
    assert "total-iops=70 (was none)" in run("limit", NAME, "--disk", "vda:iops=70")
    assert "nothing to change" in run("limit", NAME, "--disk", "vda:iops=70")
    found = json.loads(run("limit", NAME, "-o", "json"))
    assert found["config"]["disks"][0]["limits"]["total_iops_sec"] == 70
    remembered = vm.remembered()
    assert remembered is not None
    assert remembered.spec["disks"][0]["limits"] == {"total_iops_sec": 70}
    assert "limits.disk:vda" in run("show", NAME)
    seen = json.loads(run("show", NAME, "-o", "json"))
    assert seen["limits"]["disks"][0]["limits"]["total_iops_sec"] == 70
    with pytest.raises(SpecError, match="would kill"):
        CliRunner().invoke(cli, ["-c", uri, "limit", NAME, "--memory-cap", "64M", "--config"], catch_exceptions=False)


def test_show_tells_how_the_process_is_confined(vm: Vm) -> None:
    seen = vm.details().isolation
    assert seen is not None
    assert seen.user == "root (0)"  # the lab's qemu.conf says so
    assert seen.seccomp.startswith("on")
    assert seen.sandbox.startswith("on,")
    assert seen.no_new_privileges == "yes"
    assert "net" in seen.namespaces
