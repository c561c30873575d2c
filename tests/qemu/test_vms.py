"""Real VMs on a real host: creation, readiness, life cycle, what is left, and domains of other tools."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.qemu.conftest import sweep
from vmkit.client import Client
from vmkit.errors import ConflictError, DeadlineError, EffectError, RefusedError
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.system.journal import records
from vmkit.vm.readiness import Layer

WAIT = 180.0
"""Seconds for a boot that takes five on a quiet machine."""


def spec(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "image": "micro", "memory": "192M", "nics": [{"network": "lab"}], **more}


@pytest.fixture
def host(client_h1: Client, micro: Image) -> Iterator[Client]:
    """Host h1, with no VM before and none after."""
    assert micro.name == "micro"
    yield client_h1
    sweep(client_h1)


def volumes(client: Client) -> list[str]:
    pool = client.host.pool("vmkit")
    pool.refresh()
    return pool.names()


def vmkit(*argv: str, uri: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vmkit", "-c", uri, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a test can send Ctrl-C to it and its children, as a terminal does
    )


def test_life_of_a_vm(host: Client) -> None:
    made = host.vms.create(spec("web1", qemu_args=["-device", "edu,addr=0x10"]), wait=True, deadline=WAIT)
    assert made.accelerator in ("kvm", "tcg")
    assert made.ready is not None
    usual = [Layer.RUNNING, Layer.CONSOLE, Layer.BOOT, Layer.AGENT, Layer.ADDRESS]
    assert [s.layer for s in made.ready.steps] == usual
    assert [s.seconds for s in made.ready.steps] == sorted(s.seconds for s in made.ready.steps)
    vm = host.vms.get("web1")
    assert vm.details().addresses == (made.ready.address,)
    assert vm.guest_exec(["hostname"]).stdout.strip() == "web1"
    assert vm.guest_exec(["edu-id"]).stdout.strip() == "0x010000ed"
    assert vm.guest_exec(["cat"], stdin=b"a\x00b").stdout == "a\x00b"
    assert vm.guest_exec(["false"]).status == 1
    with pytest.raises(EffectError, match="cannot run '/nowhere'"):
        vm.guest_exec(["/nowhere"])

    first = int(vm.guest_exec(["counter"]).stdout)
    vm.pause()
    assert vm.state.value == "paused"
    with pytest.raises(DeadlineError, match="stuck at 'running': the domain is paused"):
        vm.wait(deadline=0.5)
    vm.resume()
    assert int(vm.guest_exec(["counter"]).stdout) > first  # the same boot: the counter lives in RAM

    boot = vm.guest_exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    again = vm.reboot(wait=True, deadline=WAIT)
    assert again is not None
    assert [s.layer for s in again.steps] == usual
    assert "Restarting system" in vm.log()
    assert vm.guest_exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout != boot
    vm.stop(deadline=WAIT)
    assert vm.state.value == "shut off"
    vm.start()
    vm.wait(deadline=WAIT)
    assert "Restarting system" not in vm.log()  # the log begins with the last start


def test_delete_leaves_the_host_as_it_was(host: Client) -> None:
    host.vms.create(spec("warm"), start=False)  # puts the image there, which stays
    host.vms.get("warm").delete()
    before = volumes(host)
    host.vms.create(spec("gone", disks=[{}, {"size": "1G", "bus": "scsi"}, {"size": "1G", "bus": "sata"}]))
    assert len(volumes(host)) >= len(before) + 3
    assert [d.device for d in host.vms.get("gone").details().disks] == ["vda", "sda", "sdb"]
    with pytest.raises(ConflictError, match="gone is running"):
        host.vms.get("gone").delete()
    host.vms.get("gone").delete(force=True)
    assert volumes(host) == before


def test_deadline_names_the_stuck_layer_shows_the_console_and_keeps_the_vm(host: Client) -> None:
    with pytest.raises(DeadlineError) as caught:
        # A kernel that finds no init stops before user space.
        host.vms.create(spec("stuck", cmdline="rdinit=/nowhere panic=0 root=/dev/none"), wait=True, deadline=20)
    assert "stuck at 'boot'" in caught.value.message or "stuck at 'console'" in caught.value.message
    assert "vmkit console stuck" in (caught.value.hint or "")
    assert caught.value.details
    assert all(line.startswith("console| ") for line in caught.value.details)
    assert host.vms.get("stuck").state.value == "running"


def test_kvm_is_taken_only_where_a_probe_guest_ran(host: Client) -> None:
    plan = host.vms.plan(spec("p"))
    choice = next(c for c in plan.choices if c.subject == "accel")
    if choice.value == "tcg":
        assert plan.warnings
        with pytest.raises(RefusedError, match="accel: kvm does not work"):
            host.vms.plan(spec("p", accel="kvm"))
    asked = host.vms.plan(spec("p", accel="tcg"))
    assert next(c.value for c in asked.choices if c.subject == "accel") == "tcg"


def test_domain_of_another_tool_keeps_its_xml(host: Client, pair: Lab, micro: Image) -> None:
    assert micro.kernel is not None
    xml = f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
      <name>foreign</name><title>made with virsh</title><description>by hand</description>
      <metadata><x:thing xmlns:x='urn:x' a='1'><x:deep>kept</x:deep></x:thing></metadata>
      <memory unit='MiB'>160</memory><vcpu>1</vcpu>
      <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{micro.kernel.path}</kernel></os>
      <devices><watchdog model='i6300esb' action='none'/><sound model='ich9'/>
      <input type='tablet' bus='virtio'/></devices>
      <qemu:commandline><qemu:arg value='-device'/><qemu:arg value='edu,addr=0x10'/></qemu:commandline></domain>"""
    virsh = ["virsh", "-q", "-c", pair.host("h1").uri]
    subprocess.run([*virsh, "define", "/dev/stdin"], input=xml, text=True, check=True, capture_output=True, timeout=60)
    vm = host.vms.get("foreign")
    before = vm.domain.xml(inactive=True)
    assert "kept" in before
    assert next(r for r in host.vms.list() if r.name == "foreign").managed is False
    vm.start()
    assert vm.state.value == "running"
    assert vm.details().qemu_args == ("-device", "edu,addr=0x10")
    vm.pause()
    vm.resume()
    vm.stop(force=True)
    assert ET.canonicalize(vm.domain.xml(inactive=True)) == ET.canonicalize(before)
    assert vm.delete() == ("domain foreign",)


def pid_of(uuid: str) -> int:
    """The QEMU of a domain."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if b"-uuid" in words and uuid.encode() in words:
            return int(path.parent.name)
    raise AssertionError(f"no process of {uuid}")


def test_a_qemu_that_ends_by_itself_is_said_to_have_crashed(host: Client) -> None:
    vm = host.vms.create(spec("short")).vm
    os.kill(pid_of(vm.domain.uuid), signal.SIGKILL)
    with pytest.raises(EffectError, match="short crashed while waiting for") as caught:
        vm.wait(deadline=WAIT)
    assert "/var/log/libvirt/qemu/short.log" in str(caught.value.hint)
    assert vm.details().reason == "crashed"
    vm.delete()


@pytest.mark.parametrize("delay", [0.25, 0.5, 0.8, 1.2])
def test_kill_9_of_create_is_settled_by_the_next_command(host: Client, pair: Lab, tmp_path: Path, delay: float) -> None:
    uri = pair.host("h1").uri
    file = tmp_path / "vm.json"  # JSON is YAML
    file.write_text(json.dumps(spec("cut")))
    host.vms.create(spec("warm"), start=False)
    host.vms.get("warm").delete()
    before = volumes(host)
    process = vmkit("apply", "-f", str(file), uri=uri)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    interrupted = records("create")
    following = vmkit("list", "-o", "name", uri=uri)
    out, err = following.communicate(timeout=120)
    assert following.returncode == 0, err
    assert records() == []
    if interrupted:
        assert f"creation of cut was cut off at '{interrupted[0].phase}'" in err or "it is kept" in err
    if "cut" in out.split():
        assert host.vms.get("cut").state.value == "running"  # it had come to its end, or nearly
        host.vms.get("cut").delete(force=True)
    assert volumes(host) == before


@pytest.mark.parametrize("delay", [0.4, 0.8, 3.0])
def test_ctrl_c_leaves_a_whole_vm_or_none(host: Client, pair: Lab, delay: float) -> None:
    host.vms.create(spec("warm"), start=False)
    host.vms.get("warm").delete()
    before = volumes(host)
    uri = pair.host("h1").uri
    process = vmkit("create", "cut", "--image", "micro", "--nic", "lab", "--memory", "192M", "--wait", uri=uri)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode in (7, 130, -signal.SIGINT), err  # the last: Python itself had not started yet
    assert records() == []
    if "cut" in [row.name for row in host.vms.list()]:
        assert "the VM is kept" in err
        host.vms.get("cut").delete(force=True)
    else:
        assert "nothing is left of it" in err or process.returncode != 7
    assert volumes(host) == before
